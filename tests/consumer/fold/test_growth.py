"""What a projection grows by, folded by the AI SDK's own rules, is the projection again."""

from typing import Any

import pytest

from consumer.fold import FORMATS, Fold
from consumer.fold.projection import ui_message
from consumer.fold.projection.growth import Growth
from consumer.fold.ui_message_chunk import checked
from tests.consumer.fold.chunks import vectors
from tests.consumer.fold.dictations import AI_SDK
from tests.vectors import initial_of, is_unread

OTHERS = sorted(FORMATS.keys() - {AI_SDK, "text"})
UNTOLD = frozenset({"filename", "id", "rawInput", "inputEncoding"})
"""What the stream has no words for, or what is named otherwise: see `Growth.chunks`."""


def likened(parts: list[Any]) -> list[Any]:
    return [{name: value for name, value in part.items() if name not in UNTOLD and value is not None} for part in parts]


def grown(format_name: str, batches: list[list[Any]], initial: Any) -> tuple[Any, Any, bool]:
    """The parts in the end: as the projection has them, and as a reader of the stream; whether that one is behind."""
    fold, growth, reader = Fold.start(format_name, initial), Growth(), Fold.start(AI_SDK)
    parts: Any = []
    for batch in [*batches, None]:
        for chunk in batch or []:
            fold.add(chunk)
        parts = ui_message(format_name, fold.message, ended=batch is None)["parts"]
        for told in growth.chunks(parts, ended=batch is None):
            reader.add(checked(told))
        assert growth.chunks(parts, ended=batch is None) == []
    assert reader.errors == ()
    message: Any = reader.message
    return likened(parts), likened(message["parts"]), growth.behind


@pytest.mark.parametrize("batch_chunks", [1, 7, 10_000])
@pytest.mark.parametrize("format_name", OTHERS)
def test_reader_of_the_stream_has_what_the_projection_shows(format_name: str, batch_chunks: int) -> None:
    left_behind = []
    for vector in vectors(format_name):
        chunks = [chunk for chunk in vector["chunks"] if not is_unread(chunk)]
        batches = [chunks[at : at + batch_chunks] for at in range(0, len(chunks), batch_chunks)]
        shown, told, behind = grown(format_name, batches, initial_of(vector))
        assert told == shown or behind, vector["name"]
        left_behind += [vector["name"]] if behind else []
    # Only AG-UI's snapshots, and its events for calls of long ago, change what is over.
    assert len(left_behind) <= (5 if format_name.startswith("ag-ui") else 0), left_behind


def test_text_is_told_as_it_grows() -> None:
    growth = Growth()
    assert growth.chunks([{"type": "text", "text": "Hel", "state": "streaming"}]) == [
        {"type": "text-start", "id": "part-0"},
        {"type": "text-delta", "id": "part-0", "delta": "Hel"},
    ]
    assert growth.chunks([{"type": "text", "text": "Hello \ud83d", "state": "streaming"}]) == [
        {"type": "text-delta", "id": "part-0", "delta": "lo "}
    ]
    assert growth.chunks([{"type": "text", "text": "Hello 👋", "state": "done"}]) == [
        {"type": "text-delta", "id": "part-0", "delta": "👋"},
        {"type": "text-end", "id": "part-0"},
    ]


def test_text_without_a_state_is_ended_with_its_answer() -> None:
    growth = Growth()
    growth.chunks([{"type": "text", "text": "Hello"}])
    assert growth.chunks([{"type": "text", "text": "Hello"}]) == []
    assert growth.chunks([{"type": "text", "text": "Hello"}], ended=True) == [{"type": "text-end", "id": "part-0"}]


def test_change_in_the_current_step_tells_it_anew() -> None:
    growth = Growth()
    growth.chunks([{"type": "step-start"}, {"type": "text", "text": "Hello", "state": "done"}])
    told = growth.chunks([{"type": "step-start"}, {"type": "text", "text": "Bye", "state": "done"}])
    assert [chunk["type"] for chunk in told] == ["reset-step", "text-start", "text-delta", "text-end"]
    assert not growth.behind


def test_change_in_a_step_that_is_over_leaves_the_reader_behind() -> None:
    growth = Growth()
    growth.chunks([{"type": "text", "text": "Hello", "state": "done"}, {"type": "step-start"}])
    assert growth.chunks([{"type": "text", "text": "Bye", "state": "done"}, {"type": "step-start"}]) == []
    assert growth.behind
