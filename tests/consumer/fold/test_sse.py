"""Server-sent events out of bytes (WHATWG HTML 9.2.6)."""

from itertools import pairwise

import pytest
from hypothesis import given, strategies as st

from consumer.fold.sse import SSEDecoder, SSEEvent, SSEEventTooLong


def events_of(*pieces: bytes) -> list[SSEEvent]:
    decoder = SSEDecoder()
    events = []
    for piece in pieces:
        decoder.receive(piece)
        while (event := decoder.next_event()) is not None:
            events.append(event)
    return events


def data_of(*pieces: bytes) -> list[str]:
    return [event.data for event in events_of(*pieces)]


BODY = "\ufeff: hi\r\nid: 1\r\nevent: data\ndata: é😀\rdata:x\n\ndata: [1]\r\n\r\nretry: 5\nid: 2\n\ndata\n\n".encode()


@given(st.lists(st.integers(0, len(BODY)), max_size=8))
def test_bytes_cut_anywhere_give_the_same_events(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(BODY)]
    pieces = [BODY[start:end] for start, end in pairwise(edges)]

    assert events_of(*pieces) == [
        SSEEvent("data", "é😀\nx", "1"),
        SSEEvent("message", "[1]", None),
        SSEEvent("message", "", None),
    ]


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
def test_each_line_ending_ends_a_line(end: str) -> None:
    assert data_of(f"data: a{end}data: b{end}{end}data: c{end}{end}:".encode()) == ["a\nb", "c"]


def test_an_event_ends_with_its_blank_line_and_not_with_the_stream() -> None:
    assert data_of(b"data: a\n\ndata: b\n") == ["a"]


def test_a_cr_at_the_very_end_is_no_line_end_yet() -> None:
    assert data_of(b"data: a\r\r") == []
    assert data_of(b"data: a\r\r", b"\n") == ["a"]
    assert data_of(b"data: a\r", b"\n", b"\r", b"\n") == ["a"]


def test_one_space_after_the_colon_is_not_part_of_the_value() -> None:
    assert data_of(b"data:  a \n\ndata:b\n\n") == [" a ", "b"]


def test_unknown_fields_and_other_separators_are_passed_over() -> None:
    assert data_of("datax: no\n data: no\nDATA: no\ndata: a\u2028b\u0085\n\n".encode()) == ["a\u2028b\u0085"]


def test_an_id_with_a_null_is_ignored() -> None:
    assert events_of(b"id: a\0b\ndata: x\n\n") == [SSEEvent("message", "x", None)]


def test_bytes_that_are_no_utf8_are_replaced() -> None:
    assert data_of(b"data: a\xff\xe2\x82b\n\n") == ["a\ufffd\ufffdb"]


@pytest.mark.parametrize("piece", [b"data: 12345678901234567890", b"data: 123\n", b"id: 12345678901234567890"])
def test_an_event_that_grows_too_long_ends_the_stream_after_those_before_it(piece: bytes) -> None:
    decoder = SSEDecoder(event_chars_max=15)
    decoder.receive(b"data: a\n\n")
    for _ in range(8):
        decoder.receive(piece)
    decoder.receive(b"\n\ndata: b\n\n")

    first = decoder.next_event()
    assert first is not None
    assert first.data == "a"
    for _ in range(2):
        with pytest.raises(SSEEventTooLong):
            decoder.next_event()
