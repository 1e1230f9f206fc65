"""A page as a row of `store.sqlite`: encoder and decoder, and how small pages become large ones.

    data      byte 0       version of this form, `PAGE_VERSION`
              bytes 1 to 4    how many bytes of lengths follow, unsigned, little-endian
              …            the lengths (`Page.lengths`), then the data (`Page.data`)

What may change: another form under another version. Pages are never rewritten for it, so every version stays readable.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Final

from broker.core.page import Page, join
from broker.errors import Damaged, NewerFormat
from broker.limits import PAGE_BYTES

PAGE_VERSION: Final = 1

_PREFIX: Final = struct.Struct("<BI")


def encode_page(page: Page) -> bytes:
    """The stored form of a page's lengths and data."""
    return b"%b%b%b" % (_PREFIX.pack(PAGE_VERSION, len(page.lengths)), page.lengths, page.data)


def decode_page(start: int, end: int, stored: bytes) -> Page:
    """The page behind `encode_page`. Raises NewerFormat or Damaged."""
    if len(stored) < _PREFIX.size:
        raise Damaged(f"the stored page at position {start} is cut short")
    version, lengths_bytes = _PREFIX.unpack_from(stored)
    if version != PAGE_VERSION:
        raise NewerFormat(f"a stored page has form {version}; this version knows {PAGE_VERSION}")
    cut = _PREFIX.size + lengths_bytes
    return Page(start, end, stored[_PREFIX.size : cut], stored[cut:])


def merge(added: Sequence[Page], stored_before: Callable[[int, int], Page | None]) -> list[Page]:
    """The pages that shall stand from the start of the first one returned on: some stored ones before `added`, and it.

    `added` are new consecutive pages, at least one; `stored_before(position, bytes_max)` is the last stored page, which
    ends at `position`, if it is there and not larger.

    As in a binary counter, a stored page is taken in while its size has no more binary digits than that of what it is
    merged with; from half of PAGE_BYTES on it is full. So a byte is written again only into a page whose size has more
    digits: at most log2(PAGE_BYTES) times. Full pages lie between half of PAGE_BYTES and all of it; those after the
    last full one have less digits each than the one before. What one append carried stays whole, however large.
    """
    pages, size_bytes = list(added), sum(len(page.data) + 1 for page in added)  # each with a comma
    while last := stored_before(pages[0].start, min((1 << size_bytes.bit_length()) - 1, PAGE_BYTES // 2)):
        pages.insert(0, last)
        size_bytes += len(last.data) + 1
    return [join(group) for group in _groups(pages)]


def _groups(pages: Sequence[Page]) -> list[list[Page]]:
    """Runs of `pages`, each as long as it fits PAGE_BYTES."""
    groups: list[list[Page]] = []
    size_bytes = PAGE_BYTES
    for page in pages:
        if size_bytes + len(page.data) > PAGE_BYTES:
            groups.append([])
            size_bytes = 0
        groups[-1].append(page)
        size_bytes += len(page.data) + 1
    return groups
