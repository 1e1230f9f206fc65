"""A new data folder of all that is good in a damaged one."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import msgspec

from broker.core.entry import encode
from broker.data_dir import DataDir, make_folder
from broker.doctor import store
from broker.doctor.folder import looking
from broker.doctor.journal import good_commits
from broker.errors import Damaged, StartError
from broker.journal.segments import Segments
from broker.sqlite import connect


class Salvaged(msgspec.Struct, rename="camel"):
    """What the new folder has: everything up to `index`, `entries` of them from the journal."""

    path: str
    index: int
    entries: int


def salvage(path: Path, target: Path) -> Salvaged:
    """Copy the store at `path`, and the entries beyond it up to the first that is missing or damaged, to `target`.

    A broker starts with it as if nothing had been written later. Raises StartError: the folder is in use or that of a
    cluster, its store is not whole, `target` is there already and not empty, or cannot be written. What is in `target`
    then is no data folder.
    """
    with looking(path) as source:
        examined = store.examine(source.store_path)
        if examined.head is None or examined.uuid is None or not examined.is_whole:
            raise Damaged(f"{source.store_path} is not whole", "restore the folder from a copy")
        if examined.head.mark:
            raise StartError(f"{path} is that of a cluster", "move its store away: the node makes it anew from the log")
        try:
            return _copied(source, DataDir(target), examined.uuid, examined.head.applied_index)
        except (OSError, sqlite3.Error) as error:
            raise StartError(f"{target}: {error}", "name a folder that this user can write") from error


def _copied(source: DataDir, target: DataDir, uuid: bytes, applied_index: int) -> Salvaged:
    if target.path.exists() and any(target.path.iterdir()):
        raise StartError(f"{target.path} is not empty", "name a folder that is not there yet")
    make_folder(target.path)
    index = _copy_journal(source, target, uuid, applied_index)
    if source.signing_key_path.exists():
        shutil.copy2(source.signing_key_path, target.signing_key_path)
    _copy_store(source, target)  # last: without it a broker takes the folder for damaged
    return Salvaged(str(target.path), index, index - applied_index)


def _copy_journal(source: DataDir, target: DataDir, uuid: bytes, applied_index: int) -> int:
    """The index of the last entry."""
    index = applied_index
    segments = Segments(target.journal_path, uuid)
    segments.open(applied_index)
    try:
        for commit in good_commits(source.journal_path, applied_index):
            segments.append(commit.first_index, commit.time_ms, [encode(entry) for entry in commit.entries])
            index = commit.first_index + len(commit.entries) - 1
    finally:
        segments.close()
    return index


def _copy_store(source: DataDir, target: DataDir) -> None:
    with store.reading(source.store_path) as old, closing(connect(target.store_path)) as new:
        old.backup(new)
        new.execute("PRAGMA wal_checkpoint(TRUNCATE)")


__all__ = ["Salvaged", "salvage"]
