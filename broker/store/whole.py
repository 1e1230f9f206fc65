"""A store as one file: copied out of one that is in use, and put in the place of one that is not.

The copy has no uuid and no boot of its own: `change_mark` makes the journal's mark one that belongs to nobody.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing, suppress
from pathlib import Path

from broker.data_dir import sync_folder
from broker.errors import Unavailable
from broker.sqlite import transaction
from broker.store import Head

Restore = Callable[[Head | None], Awaitable[Path | None]]
"""Told where the store stands, or None when there is none, before it is opened. Returns a file to begin with instead,
or None to go on with what there is. Raises StartError."""
ChangeMark = Callable[[bytes], bytes]


class Copying:
    """One copy under way: `run` in a thread, `interrupt` from any other."""

    def __init__(self, connect: Callable[[], sqlite3.Connection], path: Path, change_mark: ChangeMark) -> None:
        self._connect = connect
        self._path = path
        self._change_mark = change_mark
        self._source: sqlite3.Connection | None = None

    def run(self) -> Head:
        """Copy what the last checkpoint left, in one read transaction; writers go on. Raises Unavailable."""
        drop(self._path)  # of one that did not live to use it
        try:
            with closing(self._connect()) as self._source:
                self._source.execute("VACUUM INTO ?", (str(self._path),))
            with closing(sqlite3.connect(self._path, isolation_level=None)) as copy:
                return _finished(copy, self._change_mark)
        except sqlite3.Error as error:
            raise Unavailable(f"the store cannot be copied: {error}") from error

    def interrupt(self) -> None:
        """End it soon, with Unavailable."""
        with suppress(sqlite3.Error):  # it may be over
            if self._source is not None:
                self._source.interrupt()


def _finished(copy: sqlite3.Connection, change_mark: ChangeMark) -> Head:
    """Raises Unavailable for what is damaged already: nobody may begin with it, nothing be forgotten for it."""
    ((told,),) = copy.execute("PRAGMA quick_check(1)").fetchall()
    if told != "ok":
        raise Unavailable(f"the store is damaged: {told}")
    index, time_ms, mark = copy.execute("SELECT applied_index, time_ms, mark FROM head").fetchone()
    copy.execute("PRAGMA journal_mode=MEMORY")  # the file counts for nothing before it has been copied on
    copy.execute("PRAGMA synchronous=OFF")
    with transaction(copy):
        copy.execute("UPDATE head SET uuid = ?, mark = ?", (os.urandom(16), change_mark(mark)))
    return Head(index, time_ms, mark)


def head_of(connection: sqlite3.Connection) -> Head | None:
    """Where a store stands that is not open; None when the file is new."""
    if not connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
        return None
    return Head(*connection.execute("SELECT applied_index, time_ms, mark FROM head").fetchone())


def replace(path: Path, fresh: Path) -> None:
    """Put the file `fresh`, of the same folder, in the place of the store at `path`, which nobody has open.

    A process that dies in here leaves the old store whole, or none, or the new one. Raises OSError.
    """
    with fresh.open("rb") as file:
        os.fsync(file.fileno())
    drop(path)
    fresh.replace(path)
    sync_folder(path.parent)


def drop(path: Path) -> None:
    """Remove a database that nobody has open, or what is left of one. Raises OSError.

    The file goes first, and for certain: without its WAL it may be in pieces, and its WAL would be taken for that of
    whatever file has its name next.
    """
    path.unlink(missing_ok=True)
    sync_folder(path.parent)
    for ending in ("-journal", "-wal", "-shm"):
        path.with_name(path.name + ending).unlink(missing_ok=True)
    sync_folder(path.parent)
