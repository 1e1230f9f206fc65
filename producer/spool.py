"""What was written and is not delivered yet, in one SQLite file. Synchronous: `Outbox` calls it from a thread.

    generations   one row each: how it is opened, how far its sequence is, whether its end was told
    settlements   those that are over and not settled yet; since version 2
    chunks        written, not in a batch yet; n counts them
    batches       cut, with their seq and the very bytes that travel; gone when acknowledged

The rule that all of it serves: a batch is here, under its seq, before it is sent for the first time. So whatever
process sends it again sends the same bytes, and the broker tells the copy from a new batch.

Every change is durable when `transact` returns (`synchronous=FULL`; on macOS `fullfsync`, since a plain fsync there may
stay in the drive's cache). One process has the file at a time: a lock beside it says so. A damaged file is moved aside,
never deleted; one that a newer version wrote is left alone.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn, Protocol, TypeVar

import msgspec

from consumer.errors import SpoolCorrupt, SpoolError, SpoolFull, SpoolInUse
from producer.batcher import Batch
from producer.ending import Ended
from producer.file_lock import FileLock, LockTaken

__all__ = ["Change", "Kept", "Spool", "State", "Unsettled"]

T = TypeVar("T")

APPLICATION_ID: Final = 0x53464F42
"""In the file's header: it is a spool and not somebody's database. Any number of our own will do."""
VERSION: Final = 2
DELIVERED_KEPT_MAX: Final = 1_000
"""Rows of delivered generations that are kept, so that one is known when its application comes back and asks."""
_SIDE_FILES: Final = ("", "-wal", "-shm")

_SCHEMA: Final = """
CREATE TABLE generations (
    id INTEGER PRIMARY KEY,
    session_id TEXT NOT NULL,
    generation_id TEXT NOT NULL,
    current_id TEXT NOT NULL,
    life INTEGER NOT NULL DEFAULT 0,
    continues TEXT,
    opening BLOB NOT NULL,
    next_seq INTEGER NOT NULL DEFAULT 0,
    written INTEGER NOT NULL DEFAULT 0,
    end BLOB,
    state TEXT NOT NULL DEFAULT 'open',
    error TEXT,
    UNIQUE (session_id, generation_id)
);
CREATE TABLE chunks (
    generation INTEGER NOT NULL, n INTEGER NOT NULL, body BLOB NOT NULL, PRIMARY KEY (generation, n)
) WITHOUT ROWID;
CREATE TABLE batches (
    generation INTEGER NOT NULL, seq INTEGER NOT NULL, body BLOB NOT NULL, chunks INTEGER NOT NULL,
    last INTEGER NOT NULL, PRIMARY KEY (generation, seq)
) WITHOUT ROWID;
"""
_SCHEMA_2: Final = "CREATE TABLE settlements (id INTEGER PRIMARY KEY, ended BLOB NOT NULL, failure BLOB);"


class State:
    """Where a generation stands, as the spool has it."""

    OPEN: Final = "open"  # its application may write on
    ENDED: Final = "ended"  # its end was told, and is on the way
    DELIVERED: Final = "delivered"  # the broker has all of it
    FENCED: Final = "fenced"  # somebody else ended it; what was left is not wanted any more
    REFUSED: Final = "refused"  # the broker will not take it; what is left is kept until it is discarded


class Kept(msgspec.Struct, frozen=True):
    """A generation in the spool."""

    id: int
    session_id: str
    generation_id: str
    """As its application calls it."""
    current_id: str
    """As the broker knows it: another one after it was continued."""
    life: int
    """How often it was continued."""
    continues: str | None
    opening: dict[str, Any]
    next_seq: int
    """The seq of the next batch that is cut."""
    written: int
    """Chunks, over all processes."""
    end: bytes | None
    state: str
    error: str | None


_COLUMNS: Final = ", ".join(Kept.__struct_fields__)


class Unsettled(msgspec.Struct, frozen=True):
    """A generation that is over, and is to be settled."""

    id: int
    ended: Ended
    failure: dict[str, Any] | None
    """Why that was given up; readers are to be told."""


class Change(Protocol):
    """Makes a change of the spool durable, and returns what it returned."""

    async def __call__(self, make: Callable[[Spool], T], /) -> T: ...


class Spool:
    """The file, opened and locked. Raises SpoolInUse, SpoolCorrupt (which was set aside then) or SpoolError."""

    def __init__(self, path: Path, *, bytes_max: int) -> None:
        self.path = path
        self.bytes_max = bytes_max
        self._lock = _locked(path)
        try:
            self._connection = _opened(path)
            self.bytes = self._stored_bytes()
            """Of chunks and batches, as of the last transaction."""
        except BaseException:
            self._lock.release()
            raise
        self._more_bytes = 0
        """By which the transaction under way changes `bytes`."""

    def close(self) -> None:
        """Give it to another process."""
        try:
            self._connection.execute("PRAGMA incremental_vacuum")
        except sqlite3.Error:
            pass  # only tidying
        finally:
            self._connection.close()
            self._lock.release()

    def transact(self, changes: Iterable[Callable[[Spool], Any]]) -> list[Any]:
        """Make all these changes, or none. What each of them returned.

        Raises SpoolFull if the disk has no room, SpoolCorrupt if the file turns out to be damaged, else SpoolError.
        """
        self._more_bytes = 0
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            results = [change(self) for change in changes]
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._roll_back()
            _fail(self.path, error)
        except BaseException:
            self._roll_back()
            raise
        self.bytes += self._more_bytes
        return results

    def _roll_back(self) -> None:
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    # -- changes, to be made inside `transact` -----------------------------------------------------------------------

    def begin(self, session_id: str, generation_id: str, opening: dict[str, Any]) -> Kept:
        """The generation as it is, made if it is not here."""
        self._connection.execute(
            "INSERT OR IGNORE INTO generations (session_id, generation_id, current_id, opening) VALUES (?, ?, ?, ?)",
            (session_id, generation_id, generation_id, msgspec.json.encode(opening)),
        )
        [kept] = self._select("session_id = ? AND generation_id = ?", (session_id, generation_id))
        return kept

    def get(self, kept_id: int) -> Kept:
        [kept] = self._select("id = ?", (kept_id,))
        return kept

    def all_in(self, *states: str) -> list[Kept]:
        """Those in one of these states, oldest first."""
        return self._select(f"state IN ({', '.join('?' * len(states))})", states)

    def add(self, kept_id: int, encoded: bytes) -> None:
        """A chunk behind all others."""
        self._connection.execute(
            "INSERT INTO chunks SELECT id, written, ? FROM generations WHERE id = ?", (encoded, kept_id)
        )
        self._connection.execute("UPDATE generations SET written = written + 1 WHERE id = ?", (kept_id,))
        self._more_bytes += len(encoded)

    def end(self, kept_id: int, body: bytes) -> None:
        """Its application told its end, which is a finish with this body."""
        self._connection.execute(
            "UPDATE generations SET end = ?, state = ? WHERE id = ? AND state = ?",
            (body, State.ENDED, kept_id, State.OPEN),
        )

    def page(self, kept_id: int, after: int, chunks_max: int) -> list[tuple[int, bytes]]:
        """The next chunks that are in no batch, with their n."""
        rows = self._connection.execute(
            "SELECT n, body FROM chunks WHERE generation = ? AND n > ? ORDER BY n LIMIT ?", (kept_id, after, chunks_max)
        )
        return rows.fetchall()

    def seal(self, kept_id: int, seq: int, batch: Batch) -> None:
        """A batch was cut, from the oldest chunks."""
        oldest = "SELECT n FROM chunks WHERE generation = ? ORDER BY n LIMIT ?"
        gone = self._delete("chunks", f"n IN ({oldest}) AND generation = ?", (kept_id, batch.written, kept_id))
        self._connection.execute(
            "INSERT INTO batches VALUES (?, ?, ?, ?, ?)", (kept_id, seq, batch.body, batch.chunks, batch.last)
        )
        self._connection.execute("UPDATE generations SET next_seq = ? WHERE id = ?", (seq + 1, kept_id))
        self._more_bytes += len(batch.body) - gone

    def sealed(self, kept_id: int) -> list[tuple[int, Batch]]:
        """The batches that are not known to be acknowledged, with their seq."""
        rows = self._connection.execute(
            "SELECT seq, body, chunks, last FROM batches WHERE generation = ? ORDER BY seq", (kept_id,)
        )
        return [(seq, Batch(body, chunks, len(body), last=bool(last))) for seq, body, chunks, last in rows]

    def acknowledge(self, kept_id: int, seq: int) -> None:
        """Everything up to this batch is durable at the broker."""
        self._more_bytes -= self._delete("batches", "generation = ? AND seq <= ?", (kept_id, seq))

    def go_on_as(self, kept_id: int, new_id: str, continues: str | None, opening: dict[str, Any]) -> None:
        """What is left goes into another generation, from seq 0. What was acknowledged has to be gone before."""
        left = self.sealed(kept_id)
        self._delete("batches", "generation = ?", (kept_id,))
        self._connection.executemany(
            "INSERT INTO batches VALUES (?, ?, ?, ?, ?)",
            [(kept_id, seq, batch.body, batch.chunks, batch.last) for seq, (_, batch) in enumerate(left)],
        )
        self._connection.execute(
            "UPDATE generations SET current_id = ?, continues = ?, opening = ?, next_seq = ?, life = life + 1"
            " WHERE id = ?",
            (new_id, continues, msgspec.json.encode(opening), len(left), kept_id),
        )

    def open_with(self, kept_id: int, opening: dict[str, Any]) -> None:
        """It has to be opened in another way. Only while nothing of it was sent."""
        self._connection.execute(
            "UPDATE generations SET opening = ? WHERE id = ?", (msgspec.json.encode(opening), kept_id)
        )

    def conclude(self, kept_id: int, state: str, error: str | None = None, *, settles: Ended | None = None) -> None:
        """It is over. What a refused one has left is kept. With `settles`, that is still to be done."""
        if settles is not None:
            ended = msgspec.json.encode(settles)
            self._connection.execute("INSERT INTO settlements (ended) VALUES (?)", (ended,))
        self._connection.execute("UPDATE generations SET state = ?, error = ? WHERE id = ?", (state, error, kept_id))
        if state != State.REFUSED:
            self._empty(kept_id)
            newest = "SELECT id FROM generations WHERE state IN (?, ?) ORDER BY id DESC LIMIT -1 OFFSET ?"
            self._connection.execute(
                f"DELETE FROM generations WHERE id IN ({newest})",  # noqa: S608  a constant, above
                (State.DELIVERED, State.FENCED, DELIVERED_KEPT_MAX),
            )

    def unsettled(self, count_max: int) -> list[Unsettled]:
        """What is to be settled, oldest first."""
        rows = self._connection.execute("SELECT id, ended, failure FROM settlements ORDER BY id LIMIT ?", (count_max,))
        return [
            Unsettled(number, msgspec.json.decode(ended, type=Ended), failure and msgspec.json.decode(failure))
            for number, ended, failure in rows
        ]

    def give_up_settling(self, number: int, failure: dict[str, Any]) -> None:
        """It cannot be settled; what is left is to tell."""
        self._connection.execute(
            "UPDATE settlements SET failure = ? WHERE id = ?", (msgspec.json.encode(failure), number)
        )

    def settled(self, number: int) -> None:
        """Nothing is left to do for it."""
        self._connection.execute("DELETE FROM settlements WHERE id = ?", (number,))

    def discard(self, kept_id: int) -> None:
        """Forget a generation with all that is left of it."""
        self._empty(kept_id)
        self._connection.execute("DELETE FROM generations WHERE id = ?", (kept_id,))

    def _empty(self, kept_id: int) -> None:
        for table in ("chunks", "batches"):
            self._more_bytes -= self._delete(table, "generation = ?", (kept_id,))

    def _delete(self, table: str, where: str, values: Sequence[Any]) -> int:
        """How many bytes of bodies are gone."""
        [[count]] = self._connection.execute(
            f"SELECT coalesce(sum(length(body)), 0) FROM {table} WHERE {where}",  # noqa: S608  our own words
            values,
        )
        self._connection.execute(f"DELETE FROM {table} WHERE {where}", values)  # noqa: S608  as above
        return int(count)

    def _select(self, where: str, values: Sequence[Any]) -> list[Kept]:
        rows = self._connection.execute(
            f"SELECT {_COLUMNS} FROM generations WHERE {where} ORDER BY id",  # noqa: S608  our own words
            values,
        )
        found = [dict(zip(Kept.__struct_fields__, row, strict=True)) for row in rows]
        return [Kept(**{**row, "opening": msgspec.json.decode(row["opening"])}) for row in found]

    def _stored_bytes(self) -> int:
        bodies = "SELECT length(body) AS bytes FROM chunks UNION ALL SELECT length(body) FROM batches"
        try:
            [[count]] = self._connection.execute(f"SELECT coalesce(sum(bytes), 0) FROM ({bodies})")  # noqa: S608  above
        except sqlite3.Error as error:
            self._connection.close()
            _fail(self.path, error)
        return int(count)


def _locked(path: Path) -> FileLock:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(path.with_name(f"{path.name}.lock"))
    except LockTaken as taken:
        raise SpoolInUse(f"another process has the spool {path} open", path=str(path)) from taken
    except OSError as error:
        raise SpoolError(f"the spool {path} cannot be opened: {error}", path=str(path)) from error


def _opened(path: Path) -> sqlite3.Connection:
    connection = None
    try:
        # Used from any thread of the pool, by one at a time: the outbox sees to that.
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        _set_up(path, connection)
    except BaseException as error:
        if connection is not None:
            connection.close()
        if isinstance(error, sqlite3.Error):
            _fail(path, error, may_move=True)
        raise
    return connection


def _set_up(path: Path, connection: sqlite3.Connection) -> None:
    [[application_id]] = connection.execute("PRAGMA application_id")
    [[version]] = connection.execute("PRAGMA user_version")
    [[tables]] = connection.execute("SELECT count(*) FROM sqlite_schema")
    if tables and (application_id != APPLICATION_ID or version > VERSION):
        raise SpoolError(f"{path} is no spool of this version ({version}), and was left alone", path=str(path))
    [[found]] = connection.execute("PRAGMA quick_check(1)")  # before anything could write to a damaged file
    if found != "ok":
        raise sqlite3.DatabaseError(found)
    for pragma in ("auto_vacuum = INCREMENTAL", "journal_mode = WAL", "synchronous = FULL", "fullfsync = ON"):
        connection.execute(f"PRAGMA {pragma}")
    if not tables or version < VERSION:
        schema = _SCHEMA_2 if tables else _SCHEMA + _SCHEMA_2
        connection.executescript(
            f"BEGIN; {schema} PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {VERSION}; COMMIT;"
        )


_CORRUPT: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_NO_ROOM: Final = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE})


def _fail(path: Path, error: sqlite3.Error, *, may_move: bool = False) -> NoReturn:
    """Raise what it means. `error` without a code is what a check of ours found."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)
    if code in _CORRUPT or code & 0xFF in _CORRUPT:
        where = _set_aside(path) if may_move else None
        lies = f"lies in {where} now" if where else "is set aside when it is opened again"
        raise SpoolCorrupt(f"the spool {path} is damaged ({error}); it {lies}", set_aside=where) from error
    if code in _NO_ROOM or code & 0xFF == sqlite3.SQLITE_FULL:
        raise SpoolFull(f"there is no room on the disk of the spool {path} ({error})", path=str(path)) from error
    raise SpoolError(f"the spool {path} cannot be used: {error}", path=str(path)) from error


def _set_aside(path: Path) -> str:
    """Move the file and what belongs to it. Windows moves no open file; nobody has this one open any more."""
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    target = path.with_name(f"{path.name}.corrupt-{stamp}")
    number = 0
    while target.exists():
        number += 1
        target = path.with_name(f"{path.name}.corrupt-{stamp}-{number}")
    for suffix in _SIDE_FILES:
        side = path.with_name(path.name + suffix)
        if side.exists():
            side.rename(target.with_name(target.name + suffix))
    return str(target)
