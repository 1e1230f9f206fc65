"""Texts that grow, and surrogate pairs whose halves meet in them."""

import pytest
from hypothesis import given, strategies as st

from consumer.fold.growing import Growing, rejoined

units = st.text(st.characters() | st.sampled_from(["\ud83d", "\ude00"]), max_size=10)


@given(st.lists(units, max_size=6), st.sets(st.integers(0, 6)))
def test_looking_in_between_does_not_change_the_text(pieces: list[str], looks: set[int]) -> None:
    text = Growing(0)
    for index, piece in enumerate(pieces):
        text.pieces.append(piece)
        if index in looks:
            text.text()

    assert text.text() == rejoined("".join(pieces))


def test_a_text_is_joined_only_when_somebody_looks() -> None:
    text = Growing(0, "a")
    text.pieces.extend("bc")

    assert text.pieces == ["a", "b", "c"]
    assert text.text() == "abc"
    assert text.pieces == ["abc"]


@given(units)
def test_rejoining_is_what_utf16_does(text: str) -> None:
    assert rejoined(text).encode("utf-16-le", "surrogatepass") == text.encode("utf-16-le", "surrogatepass")


@pytest.mark.parametrize(
    ("text", "joined"),
    [
        ("\ud83d\ude00", "😀"),
        ("\ude00\ud83d", "\ude00\ud83d"),
        ("\ud83d\ud83d\ude00\ude00", "\ud83d😀\ude00"),
        ("é", "é"),
    ],
)
def test_halves_are_joined_where_they_meet_in_order(text: str, joined: str) -> None:
    assert rejoined(text) == joined
