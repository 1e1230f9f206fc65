"""broker/core/page.py: pages behave like the lists of records, or the bytes, that they stand for."""

import json

import pytest
from hypothesis import given, strategies as st

from broker.core.page import (
    Page,
    after,
    before,
    byte_page,
    join,
    json_page,
    moved,
    pack_lengths,
    records,
    unpack_lengths,
)

json_records = st.lists(
    st.recursive(st.none() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3)).map(
        lambda value: json.dumps(value, ensure_ascii=False).encode()
    ),
    min_size=1,
    max_size=8,
)
starts = st.integers(0, 2**40)


@given(json_records, starts)
def test_page_of_records_gives_the_records_back(items: list[bytes], start: int) -> None:
    page = json_page(items, start)
    assert records(page) == items
    assert (page.start, page.end) == (start, start + len(items))


@given(json_records)
def test_data_in_brackets_is_the_json_array_that_a_read_answers(items: list[bytes]) -> None:
    assert json.loads(b"[" + json_page(items).data + b"]") == [json.loads(item) for item in items]


@given(st.lists(st.integers(0, 2**32 - 1)))
def test_lengths_read_back_as_they_were_packed(lengths: list[int]) -> None:
    assert list(unpack_lengths(pack_lengths(lengths))) == lengths


def test_lengths_are_stored_as_32_bits_little_endian() -> None:
    assert pack_lengths([1, 0x01020304]) == bytes([1, 0, 0, 0, 4, 3, 2, 1])


@given(json_records, starts, st.data())
def test_cut_page_holds_the_records_on_either_side(items: list[bytes], start: int, data: st.DataObject) -> None:
    page = json_page(items, start)
    cut = data.draw(st.integers(0, len(items)))
    if cut < len(items):
        assert after(page, start + cut) == json_page(items[cut:], start + cut)
    if cut > 0:
        assert before(page, start + cut) == json_page(items[:cut], start)


@given(st.binary(min_size=1, max_size=50), starts, st.data())
def test_cut_page_of_bytes_holds_the_bytes_on_either_side(content: bytes, start: int, data: st.DataObject) -> None:
    page = byte_page(content, start)
    cut = data.draw(st.integers(0, len(content)))
    if cut < len(content):
        assert after(page, start + cut) == byte_page(content[cut:], start + cut)
    if cut > 0:
        assert before(page, start + cut) == byte_page(content[:cut], start)


@given(json_records)
def test_cut_outside_a_page_leaves_it_whole(items: list[bytes]) -> None:
    page = json_page(items, 10)
    assert after(page, 3) == page
    assert before(page, 10_000) == page


@given(st.lists(json_records, min_size=1, max_size=5), starts)
def test_joined_pages_are_the_page_of_all_their_records(batches: list[list[bytes]], start: int) -> None:
    pages, position = [], start
    for batch in batches:
        pages.append(json_page(batch, position))
        position = pages[-1].end
    assert join(pages) == json_page([record for batch in batches for record in batch], start)


@given(st.lists(st.binary(min_size=1, max_size=20), min_size=1, max_size=5))
def test_joined_pages_of_bytes_are_the_page_of_all_their_bytes(batches: list[bytes]) -> None:
    pages, position = [], 0
    for batch in batches:
        pages.append(byte_page(batch, position))
        position = pages[-1].end
    assert join(pages) == byte_page(b"".join(batches))


@pytest.mark.parametrize("start", [0, 1, 3], ids=["before", "overlapping", "beyond"])
def test_pages_that_do_not_meet_are_not_joined(start: int) -> None:
    with pytest.raises(ValueError, match="do not meet: one ends at 2"):
        join([json_page([b"1", b"2"]), json_page([b"3"], start)])


@given(json_records, starts, starts)
def test_moved_page_holds_the_same_records_elsewhere(items: list[bytes], start: int, other: int) -> None:
    assert moved(json_page(items, start), other) == json_page(items, other)


def test_page_of_bytes_has_no_lengths() -> None:
    assert byte_page(b"abc", 4) == Page(4, 7, b"", b"abc")
