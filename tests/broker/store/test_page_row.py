"""Stored pages, and how small ones become large ones; judged by a dumb list."""

from itertools import pairwise, takewhile

import pytest
from hypothesis import given, strategies as st

from broker.core.page import Page, byte_page, json_page, records
from broker.errors import Damaged, NewerFormat
from broker.limits import PAGE_BYTES
from broker.store.page_row import decode_page, encode_page, merge

RECORD = st.binary(min_size=1, max_size=50)


@given(st.lists(RECORD, min_size=1, max_size=20), st.integers(0, 2**62))
def test_a_json_page_comes_back_from_its_stored_form(items: list[bytes], start: int) -> None:
    page = json_page(items, start)
    assert decode_page(page.start, page.end, encode_page(page)) == page


@given(st.binary(min_size=1, max_size=500))
def test_a_byte_page_comes_back_from_its_stored_form(data: bytes) -> None:
    page = byte_page(data, 9)
    assert decode_page(page.start, page.end, encode_page(page)) == page


def test_a_stored_page_has_the_bytes_it_always_had() -> None:
    assert encode_page(json_page([b"1", b"22"])) == b"\x01\x08\0\0\0\x01\0\0\0\x02\0\0\0" + b"1,22"


def test_a_stored_page_of_another_form_is_refused() -> None:
    with pytest.raises(NewerFormat):
        decode_page(0, 1, b"\x02\0\0\0\0x")
    with pytest.raises(Damaged):
        decode_page(0, 1, b"\x01")


class Pages:
    """Pages as a store would keep them, and what writing them cost."""

    def __init__(self) -> None:
        self.stored: list[Page] = []
        self.written_bytes = 0

    def add(self, added: list[Page]) -> None:
        merged = merge(added, self._before)
        self.stored = [page for page in self.stored if page.end <= merged[0].start] + merged
        self.written_bytes += sum(len(page.data) for page in merged)

    def _before(self, position: int, bytes_max: int) -> Page | None:
        last = next((page for page in self.stored if page.end == position), None)
        return last if last and len(last.data) <= bytes_max else None


def add_all(sizes: list[list[int]]) -> tuple[Pages, list[bytes]]:
    """Checkpoints, each of appends of one record of that many bytes; and all those records."""
    pages, everything = Pages(), list[bytes]()
    for number, checkpoint in enumerate(sizes):
        added = []
        for size in checkpoint:
            everything.append(bytes([65 + number % 26]) * size)
            added.append(json_page(everything[-1:], len(everything) - 1))
        pages.add(added)
    return pages, everything


SIZES = st.lists(
    st.lists(st.one_of(st.integers(1, 3000), st.integers(1, 2 * PAGE_BYTES)), min_size=1, max_size=4),
    min_size=1,
    max_size=25,
)


@given(SIZES)
def test_merging_keeps_every_record_in_its_place(sizes: list[list[int]]) -> None:
    pages, everything = add_all(sizes)
    assert [record for page in pages.stored for record in records(page)] == everything
    assert [page.start for page in pages.stored] == [0, *[page.end for page in pages.stored[:-1]]]


@given(SIZES)
def test_merged_pages_keep_to_their_size_and_small_ones_at_the_end_are_few(sizes: list[list[int]]) -> None:
    pages, _ = add_all(sizes)
    assert all(len(page.data) <= PAGE_BYTES for page in pages.stored if page.end - page.start > 1)
    small = takewhile(lambda page: len(page.data) < PAGE_BYTES // 2, reversed(pages.stored))
    digits = [len(page.data).bit_length() for page in small]
    assert all(newer < older for newer, older in pairwise(digits))


def test_many_small_checkpoints_end_in_large_pages_at_logarithmic_cost() -> None:
    """Also where each is a little smaller than the one before, which a plain comparison of sizes never merges."""
    for sizes in ([[300]] * 5000, [[6000 - n] for n in range(1000)]):
        pages, everything = add_all(sizes)
        total_bytes = sum(map(len, everything))
        assert len(pages.stored) <= 2 * total_bytes / PAGE_BYTES + PAGE_BYTES.bit_length()
        assert pages.written_bytes <= PAGE_BYTES.bit_length() * total_bytes


def test_a_full_page_is_never_written_again() -> None:
    pages = Pages()
    pages.add([json_page([b"x" * (PAGE_BYTES // 2 + 1)], 0)])
    full = pages.stored[0]
    pages.add([json_page([b"y" * 300_000], 1)])
    assert pages.stored[0] is full
