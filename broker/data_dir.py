"""The data folder: who has it, and that its files belong together.

    lock             held by an exclusive lock of the operating system for as long as a process has the folder
    store.sqlite     what has been applied (`broker.store.sqlite`); makes the uuid
    journal/         what is durable beyond it (`broker.journal.segments`); carries the same uuid
    signing-key.pem  what webhooks are signed with (`broker.signing`); only its owner may read it
    snapshot.sqlite  on the way to or from the place of a cluster's snapshots (`broker.snapshot`)
    begun-with       the name of the snapshot that the store was begun with, if it was
    quarantined      why the store is not to be used any more: the next to take the folder sets it aside
    set-aside-TIME/  a store that was

The store opens first and takes the lock; the journal opens behind it and closes before it. A folder with a store and no
journal is a restored backup: the journal begins empty, with the store's uuid. The other way round is damage.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from pathlib import Path
from typing import IO

from broker.errors import DataDirInUse, StartError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_log = logging.getLogger("streamfold.data")


class DataDir:
    """A data folder. `take` and `release` are the store's; `look` is for those who only look."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: IO[str] | None = None
        self._uuid: bytes | None = None

    @property
    def store_path(self) -> Path:
        return self.path / "store.sqlite"

    @property
    def journal_path(self) -> Path:
        return self.path / "journal"

    @property
    def snapshot_path(self) -> Path:
        return self.path / "snapshot.sqlite"

    @property
    def signing_key_path(self) -> Path:
        return self.path / "signing-key.pem"

    @property
    def uuid(self) -> bytes:
        """What the files of this folder share. Raises RuntimeError before the store has opened: a bug of the caller."""
        if self._uuid is None:
            raise RuntimeError(f"the store of {self.path} is not open")
        return self._uuid

    @uuid.setter
    def uuid(self, uuid: bytes) -> None:
        self._uuid = uuid

    def take(self) -> None:
        """Make the folder where it is missing, and lock it.

        Raises DataDirInUse when another process (or another store of this one) has it, StartError when it cannot be
        made or written. The lock ends with the process, however that ends: there is no stale lock to remove.
        """
        try:
            make_folder(self.path)
            lock = (self.path / "lock").open("a", encoding="ascii")
        except OSError as error:
            raise StartError(f"{self.path}: {error.strerror}", "name a folder that this user can write") from error
        self._hold(lock)
        self._set_aside()

    def look(self) -> None:
        """Lock the folder and change nothing in it, so that no broker begins while somebody looks at its files.

        Raises DataDirInUse, and StartError when it cannot be read. A folder that has no lock yet, such as a copy, stays
        without one.
        """
        try:
            lock = (self.path / "lock").open(encoding="ascii")
        except FileNotFoundError:
            return
        except OSError as error:
            raise StartError(f"{self.path}: {error.strerror}", "name a folder that this user can read") from error
        self._hold(lock)

    def _hold(self, lock: IO[str]) -> None:
        try:
            _lock(lock)
        except OSError as error:
            lock.close()
            raise DataDirInUse(
                f"another process has the data folder {self.path}",
                "run one broker process for each data folder: one worker, or another --data-dir",
            ) from error
        self._lock = lock

    def quarantine(self, reason: str, blames_snapshot: bool = True) -> None:  # noqa: FBT001, FBT002 -- as `Quarantine`
        """The store is not what it should be: the next one to take the folder is to begin without it.

        And without the snapshot that the store was begun with, if that is to blame.
        """
        if not blames_snapshot:
            self._begun_with_path.unlink(missing_ok=True)
        _log.critical("the store in %s is set aside at the next start: %s", self.path, reason)
        self._quarantine_path.write_text(f"{reason}\n", encoding="utf-8")

    def begin_with(self, snapshot: str) -> None:
        """The store is about to be begun with this snapshot."""
        self._begun_with_path.write_text(f"{snapshot}\n", encoding="utf-8")

    @property
    def begun_with(self) -> str:
        """The snapshot that the store was begun with; "" when it was not. Raises OSError."""
        path = self._begun_with_path
        return path.read_text(encoding="utf-8", errors="replace").strip() if path.exists() else ""

    def distrusted_snapshots(self) -> set[str]:
        """Those that a store was begun with which was set aside later, and which are to blame for it."""
        return {path.read_text(encoding="utf-8").strip() for path in self.path.glob("set-aside-*/begun-with")}

    @property
    def _begun_with_path(self) -> Path:
        return self.path / "begun-with"

    @property
    def _quarantine_path(self) -> Path:
        return self.path / "quarantined"

    @property
    def quarantine_reason(self) -> str:
        """Why the store is not to be used any more; "" when nobody said so. Raises OSError."""
        if not self._quarantine_path.exists():
            return ""
        return self._quarantine_path.read_text(encoding="utf-8", errors="replace").strip() or "for no reason given"

    def _set_aside(self) -> None:
        """Keep a store that was quarantined for whoever wants to know, where nobody opens it."""
        if not self._quarantine_path.exists():
            return
        aside = self.path / f"set-aside-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
        aside.mkdir(exist_ok=True)
        for path in self.path.glob(f"{self.store_path.name}*"):
            path.replace(aside / path.name)
        if self._begun_with_path.exists():
            self._begun_with_path.replace(aside / self._begun_with_path.name)
        self._quarantine_path.replace(aside / "why")  # last, so that a crash before this leaves it to the next start
        _log.critical("the store was set aside to %s, and is made anew from the log", aside)

    def release(self) -> None:
        """Give the folder free. Idempotent."""
        self._uuid = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def make_folder(path: Path) -> None:
    """Make `path` where it is missing, and make it survive power loss. Raises OSError."""
    if path.is_dir():
        return
    path.mkdir(parents=True)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """The names in the folder survive power loss when this returns. Raises OSError."""
    if sys.platform == "win32":
        return  # it keeps them by itself
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _lock(lock: IO[str]) -> None:
    if sys.platform == "win32":
        msvcrt.locking(lock.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
