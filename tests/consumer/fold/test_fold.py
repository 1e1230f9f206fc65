"""What holds for every format: folding in pieces, stored in between, and on whatever a producer may send."""

from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

import consumer.fold
from consumer.fold import FORMATS, BadFoldState, BadMessage, Fold, UnknownFormat, fold
from consumer.fold.draft import MESSAGE_CHARS_MAX
from consumer.fold.fold import ERRORS_MAX
from consumer.plain import DEPTH_MAX, JSON, decode, encode
from tests.consumer.fold.chunks import VECTOR_FORMATS, any_json, format_and_chunks, sequences, vectors
from tests.consumer.fold.dictations import AI_SDK, DICTATIONS, TEXT
from tests.vectors import Vector, initial_of

all_vectors = [vector for name in VECTOR_FORMATS for vector in vectors(name)]


def folded(format_name: str, chunks: list[JSON], initial: Any = None) -> Fold:
    folding = Fold.start(format_name, initial)
    for chunk in chunks:
        folding.add(chunk)
    return folding


def stored_and_restored(folding: Fold) -> Fold:
    """The fold as another process finds it."""
    return Fold.restore(decode(encode(folding.state())))


def told(folding: Fold) -> dict[str, Any]:
    """All that a fold tells, as its readers see it."""
    said: dict[str, Any] = {
        "message": decode(encode(folding.message)),
        "emitted": decode(encode(folding.emitted)),
        "errors": folding.errors,
        "error_count": folding.error_count,
        "failed": folding.failed,
        "finish_reason": folding.finish_reason,
        "final": decode(encode(folding.final())),
        "state": encode(folding.state()),
    }
    return said


# -- in pieces ---------------------------------------------------------------------------------------------------------


@settings(max_examples=200)
@given(vector=st.sampled_from(all_vectors), cuts=st.sets(st.integers(0, 60), max_size=4))
def test_stored_and_restored_anywhere_a_vector_folds_as_in_one_go(vector: Vector, cuts: set[int]) -> None:
    folding = Fold.start(vector["format"], initial_of(vector))
    for index, chunk in enumerate(vector["chunks"]):
        if index in cuts:
            folding = stored_and_restored(folding)
        folding.add(chunk)

    assert told(folding) == told(folded(vector["format"], vector["chunks"], initial_of(vector)))


@settings(max_examples=200)
@given(format_and_chunks(), st.integers(0, 25))
def test_stored_and_restored_anywhere_any_chunks_fold_as_in_one_go(given_: tuple[str, list[JSON]], cut: int) -> None:
    name, chunks = given_
    folding = stored_and_restored(folded(name, chunks[:cut]))
    for chunk in chunks[cut:]:
        folding.add(chunk)

    assert told(folding) == told(folded(name, chunks))


@given(format_and_chunks(15))
def test_restoring_changes_nothing(given_: tuple[str, list[JSON]]) -> None:
    folding = folded(*given_)

    assert told(stored_and_restored(folding)) == told(folding)


@pytest.mark.parametrize("name", sorted(FORMATS))
@pytest.mark.parametrize("cut", range(5))
def test_a_surrogate_pair_cut_by_a_restart_is_joined(name: str, cut: int) -> None:
    opening, piece, heard = DICTATIONS[name]
    chunks = [*opening, *map(piece, ("\ud83d", "\ude00", "!"))]
    folding = stored_and_restored(folded(name, chunks[:cut]))
    for chunk in chunks[cut:]:
        folding.add(chunk)

    assert heard(folding.message) == "😀!"


def test_a_tool_input_cut_by_a_restart_streams_on() -> None:
    chunks: list[JSON] = [{"type": "tool-input-start", "toolCallId": "c", "toolName": "search"}]
    chunks += [
        {"type": "tool-input-delta", "toolCallId": "c", "inputTextDelta": piece} for piece in ('{"q":"\ud83d', "\ude00")
    ]
    folding = stored_and_restored(folded(AI_SDK, chunks[:2]))
    folding.add(chunks[2])

    assert folding.message["parts"] == [
        {
            "type": "tool-search",
            "toolCallId": "c",
            "state": "input-streaming",
            "input": {"q": "😀"},
            "rawInput": '{"q":"😀',
        }
    ]


@settings(max_examples=200)
@given(format_and_chunks(15))
def test_what_was_given_out_or_taken_in_never_changes(given_: tuple[str, list[JSON]]) -> None:
    name, chunks = given_
    sent = [encode(chunk) for chunk in chunks]
    folding = Fold.start(name)
    given_out: list[tuple[JSON, bytes]] = []
    for chunk in chunks:
        folding.add(chunk)
        given_out += [(message, encode(message)) for message in (folding.message, folding.emitted, folding.final())]

    assert [encode(message) for message, _ in given_out] == [told for _, told in given_out]
    assert [encode(chunk) for chunk in chunks] == sent


# -- whatever comes ----------------------------------------------------------------------------------------------------


@settings(max_examples=200)
@given(format_and_chunks(20))
def test_any_json_folds_to_a_message_that_can_be_stored(given_: tuple[str, list[JSON]]) -> None:
    name, chunks = given_
    folding = folded(name, chunks)

    assert isinstance(decode(encode(folding.message)), dict)
    assert encode(fold(name, chunks)) == encode(folding.message)


@settings(max_examples=200)
@given(format_and_chunks(8), any_json)
def test_a_malformed_chunk_is_recorded_and_changes_nothing_else(given_: tuple[str, list[JSON]], chunk: JSON) -> None:
    name, chunks = given_
    folding = folded(name, chunks)
    before = told(folding)
    folding.add(chunk)
    after = told(folding)

    is_new = len(folding.errors) > len(before["errors"])
    if is_new and not folding.failed and folding.errors[-1].code != "reported":
        assert folding.errors[-1].index == len(chunks)
        assert {**after, "errors": None, "error_count": None, "state": None} == {
            **before,
            "errors": None,
            "error_count": None,
            "state": None,
        }


def nested(depth: int) -> JSON:
    value: JSON = 0
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("field", ["data", "output", "providerMetadata", "messageMetadata", "input"])
@pytest.mark.parametrize("kind", ["data-x", "tool-input-available", "text-start", "message-metadata", "text-delta"])
def test_a_chunk_that_nests_without_end_is_malformed(field: str, kind: str) -> None:
    chunk: JSON = {
        "type": kind, "id": "1", "delta": "x", "toolCallId": "c", "toolName": "t", field: nested(100_000)
    }  # fmt: skip
    folding = folded(AI_SDK, [{"type": "text-start", "id": "1"}, chunk])

    if kind != "text-delta" or field == "providerMetadata":
        assert [error.code for error in folding.errors] == ["malformed"]
    assert encode(folding.message)


def test_a_chunk_as_deep_as_allowed_folds_to_what_can_be_stored() -> None:
    folding = folded(AI_SDK, [{"type": "data-x", "data": nested(DEPTH_MAX - 1)}])

    assert folding.errors == ()
    assert told(stored_and_restored(folding)) == told(folding)


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_a_text_of_megabytes_in_many_pieces_comes_out_whole(name: str) -> None:
    opening, piece, heard = DICTATIONS[name]
    folding = folded(name, [*opening, *([piece("0123456789" * 100)] * 5_000)])

    assert heard(folding.message) == "0123456789" * 500_000


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_what_nests_without_end_is_never_taken_into_the_state(name: str) -> None:
    deep = nested(10 * DEPTH_MAX)
    for chunks in sequences(name)[:5]:
        for chunk in chunks:
            too_deep = [{**chunk, field: deep} for field in ("more", *chunk)] if isinstance(chunk, dict) else [deep]
            assert encode(folded(name, [*chunks[:3], *too_deep]).state())  # refused, or never read


def test_errors_without_end_are_counted_and_the_first_are_kept() -> None:
    folding = folded("text", [None] * (ERRORS_MAX + 50))

    assert folding.error_count == ERRORS_MAX + 50
    assert [error.index for error in folding.errors] == list(range(ERRORS_MAX))
    assert not folding.failed


def test_a_fatal_error_behind_many_others_is_kept() -> None:
    folding = folded(AI_SDK, [*([None] * (ERRORS_MAX + 50)), {"type": "text-end", "id": "1"}])

    assert folding.failed
    assert len(folding.errors) == ERRORS_MAX
    assert folding.errors[-1].fatal
    assert folding.errors[-1].index == ERRORS_MAX + 50
    assert stored_and_restored(folding).failed


def test_an_error_text_of_megabytes_is_kept_short() -> None:
    folding = folded(AI_SDK, [{"type": "error", "errorText": "x" * 1_000_000}])

    assert folding.errors[0].message == "x" * MESSAGE_CHARS_MAX


def test_after_a_fatal_chunk_nothing_is_folded() -> None:
    folding = folded(AI_SDK, [{"type": "text-start", "id": "1"}, {"type": "text-delta", "id": "2", "delta": "x"}])
    before = told(folding)

    assert not folding.add({"type": "text-delta", "id": "1", "delta": "late"})
    assert told(folding) == before


@settings(max_examples=100)
@given(format_and_chunks(20))
def test_most_formats_have_nothing_to_finish_when_the_stream_ends(given_: tuple[str, list[JSON]]) -> None:
    """OpenAI's chat, Anthropic and TanStack have: `final` there differs from the message, or is None."""
    name, chunks = given_
    folding = folded(name, chunks)

    if name in {AI_SDK, TEXT, "ag-ui-client"} and not folding.failed:
        assert folding.final() == folding.message
    if name == "openai-responses" and not folding.failed:
        assert folding.final() in (folding.message, None)
    if folding.failed:
        assert folding.final() is None


# -- formats and states ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", consumer.fold.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert hasattr(consumer.fold, name)


def test_an_unknown_format_names_the_known_ones() -> None:
    with pytest.raises(UnknownFormat, match=r"known are .*, ai-sdk-ui-message-stream, .*, text") as caught:
        fold("of-tomorrow", [])

    assert caught.value.format == "of-tomorrow"
    assert caught.value.known == tuple(sorted(FORMATS))


@pytest.mark.parametrize("name", sorted(FORMATS))
@pytest.mark.parametrize(
    "initial",
    [
        {},
        {"id": 1, "role": "assistant", "parts": []},
        {"id": "m", "parts": []},
        {"id": "m", "role": "assistant"},
        {"id": "m", "role": "assistant", "parts": {}},
        {"id": "m", "role": "assistant", "parts": [5]},
        {"id": "m", "role": "assistant", "parts": [{"type": None}]},
    ],
)
def test_what_is_no_message_cannot_be_continued(name: str, initial: Any) -> None:
    with pytest.raises(BadMessage):
        Fold.start(name, initial)


def test_a_message_with_a_nameless_dynamic_tool_cannot_be_continued() -> None:
    part: JSON = {"type": "dynamic-tool", "toolCallId": "c", "state": "input-streaming"}

    with pytest.raises(BadMessage, match="toolName"):
        Fold.start(AI_SDK, {"id": "m", "role": "assistant", "parts": [part]})


@given(any_json)
def test_what_is_no_state_is_not_restored(state: JSON) -> None:
    with pytest.raises(BadFoldState):
        Fold.restore(state)


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 2},
        {"chunk_count": "1"},
        {"draft": {}},
        {"draft": {"message": {}}},
        {"more": 1},
    ],
)
@pytest.mark.parametrize("name", sorted(FORMATS))
def test_a_state_of_another_shape_is_not_restored(name: str, changes: Any) -> None:
    with pytest.raises(BadFoldState):
        Fold.restore({**Fold.start(name).state(), **changes})


@pytest.mark.parametrize("field", ["texts", "reasonings"])
@pytest.mark.parametrize("index", [-1, 0, 1, 9])
def test_a_state_whose_text_grows_in_no_part_is_not_restored(field: str, index: int) -> None:
    state: Any = folded(AI_SDK, [{"type": "start-step"}]).state()
    state["draft"][field] = {"1": index}

    with pytest.raises(BadFoldState):
        Fold.restore(state)


def test_a_state_whose_call_is_shown_by_no_part_is_not_restored() -> None:
    state: Any = folded(AI_SDK, [{"type": "tool-input-start", "toolCallId": "c", "toolName": "t"}]).state()
    state["draft"]["calls"]["c"]["shown"] = 7

    with pytest.raises(BadFoldState):
        Fold.restore(state)


def test_a_state_of_an_unknown_format_says_so() -> None:
    with pytest.raises(UnknownFormat):
        Fold.restore({**Fold.start("text").state(), "format": "of-tomorrow"})
