import json
import math
from typing import Any

import pytest
from hypothesis import given, strategies as st

from producer.encoding import chunks_body, encode_chunk

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
    assert json.loads(chunks_body(encode_chunk(value) for value in values)) == values


def endless() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    "value", [object(), math.nan, {"a": [math.inf]}, {"a": None, "b": math.nan}, {(1, 2): 3}, 1j, endless()], ids=repr
)
def test_what_is_no_json_is_a_type_error(value: Any) -> None:
    with pytest.raises(TypeError, match="a chunk must be a JSON value"):
        encode_chunk(value)
