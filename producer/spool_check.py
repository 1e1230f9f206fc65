"""Whether a spool is whole, without a change to it: for `streamfold doctor --spool`."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import msgspec

from consumer.errors import SpoolError, SpoolInUse
from producer.file_lock import FileLock, LockTaken
from producer.spool import APPLICATION_ID, VERSION, Kept, State

__all__ = ["CheckedSpool", "check"]


class CheckedSpool(msgspec.Struct):
    """What a spool is like: `waiting` generations are not delivered yet, `faults` say what is wrong with it."""

    generations: int = 0
    waiting: int = 0
    refused: int = 0
    batches: int = 0
    chunks: int = 0
    is_newer: bool = False
    faults: list[str] = msgspec.field(default_factory=list)


def check(path: Path) -> CheckedSpool:
    """Look at the spool at `path`. Raises SpoolInUse, and SpoolError when it cannot be read or is no spool."""
    found = CheckedSpool()
    with _locked(path):
        try:
            with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
                _examine(connection, path, found)
        except sqlite3.DatabaseError as error:
            found.faults.append(f"SQLite cannot read it: {error}")
    return found


def _examine(connection: sqlite3.Connection, path: Path, found: CheckedSpool) -> None:
    [[application_id]] = connection.execute("PRAGMA application_id")
    [[version]] = connection.execute("PRAGMA user_version")
    if application_id != APPLICATION_ID:
        raise SpoolError(f"{path} is no spool", path=str(path))
    if version > VERSION:
        found.is_newer = True
        return
    found.faults += [text for (text,) in connection.execute("PRAGMA integrity_check(20)") if text != "ok"]
    for row in connection.execute(f"SELECT {', '.join(Kept.__struct_fields__)} FROM generations"):  # noqa: S608  ours
        kept = Kept(*row)
        found.generations += 1
        found.waiting += kept.state in (State.OPEN, State.ENDED)
        found.refused += kept.state == State.REFUSED
        found.faults += [f"generation {kept.generation_id}: {fault}" for fault in _faults(connection, kept, found)]


def _faults(connection: sqlite3.Connection, kept: Kept, found: CheckedSpool) -> Iterator[str]:
    if not _is_json(kept.opening):
        yield "how it is opened cannot be read"
    bodies = connection.execute(
        "SELECT seq, body FROM batches WHERE generation = ? ORDER BY seq", (kept.id,)
    ).fetchall()
    seqs = [seq for seq, _ in bodies]
    if seqs != list(range(kept.next_seq - len(seqs), kept.next_seq)):
        yield f"its batches are {seqs}, the next one is {kept.next_seq}"
    yield from (f"batch {seq} is no JSON" for seq, body in bodies if not _is_json(body))
    chunks = connection.execute("SELECT n, body FROM chunks WHERE generation = ? ORDER BY n", (kept.id,)).fetchall()
    if [n for n, _ in chunks] != list(range(kept.written - len(chunks), kept.written)):
        yield f"chunks are missing before the last of {kept.written}"
    yield from (f"chunk {n} is no JSON" for n, body in chunks if not _is_json(body))
    found.batches += len(bodies)
    found.chunks += len(chunks)


def _is_json(body: object) -> bool:
    try:
        msgspec.json.decode(body if isinstance(body, bytes) else b"", type=msgspec.Raw)
    except msgspec.MsgspecError:
        return False
    return True


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Nobody else has it meanwhile. A spool without a lock file, such as a copy, stays without one."""
    lock_path = path.with_name(f"{path.name}.lock")
    if not lock_path.exists():
        yield
        return
    try:
        lock = FileLock(lock_path)
    except LockTaken as taken:
        raise SpoolInUse(f"another process has the spool {path} open", path=str(path)) from taken
    try:
        yield
    finally:
        lock.release()
