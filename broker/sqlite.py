"""SQLite as the store uses it: how the file is opened, what its errors mean, who moves its WAL.

It runs in WAL mode with synchronous=FULL: a transaction is one fsync of the WAL. SQLite's automatic checkpoints
are off, because they cost the transaction that runs into them 10 ms and more; `WalMover` does them beside.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from io import FileIO
from pathlib import Path
from typing import Final

import msgspec

from broker.errors import Damaged, EngineStopped, NewerFormat, StartError
from broker.limits import KIB, MIB
from broker.priority import stand_back

Connect = Callable[[Path], sqlite3.Connection]

BUSY_TIMEOUT_S: Final = 2.0
"""How long a transaction waits for another program at the same file (a backup, a shell)."""
WAL_BYTES: Final = 32 * MIB
"""Written to a WAL before it is moved: pages that change again meanwhile are moved once. An overwritten WAL is twice as
fast as a growing one, so it is not cut after each move."""
WAL_PIECE_BYTES: Final = 256 * KIB
"""Of a WAL, brought to the disk at once: what a commit of the journal waits behind, well below a millisecond."""
WAL_FILE_CUT: Final = 4
"""A WAL file that grew beyond this many times WAL_BYTES (one large checkpoint) is cut once it was moved."""

_DEFINITE: Final = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_TOOBIG})
_NOT_OURS: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


class Form(msgspec.Struct, frozen=True):
    """What a file is, and how it is made.

    `application_id` tells ours from others; `version` is raised when an older program must not touch the file.
    """

    application_id: int
    version: int
    schema: tuple[str, ...]


def connect(path: Path) -> sqlite3.Connection:
    """A connection in autocommit mode that may be used from one thread at a time, whichever it is."""
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    try:
        _configure(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _configure(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA wal_autocheckpoint=0")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA fullfsync=ON")  # macOS: fsync alone leaves data in the drive's cache
    connection.execute("PRAGMA checkpoint_fullfsync=ON")
    if sys.version_info >= (3, 12):
        # Closing would move the WAL, behind a failed fsync too. Python 3.11 cannot tell SQLite to leave it.
        connection.setconfig(sqlite3.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, True)  # noqa: FBT003 - it takes no keyword


def prepare(
    connection: sqlite3.Connection, form: Form, name: str, fill: Callable[[], object], page_bytes: int = 4096
) -> None:
    """Make an empty file one of `form`, `fill` its first rows in the same transaction; or check that it is one.

    Raises NewerFormat, or Damaged for a file of something else.
    """
    connection.execute(f"PRAGMA page_size={page_bytes}")  # counts for a new file only
    connection.execute("PRAGMA journal_mode=WAL")
    if not connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
        with transaction(connection):
            for statement in form.schema:
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id={form.application_id}")
            connection.execute(f"PRAGMA user_version={form.version}")
            fill()
        return
    check_form(connection, form, name)


def check_form(connection: sqlite3.Connection, form: Form, name: str) -> None:
    """Raise NewerFormat, or Damaged for a file of something else, unless the file is one of `form`."""
    if connection.execute("PRAGMA application_id").fetchone()[0] != form.application_id:
        raise Damaged(f"{name} is not a file of Streamfold", "name a folder that holds nothing else")
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > form.version:
        raise NewerFormat(
            f"{name} has format {version}; this version knows formats up to {form.version}",
            "start the version that wrote it, or a newer one",
        )


@contextmanager
def opening(path: Path) -> Iterator[None]:
    """Turns SQLite's errors while a file is opened into StartError."""
    try:
        yield
    except sqlite3.Error as error:
        if _code(error) in _NOT_OURS:
            raise Damaged(f"{path.name}: {error}", "restore the folder from a backup") from error
        raise StartError(f"{path.name}: {error}", f"check the disk and the permissions of {path.parent}") from error


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """One write transaction: all of it, or nothing and the error."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def is_definite(error: Exception) -> bool:
    """Whether a write transaction that failed like this was rolled back for certain.

    Everything else has an unknown fate, first of all a failed fsync: the kernel may have dropped the pages, and then a
    second fsync would succeed over nothing. So there is no second one.
    """
    return isinstance(error, sqlite3.Error) and _code(error) in _DEFINITE


def _code(error: sqlite3.Error) -> int:
    """The primary result code; errors that the Python module raises by itself have none."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF


class WalPieces:
    """Brings a WAL to the disk while a long transaction writes it.

    All at once, when the transaction ends, it would be megabytes that other writes to the disk wait behind: the
    journal's commits. Linux only, where such a sync takes no more than the pieces themselves.
    """

    def __init__(self, path: Path) -> None:
        # SQLite locks the file and its index, never the WAL: to close a descriptor of that gives up no lock.
        self._wal = FileIO(_wal_of(path), "r+")
        self._unsynced_bytes = 0

    def wrote(self, size_bytes: int) -> None:
        """Tell what SQLite was given. Raises OSError when a sync fails: no later one says more about it."""
        self._unsynced_bytes += size_bytes
        if self._unsynced_bytes >= WAL_PIECE_BYTES and sys.platform == "linux":
            self._unsynced_bytes = 0
            os.fdatasync(self._wal.fileno())

    def close(self) -> None:
        """Idempotent."""
        self._wal.close()


def _wal_of(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


class Gate:
    """A lock that two threads take in turns: whoever waits gets it next, however soon the other wants it again."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queue = threading.Lock()  # held while waiting for _lock

    def __enter__(self) -> None:
        with self._queue:
            self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class WalMover:
    """Moves a WAL into its file, in a thread of its own, and so bounds it.

    First without holding anybody up (PASSIVE), and once more for what came meanwhile; then, with next to nothing left,
    while holding `gate`, so that the writer begins the WAL anew. A reader in an old snapshot can prevent that: then it
    is tried after the next write.
    """

    def __init__(self, path: Path, connect: Connect = connect, wal_bytes: int = WAL_BYTES) -> None:
        self.gate = Gate()
        """Held by the writer around each transaction."""
        self._path = path
        self._connect = connect
        self._wal_bytes = wal_bytes
        self._written_bytes = 0  # since the WAL last began anew; guarded by `gate`
        self._error: Exception | None = None
        self._wanted = threading.Event()
        self._closing = False
        # A daemon, so that a program which forgot to close still ends; nothing is lost: a WAL is durable by itself.
        self._thread = threading.Thread(target=self._run, name=f"wal of {path.name}", daemon=True)
        self._thread.start()

    def wrote(self, size_bytes: int) -> None:
        """Tell what a transaction wrote; `gate` is held. Raises EngineStopped when moving has failed."""
        if self._error is not None:
            raise EngineStopped(f"the WAL of {self._path.name} cannot be moved: {self._error}") from self._error
        self._written_bytes += size_bytes
        if self._written_bytes >= self._wal_bytes:
            self._wanted.set()

    def hurry(self) -> None:
        """Move now: the disk is full, and a WAL that begins anew needs no room."""
        self._wanted.set()

    def close(self) -> None:
        """End the thread, with the WAL where it is: the next start reads it. Idempotent."""
        self._closing = True
        self._wanted.set()
        self._thread.join()

    def _run(self) -> None:
        stand_back()
        try:
            with closing(self._connect(self._path)) as connection:
                while not self._closing:
                    self._wanted.wait()
                    self._wanted.clear()
                    if not self._closing:  # looked at after each clear: `close` sets it first, so it is never missed
                        self._move(connection)
        except Exception as error:  # noqa: BLE001 - whatever it is, the writer tells it: the WAL has no bound any more
            self._error = error

    def _move(self, connection: sqlite3.Connection) -> None:
        """Move what is there; what fails for certain (disk full, busy) is tried again after the next write."""
        try:
            for _ in range(2):
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            with self.gate:
                self._wanted.clear()
                self._restart(connection)
        except sqlite3.Error as error:
            if not is_definite(error):
                raise

    def _restart(self, connection: sqlite3.Connection) -> None:
        mode = "TRUNCATE" if _wal_of(self._path).stat().st_size > WAL_FILE_CUT * self._wal_bytes else "RESTART"
        busy, _, _ = connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
        if not busy:
            self._written_bytes = 0
