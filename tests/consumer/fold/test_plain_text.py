"""The `text` format."""

import pytest

from consumer.fold import Fold, fold
from consumer.plain import JSON


def test_strings_and_objects_with_text_or_delta_are_appended() -> None:
    chunks: list[JSON] = ["Hel", {"text": "lo"}, {"delta": " wor"}, {"type": "text-delta", "id": "1", "delta": "ld"}]

    assert fold("text", chunks) == {"id": "", "role": "assistant", "parts": [{"type": "text", "text": "Hello world"}]}


def test_of_text_and_delta_text_is_taken() -> None:
    assert fold("text", [{"delta": "no", "text": "yes"}])["parts"] == [{"type": "text", "text": "yes"}]
    assert fold("text", [{"delta": "yes", "text": 5}])["parts"] == [{"type": "text", "text": "yes"}]


@pytest.mark.parametrize("chunk", [None, 5, [], ["text"], {}, {"text": None}, {"delta": 5}, True])
def test_a_chunk_without_a_text_is_malformed(chunk: JSON) -> None:
    folding = Fold.start("text")

    assert not folding.add(chunk)
    assert [error.code for error in folding.errors] == ["malformed"]
    assert folding.message["parts"] == []
    assert folding.emitted is None


def test_an_empty_text_is_shown() -> None:
    folding = Fold.start("text")

    assert folding.add("")
    assert folding.emitted == {"id": "", "role": "assistant", "parts": [{"type": "text", "text": ""}]}


def test_a_message_is_continued_in_its_last_text() -> None:
    folding = Fold.start(
        "text", {"id": "m", "role": "assistant", "parts": [{"type": "text", "text": "Hel"}], "createdAt": "today"}
    )

    assert folding.emitted is None
    folding.add("lo")
    assert folding.message == {
        "id": "m",
        "role": "assistant",
        "parts": [{"type": "text", "text": "Hello"}],
        "createdAt": "today",
    }


def test_a_message_whose_last_part_is_no_text_gets_a_new_one() -> None:
    folding = Fold.start("text", {"id": "m", "role": "assistant", "parts": [{"type": "file", "url": "u"}]})
    folding.add("x")

    assert folding.message["parts"] == [{"type": "file", "url": "u"}, {"type": "text", "text": "x"}]


def test_of_a_message_by_somebody_else_only_the_id_is_taken() -> None:
    folding = Fold.start("text", {"id": "m", "role": "user", "parts": [{"type": "text", "text": "hi"}]})

    assert folding.message == {"id": "m", "role": "assistant", "parts": []}
