"""Plain data and its JSON, halves of surrogate pairs included."""

import json
import math
from typing import Any

import pytest
from hypothesis import given, strategies as st

from consumer.plain import DEPTH_MAX, JSON, NotJSON, decode, encode, nests_within
from tests.consumer.fold.chunks import plain_data


def nested(depth: int) -> JSON:
    value: JSON = 0
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value


@given(plain_data)
def test_plain_data_comes_back_from_its_bytes(value: JSON) -> None:
    assert decode(encode(value)) == value


@given(plain_data, st.sampled_from(["\ud83d", "\ude00", "a\udfff\ud800b"]))
def test_halves_of_pairs_anywhere_are_written_as_escapes_and_read_back(value: JSON, half: str) -> None:
    data = encode({half: [value, half]})

    assert decode(data) == {half: [value, half]}
    assert json.loads(data.decode("ascii")) == {half: [value, half]}


def test_half_of_a_pair_is_written_as_the_escape_it_came_as() -> None:
    assert encode(["\ud83d"]) == b'["\\ud83d"]'


def test_text_without_halves_is_written_as_utf8() -> None:
    assert encode({"a": "😀é"}) == '{"a":"😀é"}'.encode()


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("beside", ["", "\ud83d"])
def test_a_number_that_json_cannot_hold_is_written_as_null(number: float, beside: str) -> None:
    assert decode(encode([number, {"a": number}, beside])) == [None, {"a": None}, beside]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e400", math.inf),
        ("9" * 5000, math.inf),
        ("-" + "9" * 5000, -math.inf),
        ("12345678901234567890", 12345678901234567890),
        ('{"a":1,"a":2}', {"a": 2}),
        (' \t\r\n"x" ', "x"),
        ('"\\ud83d\\ude00"', "😀"),
        ('"\\ude00\\ud83d"', "\ude00\ud83d"),
    ],
)
def test_what_json_parse_takes_is_taken(text: str, value: Any) -> None:
    assert decode(text) == value
    assert decode(text.encode()) == value


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"NaN",
        b"[Infinity]",
        b"-Infinity",
        b"01",
        b"1.",
        b"'x'",
        b'"\x01"',
        b'"\xff"',
        b'"\\ud83d" "\xff"',
        b"\xef\xbb\xbf1",
        '"x"'.encode("utf-16"),
        b'"\\ud83d" NaN',
        b"1 2",
        b"\xc2\xa01",
        b"[" * 100_000,
    ],
)
def test_what_json_parse_refuses_is_refused(data: bytes) -> None:
    with pytest.raises(NotJSON):
        decode(data)


@pytest.mark.parametrize("depth", [0, 1, 2, 7])
def test_depth_is_counted_in_lists_and_objects(depth: int) -> None:
    assert nests_within(nested(depth), depth)
    assert not nests_within(nested(depth + 1), depth)


def test_data_without_end_is_measured_without_recursion() -> None:
    assert not nests_within(nested(100_000), DEPTH_MAX)


@pytest.mark.parametrize("leaf", ["x", "\ud83d"])
def test_data_as_deep_as_allowed_can_be_written_and_read(leaf: str) -> None:
    value: JSON = [nested(DEPTH_MAX - 1), leaf]

    assert decode(encode(value)) == value
