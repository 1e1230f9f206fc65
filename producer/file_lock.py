"""A lock on a file that goes with its process, however that ends.

POSIX has `flock`, Windows locks a range of bytes; both are let go by the operating system when the process dies, so a
killed process never leaves a stale lock. The file itself stays: removing it would let two processes lock two files of
one name. On network file systems neither is reliable; a spool belongs on a local disk.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

__all__ = ["FileLock", "LockTaken"]


class LockTaken(Exception):
    """Another process, or another part of this one, has the lock."""


class FileLock:
    """Held from `__init__` until `release`. Raises LockTaken, and OSError if the file cannot be made."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            _lock(self._file)
        except OSError as error:
            os.close(self._file)
            raise LockTaken(str(path)) from error

    def release(self) -> None:
        os.close(self._file)


if sys.platform == "win32":
    import msvcrt

    def _lock(file: int) -> None:
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)  # the first byte; it need not exist

else:
    import fcntl

    def _lock(file: int) -> None:
        # flock, not lockf: the latter is lost when any other descriptor of the file in this process is closed.
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
