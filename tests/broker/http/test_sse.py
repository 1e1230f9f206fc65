"""Server-sent events as bytes (PROTOCOL.md 5.8)."""

import re
from base64 import b64decode

import pytest
from hypothesis import given, strategies as st

from broker.http.sse import FrameCache, control_frame, data_frame, is_text, whole_characters

OFFSET = "0000000000000001_00000000000000ab"


def understood(frame: bytes) -> list[tuple[str, str, str]]:
    """(id, event, data) as a browser reads them (HTML standard, 9.2.6)."""
    events: list[tuple[str, str, str]] = []
    data: list[str] = []
    last_id, kind = "", ""
    for line in re.split("\r\n|\n|\r", frame.decode()):
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if data:
                events.append((last_id, kind, "\n".join(data)))
            kind, data = "", []
        elif name == "data":
            data.append(value)
        elif name == "event":
            kind = value
        elif name == "id":
            last_id = value
    return events


@given(st.text(st.sampled_from(" ab:\n\r\u2028é") | st.characters(exclude_categories=["Cs"])))
def test_any_text_arrives_whole_with_its_line_breaks_as_newlines(text: str) -> None:
    heard = understood(data_frame(OFFSET, text.encode(), text=True))
    assert heard == [(OFFSET, "data", text.replace("\r\n", "\n").replace("\r", "\n"))]


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
def test_data_cannot_end_its_event_and_begin_another(end: str) -> None:
    attack = f'x{end}{end}event: control{end}data: {{"bad":1}}{end}{end}'
    assert [kind for _, kind, _ in understood(data_frame(OFFSET, attack.encode(), text=True))] == ["data"]


def test_line_has_no_space_that_a_client_would_not_take_off() -> None:
    assert b"data:line1\ndata:line2\n" in data_frame(OFFSET, b"line1\nline2", text=True)
    assert b"data:  line1\n" in data_frame(OFFSET, b" line1", text=True)


@given(st.binary(max_size=200) | st.integers(49_000, 150_000).map(bytes))
def test_any_bytes_arrive_whole_as_base64(data: bytes) -> None:
    frame = data_frame(OFFSET, data, text=False)
    assert max(map(len, frame.split(b"\n"))) <= 65_541
    joined = "".join(text for _, _, text in understood(frame)).replace("\n", "")
    assert b64decode(joined, validate=True) == data


def test_control_says_where_and_whether_there_is_more() -> None:
    assert understood(control_frame(OFFSET, 12, up_to_date=False, closed=False)) == [
        (OFFSET, "control", f'{{"streamNextOffset":"{OFFSET}","streamCursor":"12"}}')
    ]
    assert '"streamCursor":"12","upToDate":true}' in control_frame(OFFSET, 12, up_to_date=True, closed=False).decode()
    closed = control_frame(OFFSET, 12, up_to_date=True, closed=True).decode()
    assert '"upToDate":true,"streamClosed":true}' in closed
    assert "streamCursor" not in closed


@pytest.mark.parametrize(
    ("content_type", "text"),
    [
        ("application/json", True),
        ("Application/JSON; charset=utf-8", True),
        ("text/plain", True),
        ("text/html;x=y", True),
        ("application/octet-stream", False),
        ("application/ndjson", False),
        ("image/png", False),
    ],
)
def test_only_text_and_json_travel_as_they_are(content_type: str, *, text: bool) -> None:
    assert is_text(content_type) is text


@given(st.text(min_size=1))
def test_every_prefix_of_text_is_cut_at_a_whole_character(text: str) -> None:
    encoded = text.encode("utf-8", "ignore")
    for length in range(len(encoded) + 1):
        whole = whole_characters(encoded[:length])
        assert length - whole <= 3
        encoded[:whole].decode()
    assert whole_characters(encoded) == len(encoded)


@pytest.mark.parametrize("data", [b"", b"\x80", b"\x80\x80\x80\x80", b"ab\x80\x80\x80\x80"])
def test_bytes_that_no_character_begins_are_not_held_back(data: bytes) -> None:
    assert whole_characters(data) == len(data)


def test_cache_forgets_what_was_asked_for_longest_ago() -> None:
    cache = FrameCache(bytes_max=25)
    cache.put((1, 0, 1), b"a" * 10)
    cache.put((1, 1, 2), b"b" * 10)
    assert cache.get((1, 0, 1)) == b"a" * 10
    cache.put((1, 2, 3), b"c" * 10)
    assert (cache.get((1, 1, 2)), cache.get((1, 0, 1)), cache.get((1, 2, 3))) == (None, b"a" * 10, b"c" * 10)
    cache.put((1, 3, 4), b"d" * 30)
    assert [cache.get((1, at, at + 1)) for at in range(4)] == [None, None, None, None]
