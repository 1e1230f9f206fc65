import json
import math
from typing import Any

import pytest
from hypothesis import given, strategies as st

from producer.encoding import BYTES, JSON_ARRAY, Framing, encode, encode_chunk, framing_of

json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
# Text cut in the middle of an emoji, as models that stream UTF-16 code units do: half a surrogate pair.
half_characters = st.text(st.characters(categories=["Cs"]) | st.characters(), max_size=8)


@given(json_values)
def test_any_json_value_arrives_as_it_was(value: Any) -> None:
    assert json.loads(encode_chunk(value)) == value


@given(half_characters)
def test_lone_surrogates_arrive_as_they_were(text: str) -> None:
    decoded = json.loads(encode_chunk({"type": "text-delta", "delta": text}))
    assert decoded["delta"].encode("utf-16", "surrogatepass") == text.encode("utf-16", "surrogatepass")


@given(st.lists(json_values, min_size=1, max_size=5))
def test_body_is_always_an_array_of_chunks(values: list[Any]) -> None:
    assert json.loads(JSON_ARRAY.body([encode_chunk(value) for value in values])) == values


@given(st.lists(st.binary(), min_size=1, max_size=5), st.sampled_from([JSON_ARRAY, BYTES]))
def test_length_of_a_body_is_known_before_it_is_made(encoded: list[bytes], framing: Framing) -> None:
    assert framing.body_bytes(sum(map(len, encoded)), len(encoded)) == len(framing.body(encoded))


@pytest.mark.parametrize(
    ("content_type", "data", "encoded"),
    [
        ("application/json; charset=utf-8", ["a"], b'["a"]'),
        ("application/json", "a", b'"a"'),
        ("text/plain", "\u00e9", b"\xc3\xa9"),
        ("text/plain", b"\xff", b"\xff"),
        ("image/png", bytearray(b"\0"), b"\0"),
        ("application/ndjson", memoryview(b"{}\n"), b"{}\n"),
    ],
)
def test_data_is_encoded_as_the_content_type_has_it(content_type: str, data: Any, encoded: bytes) -> None:
    assert encode(content_type, data) == encoded


@pytest.mark.parametrize("data", [{}, 1, None, ["a"]])
def test_a_stream_of_bytes_takes_no_json(data: Any) -> None:
    with pytest.raises(TypeError, match="bytes or text"):
        encode("text/plain", data)


def test_only_json_has_records() -> None:
    assert [framing_of(name) for name in ("application/JSON", "application/ndjson")] == [JSON_ARRAY, BYTES]


def endless() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(object(), id="object"),
        math.nan,
        {"a": [math.inf]},
        {"a": None, "b": math.nan},
        {(1, 2): 3},
        1j,
        endless(),
    ],
    ids=repr,
)
def test_what_is_no_json_is_a_type_error(value: Any) -> None:
    with pytest.raises(TypeError, match="a chunk must be a JSON value"):
        encode_chunk(value)
