"""The journal's files: segments of a fixed size, written one after the other and used again.

    journal/0000000000000001.log    frames of the commits from that index on (hexadecimal)
    journal/00000000000003e8.log    the newest; frames are added here
    journal/….spare                 the next to be written over (`broker.journal.spares`)

A file keeps the length and the blocks that it was made with, so that a commit changes nothing but data: one write that
returns when the disk has it (RWF_DSYNC), or a write and one fdatasync where the system knows no such write.
"""

from __future__ import annotations

import errno
import logging
import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import FileIO
from itertools import zip_longest
from pathlib import Path
from typing import Final

import msgspec

from broker.data_dir import make_folder, sync_folder
from broker.errors import Damaged, EngineStopped, Unavailable
from broker.journal import Commit
from broker.journal.durable import BLOCK_BYTES, DirectWrite, Write, sync
from broker.journal.frame import (
    FRAME_BYTES,
    HEADER_BYTES,
    RESTORE,
    Frame,
    Header,
    commit_of,
    decode_header,
    encode_frame,
    encode_header,
    frame_at,
    frames_beyond,
)
from broker.journal.spares import Spares
from broker.limits import SEGMENT_BYTES

log = logging.getLogger("streamfold.journal")

_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Segment(msgspec.Struct):
    """A segment file. Its entries are those from `header.first_index` up to and excluding `next_index`."""

    path: Path
    header: Header
    next_index: int = 0
    end: int = HEADER_BYTES
    """Where the next frame goes."""


class Segments:
    """The segments in `folder`. One thread at a time."""

    def __init__(
        self, folder: Path, uuid: bytes, *, segment_bytes: int = SEGMENT_BYTES, write: Write | None = None
    ) -> None:
        self._folder = folder
        self._uuid = uuid
        self._segment_bytes = segment_bytes
        self._write = write or DirectWrite()
        self._spares = Spares(folder, self._write)
        self._segments: list[Segment] = []  # by index; the last is the one that is written
        self._file: FileIO | None = None  # of the last
        self._file_bytes = 0
        self._is_next_foreseen = False  # whether the one after the last was asked for
        self._time_ms = 0  # of the newest commit

    # -- opening -----------------------------------------------------------------------------------------------------

    def open(self, applied_index: int) -> tuple[int, int]:
        """Read what is there beyond `applied_index`; the highest index ever given, and the time of the last commit.

        Raises Damaged, NewerFormat and OSError. Frames of which only a part reached the disk were never acknowledged:
        what lies behind the last whole one is written over.
        """
        make_folder(self._folder)
        last_index = self.look(applied_index)
        if self._segments and self._current.next_index == last_index + 1:
            self._open_current()
        else:
            self._add(last_index + 1, 0)
        return last_index, self._time_ms

    def look(self, applied_index: int) -> int:
        """What `open` finds, without a change to anything; the highest index ever given. `commits` may follow.

        Raises Damaged, NewerFormat and OSError.
        """
        self._segments = [self._segment(path) for path in sorted(self._folder.glob("*.log"))]
        self._check_begin(applied_index)
        for segment, after in zip_longest(self._segments, self._segments[1:]):
            self._scan(segment, after, applied_index)
        return max(applied_index, self._current.next_index - 1) if self._segments else applied_index

    def _segment(self, path: Path) -> Segment:
        with mapped(path) as data:
            header = decode_header(data, path.name)
        if header.uuid != self._uuid:
            raise Damaged(f"{path.name} belongs to another store", "restore the folder from a backup")
        if path != self._path(header.first_index):
            raise Damaged(f"{path.name} begins at index {header.first_index}", RESTORE)
        return Segment(path, header, header.first_index)

    def _check_begin(self, applied_index: int) -> None:
        if self._segments and self._segments[0].header.first_index > applied_index + 1:
            raise Damaged(
                f"the journal begins at index {self._segments[0].header.first_index}, the store ends at index"
                f" {applied_index}",
                "restore the folder from a backup",
            )

    def _scan(self, segment: Segment, after: Segment | None, applied_index: int) -> None:
        """Find the end of a segment. Raises Damaged where something is missing in it, or between it and the next."""
        if after is not None and after.header.first_index <= applied_index + 1:
            segment.next_index = after.header.first_index  # the store has all of it, whatever it looks like
            return
        closed = False
        with mapped(segment.path) as data:
            for frame in _frames(data, segment.header, applied_index):
                closed = not frame.count
                self._time_ms = frame.time_ms
                if not closed:
                    segment.next_index, segment.end = frame.next_index, frame.end
            if after is not None:
                missing = after.header.first_index != segment.next_index
            else:
                missing = not closed and any(frames_beyond(data, segment.end + 1, segment.header.salt))
        if missing:
            raise Damaged(f"{segment.path.name}: the commit at index {segment.next_index} is damaged", RESTORE)

    def commits(self, index: int) -> Iterator[Commit]:
        """What there is from `index` on, in order; the first commit may be a part of one. One commit in memory."""
        for segment in list(self._segments):
            if segment.next_index <= index:
                continue
            with mapped(segment.path) as data:
                for frame in _frames(data, segment.header, index - 1):
                    if frame.next_index > index and frame.count:
                        yield _from(index, commit_of(data, frame))

    # -- writing -----------------------------------------------------------------------------------------------------

    def append(self, first_index: int, time_ms: int, encoded: Sequence[bytes]) -> None:
        """Make a commit durable. Raises Unavailable when there is no room for it, and then nothing of it is there.

        Raises EngineStopped when its fate is unknown: nothing may be written any more.
        """
        frame = encode_frame(self._current.header.salt, first_index, time_ms, encoded)
        if self._current.end + len(frame) + FRAME_BYTES > self._file_bytes:
            self._add_or_refuse(first_index, len(frame))
            frame = encode_frame(self._current.header.salt, first_index, time_ms, encoded)
        try:
            self._write(self._held, frame, self._current.end)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise EngineStopped(f"the fate of a commit is unknown: {error}") from error
            self._erase(error)
            raise Unavailable(f"the journal cannot be written: {error}") from error
        self._current.end += len(frame)
        self._current.next_index = first_index + len(encoded)
        self._time_ms = time_ms
        self._foresee()

    def _foresee(self) -> None:
        """Half of the segment is left to make the next one in: 8 MiB take tens of milliseconds."""
        if not self._is_next_foreseen and self._current.end > self._file_bytes // 2:
            self._is_next_foreseen = True
            self._spares.foresee(_whole_blocks(self._segment_bytes))

    def _erase(self, cause: OSError) -> None:
        """What was not acknowledged must not be found by the next start, nor by a later one."""
        try:
            self._write(self._held, bytes(FRAME_BYTES), self._current.end)
        except OSError as error:
            raise EngineStopped(f"the fate of a commit is unknown: {cause}, then {error}") from error

    def trim(self, index: int) -> None:
        """Entries up to and including `index` are not needed any more. Raises nothing: what stays is tried again."""
        while len(self._segments) > 1 and self._segments[0].next_index <= index + 1:
            path = self._segments[0].path
            try:
                self._spares.keep(path)
            except OSError as error:
                log.warning("%s cannot be let go: %s", path.name, error)
                return
            del self._segments[0]

    def close(self) -> None:
        """Say that nothing follows, so that the next start need not look for it. Idempotent."""
        if self._file is None:
            return
        try:
            end = encode_frame(self._current.header.salt, self._current.next_index, self._time_ms, ())
            self._write(self._file, end, self._current.end)
        except OSError as error:
            log.warning("the journal is not marked as closed: %s", error)
        self.abandon()

    def abandon(self) -> None:
        """Let go of the file as it is. Idempotent."""
        self._spares.settle()
        if self._file is not None:
            self._file.close()
            self._file = None

    # -- files -------------------------------------------------------------------------------------------------------

    @property
    def _current(self) -> Segment:
        return self._segments[-1]

    @property
    def _held(self) -> FileIO:
        if self._file is None:
            raise RuntimeError("the journal is not open")
        return self._file

    def _path(self, first_index: int) -> Path:
        return self._folder / f"{first_index:016x}.log"

    def _open_current(self) -> None:
        self._file = FileIO(self._current.path, "r+")
        self._file_bytes = os.fstat(self._file.fileno()).st_size
        sync(self._file)  # a process that was killed may have left a commit that only the system's memory has

    def _add_or_refuse(self, first_index: int, frame_bytes: int) -> None:
        try:
            self._add(first_index, frame_bytes)
        except OSError as error:
            if error.errno in _NO_ROOM:
                raise Unavailable(f"the journal cannot grow: {error}") from error
            raise EngineStopped(f"the journal cannot grow: {error}") from error

    def _add(self, first_index: int, frame_bytes: int) -> None:
        """Begin a segment that has room for a frame. Raises OSError; then the one before stays the last."""
        header = Header(self._uuid, int.from_bytes(os.urandom(4)), first_index)
        size = max(self._segment_bytes, HEADER_BYTES + frame_bytes + FRAME_BYTES)
        spare = self._spares.take(_whole_blocks(size))
        with FileIO(spare, "r+") as file:
            self._write(file, encode_header(header), 0)
            size = os.fstat(file.fileno()).st_size
        path = self._path(first_index)
        if self._segments and self._current.path == path:  # it is empty, and too small for the frame
            self._segments.pop()
        self.abandon()
        try:
            spare.replace(path)
            sync_folder(self._folder)
            self._file, self._file_bytes = FileIO(path, "r+"), size
        except OSError as error:
            raise EngineStopped(f"the journal cannot go on in {path.name}: {error}") from error
        self._segments.append(Segment(path, header, first_index))
        self._is_next_foreseen = False


def _frames(data: memoryview, header: Header, applied_index: int) -> Iterator[Frame]:
    """The frames of a segment up to the first that is not whole, or that says that nothing follows.

    What the store has applied is passed over without a look at its checksum.
    """
    at, index = HEADER_BYTES, header.first_index
    while True:
        frame = frame_at(data, at, header.salt, verified=False)
        if frame is None or frame.first_index != index:
            return
        if frame.next_index > applied_index + 1 or not frame.count:
            frame = frame_at(data, at, header.salt)
            if frame is None:
                return
        yield frame
        if not frame.count:
            return
        at, index = frame.end, frame.next_index


def _whole_blocks(size_bytes: int) -> int:
    """A write that ends in the last block of a file stays in it."""
    return -(-size_bytes // BLOCK_BYTES) * BLOCK_BYTES


def _from(index: int, commit: Commit) -> Commit:
    skipped = index - commit.first_index
    return Commit(index, commit.time_ms, commit.entries[skipped:]) if skipped > 0 else commit


@contextmanager
def mapped(path: Path) -> Iterator[memoryview]:
    """The bytes of a file, without having all of them in memory."""
    with FileIO(path) as file:
        if not os.fstat(file.fileno()).st_size:  # nothing can be mapped
            yield memoryview(b"")
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as data:
            yield data
