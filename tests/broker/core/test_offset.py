"""broker/core/offset.py: PROTOCOL.md section 8 wants opaque tokens whose order as text is the order in the stream."""

import pytest
from hypothesis import given, strategies as st

from broker.core.offset import POSITION_MAX, START_TOKEN, InvalidOffset, format_offset, parse_offset

positions = st.integers(0, POSITION_MAX)
incarnations = st.integers(1, 2**64 - 1)


@given(positions, incarnations)
def test_offset_read_back_is_the_position_it_was_made_from(position: int, incarnation: int) -> None:
    assert parse_offset(format_offset(position, incarnation)) == (position, incarnation)


@given(positions, positions, incarnations)
def test_offsets_sort_as_text_like_their_positions(one: int, other: int, incarnation: int) -> None:
    """Section 8: lexicographically sortable."""
    tokens = format_offset(one, incarnation), format_offset(other, incarnation)
    assert (tokens[0] < tokens[1]) == (one < other)
    assert (tokens[0] == tokens[1]) == (one == other)


@given(positions, incarnations)
def test_offset_is_no_sentinel_and_safe_in_a_query_string(position: int, incarnation: int) -> None:
    """Section 8: never `-1` or `now`, no characters that a URL gives a meaning."""
    token = format_offset(position, incarnation)
    assert token not in {"-1", "now"}
    assert set(token) <= set("0123456789abcdef_")


def test_start_token_is_all_zeros_and_sorts_before_every_offset() -> None:
    assert parse_offset(START_TOKEN) == (0, 0)
    assert format_offset(0, 1) > START_TOKEN


def test_offset_form_is_fixed_for_ever() -> None:
    """Clients store these."""
    assert format_offset(255, 0xABCDEF) == "00000000000000ff_0000000000abcdef"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-1",
        "now",
        "0",
        "00000000000000ff",
        "00000000000000ff_",
        "00000000000000ff_0000000000abcde",
        "00000000000000ff_0000000000abcdef0",
        "00000000000000FF_0000000000abcdef",
        "00000000000000ff-0000000000abcdef",
        " 0000000000000ff_0000000000abcdef",
        "00000000000000ff_0000000000abcdef\n",
        "+0000000000000ff_0000000000abcdef",
        "00000000000000f\u0661_0000000000abcdef",
        "8000000000000000_0000000000abcdef",
        "ffffffffffffffff_0000000000abcdef",
        "0000000000000001_0000000000000000",
    ],
    ids=repr,
)
def test_text_that_no_broker_made_is_refused(text: str) -> None:
    with pytest.raises(InvalidOffset):
        parse_offset(text)


@given(st.text(max_size=40))
def test_any_text_is_either_refused_or_exactly_what_format_makes(text: str) -> None:
    try:
        position, incarnation = parse_offset(text)
    except InvalidOffset:
        return
    assert format_offset(position, incarnation) == text
