"""JSON that is still arriving, by each library's rule. The vectors hold most cases; here is what they do not show."""

import math
from typing import Any

import pytest
from hypothesis import given, strategies as st
from msgspec import UNSET

from consumer.fold.growing import rejoined
from consumer.fold.partial_json import AISDKParser, parse_ai_sdk, parse_secure, parse_strict, reaches_prototype
from consumer.fold.partial_json_descent import parse_openai, parse_tanstack
from consumer.fold.partial_json_tokens import AnthropicParser, parse_anthropic
from consumer.plain import DEPTH_MAX, JSON, NotJSON, encode
from tests.consumer.fold.chunks import plain_data, vectors

PARTIAL_TEXTS = [str(vector["text"]) for vector in vectors("partial-json")]

jsonish = st.lists(
    st.sampled_from(
        [
            '"',
            "{",
            "}",
            "[",
            "]",
            ",",
            ":",
            "\\",
            "u00",
            "e9",
            "1",
            "-",
            ".",
            "e",
            "+",
            "tru",
            "null",
            "x",
            " ",
            "\ud83d",
        ]
    ),
    max_size=12,
).map("".join)


@pytest.mark.parametrize("parser", [AISDKParser, AnthropicParser])
@given(pieces=st.lists(jsonish | st.sampled_from(PARTIAL_TEXTS), max_size=4))
def test_a_text_that_grows_parses_as_if_it_came_at_once(
    parser: type[AISDKParser | AnthropicParser], pieces: list[str]
) -> None:
    growing = parser()
    text = ""
    for piece in pieces:
        text = rejoined(text + piece)
        assert growing.parse(text) == parser().parse(text)


@pytest.mark.parametrize("parser", [AISDKParser, AnthropicParser])
@pytest.mark.parametrize("text", PARTIAL_TEXTS)
def test_a_text_that_arrives_character_by_character_parses_as_if_it_came_at_once(
    parser: type[AISDKParser | AnthropicParser], text: str
) -> None:
    growing = parser()
    for end in range(len(text) + 1):
        assert growing.parse(text[:end]) == parser().parse(text[:end])


def test_a_pair_that_is_joined_between_two_looks_is_not_lost() -> None:
    parser = AISDKParser()
    parser.parse('["\ud83d')

    assert parser.parse(rejoined('["\ud83d\ude00x')).value == ["😀x"]


@given(plain_data)
def test_json_that_is_complete_is_its_value(value: JSON) -> None:
    text = encode(value).decode()

    parsed = parse_ai_sdk(text)
    assert parsed.state == ("failed-parse" if reaches_prototype(value) else "successful-parse")
    if parsed.value is not UNSET:
        assert encode(parsed.value) == encode(parse_secure(text))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12345678901234567890", 12345678901234567000),
        ("9007199254740993", 9007199254740992),
        ("1.0", 1),
        ("-0", 0),
        ("-0.0", 0),
        ("1e400", math.inf),
        ("9" * 5000, math.inf),
        ("1E2", 100),
    ],
)
def test_numbers_are_doubles(text: str, value: float) -> None:
    parsed = parse_secure(text)

    assert isinstance(parsed, (int, float))
    assert float(parsed) == float(value)
    assert not encode(parsed).endswith(b".0")


@pytest.mark.parametrize(
    "text",
    [
        '{"__proto__":1}',
        '[{"a":{"\\u005f_proto__":null}}]',
        '{"constructor":{"prototype":1}}',
        '{"\\u0063onstructor":{"prototype":1}}',
    ],
)
def test_a_key_that_could_reach_a_prototype_is_refused(text: str) -> None:
    with pytest.raises(NotJSON):
        parse_secure(text)

    assert parse_ai_sdk(text).value is UNSET


@pytest.mark.parametrize("text", ['{"constructor":1}', '{"constructor":[]}', '{"prototype":1}', '["__proto__"]'])
def test_a_key_that_only_looks_like_one_is_taken(text: str) -> None:
    assert parse_ai_sdk(text).state == "successful-parse"


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_nesting_without_end_is_no_value(opening: str) -> None:
    assert parse_ai_sdk(opening * 100_000).value is UNSET
    assert parse_ai_sdk(opening * (DEPTH_MAX + 1) + "1").value is UNSET
    assert parse_ai_sdk(opening * DEPTH_MAX + "1").state == "repaired-parse"


@pytest.mark.parametrize("text", ["NaN", "[Infinity", "01", '"\x01"', "\u00a01", "nil", "", " "])
def test_what_is_wrong_and_not_just_cut_has_no_value(text: str) -> None:
    assert parse_ai_sdk(text) == (UNSET, "failed-parse")


# -- the other rules ---------------------------------------------------------------------------------------------------

OTHERS = [parse_anthropic, parse_openai, parse_tanstack]


@pytest.mark.parametrize("parse", OTHERS)
@given(value=plain_data)
def test_an_object_that_is_complete_is_its_value_by_every_rule(parse: Any, value: JSON) -> None:
    text = encode({"value": value}).decode()

    if "__proto__" not in text:
        assert encode(parse(text).value) == encode(parse_strict(text))


@pytest.mark.parametrize("parse", OTHERS)
@given(text=st.lists(jsonish | st.sampled_from(PARTIAL_TEXTS), max_size=4).map("".join))
def test_any_text_has_a_value_that_can_be_stored_or_none(parse: Any, text: str) -> None:
    parsed = parse(text)

    if parsed.value is not UNSET:
        assert encode(parsed.value)


@pytest.mark.parametrize("parse", OTHERS)
@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_nesting_without_end_is_no_value_by_any_rule(parse: Any, opening: str) -> None:
    assert parse(opening * 100_000).value is UNSET
    assert parse(opening * (DEPTH_MAX - 1) + "1,").value is not UNSET


@pytest.mark.parametrize("parse", OTHERS)
@pytest.mark.parametrize("piece", ["[1x],", '["\\', "[-", '{x":', "[[[]", '"\\\\', "1e", "tru"])
def test_text_that_is_wrong_all_over_takes_time_in_proportion(parse: Any, piece: str) -> None:
    parse("[" + piece * 50_000)


def test_halves_of_a_pair_that_came_as_text_and_as_an_escape_are_joined() -> None:
    assert parse_strict('{"\\ud83d\ude00":["\\ud83d\ude00"]}') == {"😀": ["😀"]}


def test_a_key_that_is_the_prototype_is_set_by_definition_only() -> None:
    text = '{"__proto__":1,"a":2'

    assert parse_tanstack(text).value == {"a": 2}
    assert parse_openai(text + "}").value == {"__proto__": 1, "a": 2}
