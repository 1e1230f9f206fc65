"""A commit as a frame of a segment file, and what a segment begins with. Pure: bytes in, values out.

    header   magic · form · the folder's uuid · salt · first_index · crc32
    frame    magic · size · crc32 · count · first_index · time_ms · body of `size` bytes
    body     `count` lengths (unsigned 32-bit), then the entries' bytes one after the other

All numbers are little-endian. A segment file is as long as it will ever be from the beginning, so what lies behind its
last frame is what lay there before: zeros, or frames of the segment that the file once was. The salt is drawn anew for
each segment and goes into every checksum, so that neither those nor anything a client sends passes for a frame.

A frame without entries says that the journal was closed behind it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Final
from zlib import crc32

import msgspec

from broker.core import entry as entries_form
from broker.core.page import pack_lengths, unpack_lengths
from broker.errors import Damaged, NewerFormat
from broker.journal import Commit

FORM: Final = 1
"""Raised when an older program must not touch the file."""

_HEADER: Final = struct.Struct("<8sI16sIQ")
_FRAME: Final = struct.Struct("<8sII")
_FACTS: Final = struct.Struct("<IQQ")
_CRC: Final = struct.Struct("<I")
_HEADER_MAGIC: Final = b"sfolded\n"
_FRAME_MAGIC: Final = b"\xf3commit\xf5"  # no text, and no UTF-8
_NUMBERS_BYTES: Final = _FRAME.size + _FACTS.size

RESTORE: Final = "the disk changed what was written; restore the folder from a backup"

HEADER_BYTES: Final = _HEADER.size + _CRC.size
FRAME_BYTES: Final = _NUMBERS_BYTES
"""What a frame takes besides its body."""


class Header(msgspec.Struct, frozen=True, gc=False):
    """Whose a segment is, and the index of its first entry."""

    uuid: bytes
    salt: int
    first_index: int


class Frame(msgspec.Struct, frozen=True, gc=False):
    """Where a frame lies in its segment, [at, end), and what it says of its commit."""

    at: int
    end: int
    first_index: int
    count: int
    time_ms: int

    @property
    def next_index(self) -> int:
        """The index behind its last entry."""
        return self.first_index + self.count


def encode_header(header: Header) -> bytes:
    """The first bytes of a segment."""
    numbers = _HEADER.pack(_HEADER_MAGIC, FORM, header.uuid, header.salt, header.first_index)
    return numbers + _CRC.pack(crc32(numbers))


def decode_header(data: memoryview, name: str) -> Header:
    """The header of segment `name`. Raises Damaged or NewerFormat."""
    if len(data) < HEADER_BYTES or bytes(data[: len(_HEADER_MAGIC)]) != _HEADER_MAGIC:
        raise Damaged(f"{name} is not a segment of Streamfold", "name a folder that holds nothing else")
    _, form, uuid, salt, first_index = _HEADER.unpack_from(data)
    if form > FORM:
        raise NewerFormat(
            f"{name} has format {form}; this version knows formats up to {FORM}",
            "start the version that wrote it, or a newer one",
        )
    if _CRC.unpack_from(data, _HEADER.size)[0] != crc32(data[: _HEADER.size]):
        raise Damaged(f"{name}: the checksum of its header does not match", RESTORE)
    return Header(uuid, salt, first_index)


def encode_frame(salt: int, first_index: int, time_ms: int, encoded: Sequence[bytes]) -> bytes:
    """The frame of a commit of entries that are encoded already; without any, the one that ends a journal."""
    body = pack_lengths(map(len, encoded)) + b"".join(encoded)
    facts = _FACTS.pack(len(encoded), first_index, time_ms)
    return _FRAME.pack(_FRAME_MAGIC, len(body), _checksum(salt, facts, body)) + facts + body


def frame_at(data: memoryview, at: int, salt: int, *, verified: bool = True) -> Frame | None:
    """The frame at `at`; None when there is none, or, if `verified`, when its checksum does not match."""
    if at + _NUMBERS_BYTES > len(data):
        return None
    magic, size, checksum = _FRAME.unpack_from(data, at)
    body_at = at + _NUMBERS_BYTES
    if magic != _FRAME_MAGIC or body_at + size > len(data):
        return None
    facts = data[at + _FRAME.size : body_at]
    if verified and _checksum(salt, facts, data[body_at : body_at + size]) != checksum:
        return None
    count, first_index, time_ms = _FACTS.unpack(facts)
    return Frame(at, body_at + size, first_index, count, time_ms)


def frames_beyond(data: memoryview, at: int, salt: int) -> Iterator[Frame]:
    """Every whole frame behind `at`, wherever it begins."""
    return (frame for frame in frames_claimed(data, at, len(data)) if frame_at(data, frame.at, salt) is not None)


def frames_claimed(data: memoryview, at: int, end: int) -> Iterator[Frame]:
    """What begins like a frame in [at, end), whether its checksum matches or not."""
    text = bytes(data[at : end + len(_FRAME_MAGIC) - 1])
    found = text.find(_FRAME_MAGIC)
    while found >= 0:
        frame = frame_at(data, at + found, 0, verified=False)
        if frame is not None:
            yield frame
        found = text.find(_FRAME_MAGIC, found + 1)


def commit_of(data: memoryview, frame: Frame) -> Commit:
    """The commit in `frame`. Raises Damaged or NewerFormat, both naming the index."""
    try:
        entries = [entries_form.decode(part) for part in encoded_entries(data, frame)]
    except entries_form.UnknownFormat as error:
        raise NewerFormat(
            f"journal: commit at index {frame.first_index}: {error}",
            "start the version that wrote it, or a newer one",
        ) from error
    except msgspec.MsgspecError as error:
        raise Damaged(f"journal: the commit at index {frame.first_index} cannot be decoded: {error}") from error
    return Commit(frame.first_index, frame.time_ms, entries)


def encoded_entries(data: memoryview, frame: Frame) -> Iterator[bytes]:
    """The bytes of the entries in `frame`, one by one. Raises ValueError for a frame that was not verified."""
    body = bytes(data[frame.at + _NUMBERS_BYTES : frame.end])
    cut = frame.count * 4
    for length in unpack_lengths(body[:cut]):
        yield body[cut : cut + length]
        cut += length


def _checksum(salt: int, facts: bytes | memoryview, body: bytes | memoryview) -> int:
    return crc32(body, crc32(facts, salt))
