"""Pages: consecutive records of one stream, as they are appended, kept in the tail, stored and served.

In JSON mode `data` is the records' own bytes joined by commas, so that a read is `[` + data + `]` without touching a
record, and `lengths` has the length of each: unsigned 32-bit, little-endian. In byte mode a position is a byte:
`lengths` is empty and `data` is the bytes. What an append carries is a page of its own.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Sequence
from itertools import islice
from struct import Struct

import msgspec

_one_length = Struct("<I").pack
LENGTH_BYTES = 4
"""What the length of a record takes."""


class Page(msgspec.Struct, frozen=True, gc=False):
    """Records [start, end) of a stream. `end - start` is the number of records, or of bytes in byte mode."""

    start: int
    end: int
    lengths: bytes
    data: bytes


def json_page(records: Sequence[bytes], start: int = 0) -> Page:
    """A page of whole JSON texts, in order. At least one record."""
    if len(records) == 1:  # a token: it is not worth an array
        return Page(start, start + 1, _one_length(len(records[0])), records[0])
    return Page(start, start + len(records), pack_lengths(map(len, records)), b",".join(records))


def byte_page(data: bytes, start: int = 0) -> Page:
    """A page of bytes."""
    return Page(start, start + len(data), b"", data)


def pack_length(length: int) -> bytes:
    """As `pack_lengths`, of one record: it is not worth an array."""
    return _one_length(length)


def pack_lengths(lengths: Iterable[int]) -> bytes:
    """The stored form of record lengths."""
    packed = array("I", lengths)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def unpack_lengths(lengths: bytes) -> array[int]:
    """The record lengths behind `pack_lengths`."""
    unpacked = array("I")
    unpacked.frombytes(lengths)
    if sys.byteorder == "big":
        unpacked.byteswap()
    return unpacked


def moved(page: Page, start: int) -> Page:
    """The same records, beginning at `start`."""
    return Page(start, start + (page.end - page.start), page.lengths, page.data)


def after(page: Page, position: int) -> Page:
    """The part of `page` from `position` on; all of it when it begins later. `position` is below `page.end`."""
    count = position - page.start
    if count <= 0:
        return page
    cut = _data_offset(page, count)
    return Page(position, page.end, page.lengths[count * 4 :] if page.lengths else b"", page.data[cut:])


def before(page: Page, position: int) -> Page:
    """The part of `page` up to and excluding `position`, which lies above `page.start`."""
    if position >= page.end:
        return page
    count = position - page.start
    cut = _data_offset(page, count)
    if not page.lengths:
        return Page(page.start, position, b"", page.data[:cut])
    return Page(page.start, position, page.lengths[: count * 4], page.data[: cut - 1])


def join(pages: Sequence[Page]) -> Page:
    """One page of `pages`, which follow each other without a hole; at least one.

    Raises ValueError where one does not begin at the end of the one before: joining them would renumber records.
    """
    if len(pages) == 1:
        return pages[0]
    for left, right in zip(pages, islice(pages, 1, None), strict=False):
        if left.end != right.start:
            msg = f"pages do not meet: one ends at {left.end}, the next begins at {right.start}"
            raise ValueError(msg)
    lengths = b"".join([page.lengths for page in pages])
    separator = b"," if lengths else b""
    return Page(pages[0].start, pages[-1].end, lengths, separator.join([page.data for page in pages]))


def records(page: Page) -> list[bytes]:
    """The records of a JSON page, one by one."""
    if len(page.lengths) == LENGTH_BYTES:
        return [page.data]
    data, cut, out = page.data, 0, []
    for length in unpack_lengths(page.lengths):
        out.append(data[cut : cut + length])
        cut += length + 1
    return out


def _data_offset(page: Page, count: int) -> int:
    """Where in `page.data` the record after the first `count` begins."""
    if not page.lengths:
        return count
    return sum(unpack_lengths(page.lengths[: count * 4])) + count
