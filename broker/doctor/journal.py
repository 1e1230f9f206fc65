"""The segments of a journal, frame by frame.

A start passes over what the store has and stops at the first thing that is wrong. Here everything is looked at, and the
look goes on behind what is damaged: the next whole frame tells which entries are missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from broker.core.entry import UnknownFormat, decode
from broker.doctor.finding import Finding, Weight, shown
from broker.errors import Damaged, NewerFormat
from broker.journal import Commit
from broker.journal.frame import (
    HEADER_BYTES,
    Frame,
    Header,
    commit_of,
    decode_header,
    encoded_entries,
    frame_at,
    frames_beyond,
    frames_claimed,
)
from broker.journal.segments import mapped
from broker.limits import SEGMENT_BYTES

PATHS_MAX: Final = 10_000
"""Paths that are remembered while frames are read."""


class Hole(msgspec.Struct, frozen=True):
    """Bytes [at, end) of a segment in which no whole frame is, and the entries [first_index, next_index) in them.

    The last one of a segment has no frame behind it: what its entries are is not known, nor whether there were any.
    """

    at: int
    end: int
    first_index: int
    next_index: int | None


class SegmentFile(msgspec.Struct):
    """A segment as it lies there. Its name says the index of its first entry, also where its header does not."""

    path: Path
    first_index: int
    size: int
    header: Header | None = None
    finding: Finding | None = None  # why there is no header


class Examined(msgspec.Struct):
    """What the journal is like.

    Every entry beyond the store's index and before `good_index` is there and whole. `next_index` is the one behind the
    newest whole entry, wherever that is.
    """

    good_index: int
    next_index: int
    commits: int = 0
    segments: int = 0
    spares: int = 0
    time_ms: int = 0
    is_closed: bool = False
    findings: list[Finding] = msgspec.field(default_factory=list)


def examine(
    folder: Path, uuid: bytes | None, applied_index: int | None, *, segment_bytes: int = SEGMENT_BYTES
) -> Examined:
    """All of the journal in `folder`, behind a store that has applied everything up to `applied_index`.

    `uuid` is the store's. Both are None when that cannot be told. Raises OSError.
    """
    segments = _segments(folder, uuid)
    if applied_index is None:
        applied_index = segments[0].first_index - 1 if segments else 0
    return _Examination(folder, segments, applied_index, segment_bytes).examined()


def good_commits(folder: Path, applied_index: int) -> Iterator[Commit]:
    """The commits beyond `applied_index` up to the first that is missing or not whole; the first may be a part of one.

    Raises OSError.
    """
    index = applied_index + 1
    for segment in _segments(folder, None):
        if segment.header is None:
            continue
        with mapped(segment.path) as data:
            for part in _walk(data, segment.header):
                if isinstance(part, Hole) or part.next_index <= index:
                    continue
                if part.first_index > index:
                    return
                try:
                    commit = commit_of(data, part)
                except (Damaged, NewerFormat):
                    return
                yield Commit(index, commit.time_ms, commit.entries[index - commit.first_index :])
                index = part.next_index


class _Examination:
    """One walk through all segments."""

    def __init__(self, folder: Path, segments: list[SegmentFile], applied_index: int, segment_bytes: int) -> None:
        self._folder = folder
        self._applied_index = applied_index
        self._segment_bytes = segment_bytes
        self._segments = segments
        self._found = Examined(applied_index + 1, applied_index + 1)
        self._expected: int | None = None  # index of the next entry; None where only the next frame can tell
        self._paths: set[str] = set()  # of entries beyond the first that is missing

    def examined(self) -> Examined:
        found = self._found
        found.segments, found.spares = len(self._segments), len(list(self._folder.glob("*.spare")))
        if self._segments:
            self._examine_begin(self._segments[0])
        for number, segment in enumerate(self._segments):
            following = self._segments[number + 1] if number + 1 < len(self._segments) else None
            self._examine_segment(segment, following.first_index if following else None)
        found.findings = [self._with_streams_behind(finding) for finding in found.findings]
        return found

    def _examine_begin(self, first: SegmentFile) -> None:
        if first.first_index > self._applied_index + 1:
            self._add(
                Weight.DAMAGE,
                self._folder.name,
                f"the journal begins at index {first.first_index}, the store ends at index {self._applied_index}: what"
                " lies between is in neither. A segment is missing, or the store is older than the journal (its file"
                " store.sqlite-wal may be missing or damaged)",
                first_index=self._applied_index + 1,
                next_index=first.first_index,
            )
        self._expected = first.first_index

    def _examine_segment(self, segment: SegmentFile, following: int | None) -> None:
        name = segment.path.name
        if self._expected is not None and segment.first_index > self._expected:
            self._add(
                self._weight(segment.first_index),
                name,
                f"entries are missing before it: the segment before ends at index {self._expected}",
                first_index=self._expected,
                next_index=segment.first_index,
            )
        self._expected = segment.first_index
        if segment.finding is not None:
            self._found.findings.append(msgspec.structs.replace(segment.finding, next_index=following))
            self._expected = following
        if segment.header is None:
            return
        self._found.is_closed = False
        with mapped(segment.path) as data:
            for part in _walk(data, segment.header):
                if isinstance(part, Frame):
                    self._examine_frame(data, part, name)
                else:
                    self._examine_hole(data, part, name, following)
        if segment.size < self._segment_bytes:
            self._add(
                self._weight(following),
                name,
                f"it is {segment.size} bytes long and was made with {self._segment_bytes} or more: it was cut. What was"
                " acknowledged may be missing at its end, and a start cannot know",
                at=segment.size,
                first_index=self._expected,
                next_index=following,
            )

    def _examine_frame(self, data: memoryview, frame: Frame, name: str) -> None:
        found = self._found
        found.time_ms = frame.time_ms
        if not frame.count:
            found.is_closed = True
            return
        found.commits += 1
        self._expected = frame.next_index
        try:
            commit = commit_of(data, frame)
        except (Damaged, NewerFormat) as error:
            weight = Weight.NEWER if isinstance(error, NewerFormat) else self._weight(frame.next_index)
            self._add_range(weight, name, str(error), frame.at, frame.end, frame.first_index, frame.next_index)
        else:
            if frame.first_index <= found.good_index < frame.next_index:
                found.good_index = frame.next_index
            elif frame.first_index > found.good_index and len(self._paths) < PATHS_MAX:
                self._paths.update(entry.path for entry in commit.entries)
        found.next_index = max(found.next_index, frame.next_index)

    def _examine_hole(self, data: memoryview, hole: Hole, name: str, following: int | None) -> None:
        streams = _legible_paths(data, hole)
        if hole.next_index is not None:
            what = "damaged: a whole commit follows, so this one had been acknowledged"
            weight = self._weight(hole.next_index)
            self._add_range(weight, name, what, hole.at, hole.end, hole.first_index, hole.next_index, streams)
            self._expected = hole.next_index
        elif following is not None:
            if hole.first_index < following:
                what = "damaged: the next segment goes on further behind, so this had been acknowledged"
                self._add_range(
                    self._weight(following), name, what, hole.at, hole.end, hole.first_index, following, streams
                )
            self._expected = following
        else:
            self._examine_tail(data, hole, name, streams)

    def _examine_tail(self, data: memoryview, hole: Hole, name: str, streams: tuple[str, ...]) -> None:
        """Behind the last whole frame of the journal."""
        torn = next(frames_claimed(data, hole.at, hole.at + 1), None)
        if torn is not None and torn.first_index == hole.first_index:
            what = (
                "torn: a write that a crash cut short. Nothing of it was acknowledged; it is written over. (A last"
                " commit that the disk changed afterwards looks the same.)"
            )
            self._add_range(Weight.NOTE, name, what, torn.at, torn.end, torn.first_index, torn.next_index, streams)

    def _weight(self, next_index: int | None) -> Weight:
        """Of damage to entries before `next_index`: the store may have them all."""
        is_stored = next_index is not None and next_index <= self._applied_index + 1
        return Weight.WARNING if is_stored else Weight.DAMAGE

    def _add_range(
        self,
        weight: Weight,
        name: str,
        what: str,
        at: int,
        end: int,
        first_index: int,
        next_index: int | None,
        streams: tuple[str, ...] = (),
    ) -> None:
        self._add(weight, name, what, at=at, end=end, first_index=first_index, next_index=next_index, streams=streams)

    def _add(
        self,
        weight: Weight,
        name: str,
        what: str,
        *,
        at: int | None = None,
        end: int | None = None,
        first_index: int | None = None,
        next_index: int | None = None,
        streams: tuple[str, ...] = (),
    ) -> None:
        if weight is Weight.WARNING:
            what = f"{what}. The store has these entries"
        self._found.findings.append(
            Finding(
                weight=weight,
                file=name,
                what=what,
                at=at,
                end=end,
                first_index=first_index,
                next_index=next_index,
                streams=streams,
            )
        )

    def _with_streams_behind(self, finding: Finding) -> Finding:
        if finding.weight is not Weight.DAMAGE:
            return finding
        return msgspec.structs.replace(finding, streams_behind=shown(self._paths))


def _segments(folder: Path, uuid: bytes | None) -> list[SegmentFile]:
    return [_segment(path, uuid) for path in sorted(folder.glob("*.log"))]


def _segment(path: Path, uuid: bytes | None) -> SegmentFile:
    name = path.name
    try:
        first_index = int(path.stem, 16)
    except ValueError:
        finding = Finding(weight=Weight.DAMAGE, file=name, what="its name is not that of a segment")
        return SegmentFile(path, 0, path.stat().st_size, finding=finding)
    segment = SegmentFile(path, first_index, path.stat().st_size)
    try:
        with mapped(path) as data:
            segment.header = decode_header(data, name)
    except (Damaged, NewerFormat) as error:
        weight = Weight.NEWER if isinstance(error, NewerFormat) else Weight.DAMAGE
        what = f"{error}. None of its entries can be read without it"
        segment.finding = Finding(weight=weight, file=name, what=what, at=0, end=HEADER_BYTES, first_index=first_index)
        return segment
    what = _contradiction(segment.header, first_index, uuid)
    if what:
        segment.finding = Finding(weight=Weight.DAMAGE, file=name, what=what, first_index=segment.header.first_index)
        segment.header = None
    return segment


def _contradiction(header: Header, first_index: int, uuid: bytes | None) -> str:
    if uuid is not None and header.uuid != uuid:
        return "it belongs to another store"
    if header.first_index != first_index:
        return f"by its name it begins at index {first_index}, by its header at index {header.first_index}"
    return ""


def _walk(data: memoryview, header: Header) -> Iterator[Frame | Hole]:
    """What a segment consists of, in order, up to the frame that closes the journal or to a hole that never ends."""
    at, index = HEADER_BYTES, header.first_index
    while True:
        frame = frame_at(data, at, header.salt)
        if frame is None or frame.first_index != index:
            frame = next(frames_beyond(data, at, header.salt), None)
            if frame is None:
                yield Hole(at, len(data), index, None)
                return
            yield Hole(at, frame.at, index, frame.first_index)
        yield frame
        if not frame.count:
            return
        at, index = frame.end, frame.next_index


def _legible_paths(data: memoryview, hole: Hole) -> tuple[str, ...]:
    """Paths of the entries that can still be read in a hole, whatever the checksum says of them."""
    paths: set[str] = set()
    for frame in frames_claimed(data, hole.at, hole.end):
        if frame.first_index < hole.first_index or len(paths) >= PATHS_MAX:  # what the file was before
            continue
        with suppress(ValueError, msgspec.MsgspecError):
            for encoded in encoded_entries(data, frame):
                with suppress(UnknownFormat, msgspec.MsgspecError):
                    paths.add(decode(encoded).path)
    return shown(paths)
