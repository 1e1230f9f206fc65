"""Events out of bytes that come in pieces of any size."""

import pytest
from hypothesis import given, strategies as st

from consumer.errors import BadAnswer
from consumer.event_parser import Event, EventParser

LINE_ENDS = [b"\n", b"\r\n", b"\r"]
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0"), max_size=8)
EVENTS = st.lists(st.tuples(st.sampled_from(["data", "control"]), st.lists(TEXT, min_size=1, max_size=3)), max_size=5)


def parsed(*pieces: bytes) -> list[Event]:
    parser = EventParser()
    return [event for piece in pieces for event in parser.feed(piece)]


@given(EVENTS, st.sampled_from(LINE_ENDS), st.data())
def test_events_come_out_as_they_were_told_however_their_bytes_are_cut(
    events: list[tuple[str, list[str]]], line_end: bytes, data: st.DataObject
) -> None:
    stream = b""
    for name, lines in events:
        for line in [f"event: {name}", *(f"data: {line}" for line in lines), ""]:
            stream += line.encode() + line_end
        stream += data.draw(st.sampled_from([b"", b": a comment" + line_end * 2, line_end]))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    pieces = [stream[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]

    told = [(event.event, event.data) for event in parsed(*pieces)]

    assert told == [(name, "\n".join(lines)) for name, lines in events]


def test_an_event_that_is_cut_off_is_not_seen() -> None:
    assert parsed(b"data: a\n\ndata: b\n") == [Event("message", "a", "")]


def test_an_id_stays_until_there_is_another() -> None:
    told = parsed(b"id: 1\ndata: a\n\ndata: b\n\nid: 2\ndata: c\n\n")
    assert [event.id for event in told] == ["1", "1", "2"]


def test_a_field_has_one_space_before_its_value_or_none() -> None:
    assert [event.data for event in parsed(b"data:a\n\ndata:  b\n\ndata\n\n")] == ["a", " b", ""]


def test_fields_that_nobody_knows_and_comments_are_passed_over() -> None:
    assert parsed(b": hello\n\nother: x\ndata: a\n: in the midst\n\n") == [Event("message", "a", "")]


def test_bytes_that_are_not_utf_8_are_no_events() -> None:
    with pytest.raises(BadAnswer, match="UTF-8"):
        parsed(b"data: \xff\n\n")
