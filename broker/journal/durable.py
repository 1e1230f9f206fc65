"""Writes that are on the disk when they return."""

from __future__ import annotations

import errno
import mmap
import os
import sys
from collections.abc import Callable
from io import FileIO
from typing import Final

from broker.limits import KIB

if sys.platform != "win32":
    import fcntl

Write = Callable[[FileIO, bytes, int], None]
"""Writes bytes at a place of a file, durably. Raises OSError."""

BLOCK_BYTES: Final = 4096
"""What a direct write begins and ends at: a multiple of what any disk asks for, but for a few."""

_BUFFER_BYTES: Final = 256 * KIB
_NOT_KNOWN: Final = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})


def write_durably(file: FileIO, data: bytes, at: int) -> None:
    """All of `data` at `at`, on the disk when this returns. One system call where there is one that does both.

    One matters: between two the interpreter may belong to another thread for a while.
    """
    if sys.platform == "linux":
        try:
            written = os.pwritev(file.fileno(), [data], at, os.RWF_DSYNC)
        except OSError as error:
            if error.errno not in _NOT_KNOWN:
                raise
            written = 0
        if written == len(data):
            return
        data, at = data[written:], at + written
    file.seek(at)
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]
    sync(file)


def sync(file: FileIO) -> None:
    """What was written to `file` is on the disk when this returns."""
    if sys.platform == "darwin":
        fcntl.fcntl(file.fileno(), fcntl.F_FULLFSYNC)  # fsync alone leaves data in the drive's cache
    elif sys.platform == "win32":
        os.fsync(file.fileno())
    else:
        os.fdatasync(file.fileno())


class DirectWrite:
    """`write_durably`, past the system's cache where that can be: for writes that follow each other in one file.

    Into blocks that are there already such a write is the whole work. With the cache in between the file's own facts,
    its time of change at least, are written as well: twice the work, and half as long again to wait.

    Blocks are written whole: what lies before `at` in its block is written again as it is, and what lies behind the end
    in the last block becomes zeros. One file at a time, one thread at a time.
    """

    def __init__(self) -> None:
        self._file: FileIO | None = None
        self._is_direct = False
        self._buffer = memoryview(mmap.mmap(-1, _BUFFER_BYTES))  # begins at a page, as direct writes must
        self._next = -1
        """The end of the last write; what its last block has before that lies at the beginning of the buffer."""

    def __call__(self, file: FileIO, data: bytes, at: int) -> None:
        """As `write_durably`."""
        if file is not self._file:
            self._file, self._is_direct, self._next = file, _set_direct(file, on=True), -1
        if not (self._is_direct and self._write(file, data, at)):
            write_durably(file, data, at)

    def _write(self, file: FileIO, data: bytes, at: int) -> bool:
        """False when this file, or this disk, is not for direct writes after all."""
        skipped = at % BLOCK_BYTES
        end = skipped + len(data)
        size = -(-end // BLOCK_BYTES) * BLOCK_BYTES
        known, self._next = self._next, -1  # until this has worked nobody knows what is there
        buffer = self._buffer
        if size > len(buffer):
            buffer = memoryview(mmap.mmap(-1, size))
            buffer[:skipped] = self._buffer[:skipped]
        try:
            if skipped and at != known:
                os.preadv(file.fileno(), [buffer[:BLOCK_BYTES]], at - skipped)
            buffer[skipped:end] = data
            buffer[end:size] = bytes(size - end)
            written = os.pwritev(file.fileno(), [buffer[:size]], at - skipped, os.RWF_DSYNC)
        except OSError as error:
            if error.errno not in _NOT_KNOWN:
                raise
            written = 0
        if written != size:
            self._is_direct = _set_direct(file, on=False)
            return False
        kept = end % BLOCK_BYTES
        self._buffer[:kept] = buffer[end - kept : end]
        self._next = at + len(data)
        return True


def _set_direct(file: FileIO, *, on: bool) -> bool:
    """Whether writes to the file go past the cache now."""
    if sys.platform != "linux":
        return False
    flags = fcntl.fcntl(file.fileno(), fcntl.F_GETFL)
    try:
        fcntl.fcntl(file.fileno(), fcntl.F_SETFL, flags | os.O_DIRECT if on else flags & ~os.O_DIRECT)
    except OSError:
        return False  # of a file system that has no such thing
    return on
