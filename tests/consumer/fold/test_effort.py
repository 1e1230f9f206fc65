"""What folding costs: in proportion to what came, however it was made up, and not more because much came before."""

import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Final

import pytest

from consumer.fold import FORMATS, Fold
from consumer.fold.growing import Growing
from consumer.plain import JSON, encode
from tests.consumer.fold.dictations import AI_SDK, DICTATIONS, TEXT, TOOL_DICTATIONS, Dictation

SPOKEN = [pytest.param(name, said, id=f"{name}, text") for name, said in DICTATIONS.items()]
SPOKEN += [pytest.param(name, said, id=f"{name}, tool input") for name, said in TOOL_DICTATIONS.items()]


def said_in_pieces(format_name: str, said: Dictation) -> Fold:
    folding = Fold.start(format_name)
    for chunk in [*said.opening, said.piece('["')]:
        folding.add(chunk)
    return folding


# -- without a clock ---------------------------------------------------------------------------------------------------


def operations(work: Callable[[], object]) -> int:
    """How many of Python's instructions this takes."""
    count = 0

    def traced(frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal count
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return traced

    before = sys.gettrace()
    sys.settrace(traced)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize(("format_name", "said"), SPOKEN)
def test_a_delta_takes_the_same_effort_however_long_the_message_is(format_name: str, said: Dictation) -> None:
    folding = said_in_pieces(format_name, said)
    chunk = said.piece("word ")
    first = operations(lambda: folding.add(chunk))
    for _ in range(3_000):
        folding.add(chunk)

    assert 0 < operations(lambda: folding.add(chunk)) <= first


@pytest.mark.parametrize(("format_name", "said"), SPOKEN)
def test_no_text_is_copied_before_somebody_looks_and_then_once(
    format_name: str, said: Dictation, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: list[int] = []
    text_of = Growing.text

    def counted(text: Growing) -> str:
        is_behind, told = text.behind, text_of(text)
        copied.append(len(told) if is_behind else 0)
        return told

    monkeypatch.setattr(Growing, "text", counted)
    folding = said_in_pieces(format_name, said)
    _ = folding.message
    copied.clear()
    for _ in range(1_000):
        folding.add(said.piece("word "))
    while_folding = sum(copied)
    _ = (folding.message, folding.message)

    assert while_folding == 0
    assert 5_000 <= sum(copied) <= 2 * 5_100  # a text, and the whole of which it is a part


# -- with a clock, and a bound that only the square of the length reaches ----------------------------------------------

COUNT: Final = 10_000
SECONDS_MAX: Final = 4.0
"""Linear, each of these takes a tenth of a second; quadratic, from half a minute up."""

CLIENT = "ag-ui-client"
TANSTACK = "ag-ui-tanstack"
ANTHROPIC = "anthropic-messages"
CHAT = "openai-chat"
RESPONSES = "openai-responses"


def each(*chunks: Callable[[int], Any]) -> Iterator[Any]:
    for number in range(COUNT):
        yield from (chunk(number) for chunk in chunks)


def _asking(number: int) -> Any:
    return {"type": "tool-approval-request", "toolCallId": f"c{number}", "approvalId": f"a{number}"}


def _called(number: int) -> Any:
    return {"type": "tool-input-available", "toolCallId": f"c{number}", "toolName": "t", "input": 1}


def _piece_of_input(text: str) -> Any:
    return {"type": "content_block_delta", "index": 0, "delta": {"type": "input_json_delta", "partial_json": text}}


def _client_call(number: int) -> Any:
    return {
        "type": "TOOL_CALL_START", "toolCallId": f"c{number}", "toolCallName": "t", "parentMessageId": "m"
    }  # fmt: skip


HOSTILE: dict[str, tuple[str, Callable[[], list[Any]]]] = {
    "metadata that gains a key each time": (
        AI_SDK,
        lambda: [*each(lambda number: {"type": "message-metadata", "messageMetadata": {"a": {f"k{number}": 1}}})],
    ),
    "approvals without end": (
        AI_SDK,
        lambda: [
            *each(_called, _asking),
            *each(
                lambda number: {"type": "tool-approval-response", "approvalId": f"a{number}", "approved": True}
            ),
        ],
    ),
    "a wide data part that changes": (
        AI_SDK,
        lambda: [
            {"type": "data-x", "id": "1", "data": 0, **{f"k{number}": 1 for number in range(50_000)}},
            *each(lambda number: {"type": "data-x", "id": "1", "data": number}),
        ],
    ),
    "texts that begin and never end": (
        AI_SDK,
        lambda: [*each(lambda number: {"type": "text-start", "id": f"{number}"})],
    ),
    "a call that is told anew in every step": (
        AI_SDK,
        lambda: [
            *each(
                lambda _: {"type": "start-step"},
                lambda _: {"type": "tool-input-start", "toolCallId": "c", "toolName": "t"},
                lambda _: {"type": "tool-input-delta", "toolCallId": "c", "inputTextDelta": "["},
                lambda _: {"type": "reset-step"},
            )
        ],
    ),
    "results of one message": (
        CLIENT,
        lambda: [
            {"type": "TEXT_MESSAGE_START", "messageId": "m"},
            *each(_client_call),
            *each(
                lambda number: {
                    "type": "TOOL_CALL_RESULT", "toolCallId": f"c{number}", "messageId": f"r{number}", "content": ""
                }
            ),
        ],
    ),
    "results that share an id": (
        CLIENT,
        lambda: [
            *each(lambda _: {"type": "TOOL_CALL_RESULT", "toolCallId": "c", "messageId": "r", "content": ""})
        ],
    ),
    "subagents that all talk": (
        CLIENT,
        lambda: [
            *each(
                lambda number: {
                    "type": "TEXT_MESSAGE_CHUNK", "messageId": f"m{number}", "subagentRunId": f"s{number}", "delta": "x"
                }
            ),
            *each(lambda number: {"type": "TEXT_MESSAGE_CHUNK", "messageId": f"m{number}", "delta": "x"}),
        ],
    ),
    "activities that replace one another": (
        CLIENT,
        lambda: [
            *each(
                lambda number: {
                    "type": "ACTIVITY_SNAPSHOT", "messageId": f"m{number % 2000}", "activityType": "P", "content": {}
                }
            )
        ],
    ),
    "a user's messages between thoughts": (
        TANSTACK,
        lambda: [
            *each(
                lambda number: {"type": "TEXT_MESSAGE_START", "messageId": f"u{number}", "role": "user"},
                lambda _: {"type": "REASONING_MESSAGE_CONTENT", "messageId": "r", "delta": "x"},
            )
        ],
    ),
    "runs that say nothing": (
        TANSTACK,
        lambda: [
            *each(lambda number: {"type": "TEXT_MESSAGE_START", "messageId": f"u{number}", "role": "user"}),
            *each(
                lambda number: {"type": "TEXT_MESSAGE_START", "messageId": f"b{number}"},
                lambda number: {"type": "TEXT_MESSAGE_CONTENT", "messageId": f"b{number}", "delta": " "},
                lambda _: {"type": "RUN_FINISHED", "runId": "r"},
            ),
        ],
    ),
    "metadata of a message that grows": (
        TANSTACK,
        lambda: [
            {"type": "TEXT_MESSAGE_START", "messageId": "m"},
            *each(lambda number: {"type": "TEXT_MESSAGE_END", "messageId": "m", "metadata": {f"k{number}": 1}}),
        ],
    ),
    "inputs that are stopped after each piece": (
        ANTHROPIC,
        lambda: [
            {"type": "message_start", "message": {"content": [], "usage": {}}},
            {"type": "content_block_start", "content_block": {"type": "tool_use", "id": "c"}},
            _piece_of_input("["),
            *each(
                lambda _: _piece_of_input("1,"),
                lambda _: {"type": "content_block_stop", "index": 0},
            )
        ][:3_000],
    ),
    "fields of a completion that it never had": (
        CHAT,
        lambda: [*each(lambda number: {"id": "1", "choices": [], f"k{number}": 1})],
    ),
    "items of a response": (
        RESPONSES,
        lambda: [
            {"type": "response.created", "response": {"id": "r", "output": []}},
            *each(
                lambda number: {
                    "type": "response.output_item.added",
                    "output_index": number,
                    "item": {"type": "message", "id": f"m{number}", "content": []},
                }
            ),
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_stream_made_to_be_slow_takes_time_in_proportion(kind: str) -> None:
    format_name, made = HOSTILE[kind]
    chunks = made()
    folding = Fold.start(format_name)

    start = time.thread_time()
    for chunk in chunks:
        folding.add(chunk)
    assert encode(folding.message)
    assert time.thread_time() - start < SECONDS_MAX


@pytest.mark.parametrize("opening", ["[", '{"a":', "[1,"])
def test_a_megabyte_of_tool_input_in_single_characters_is_folded_in_seconds_and_looked_at_now_and_then(
    opening: str,
) -> None:
    folding = Fold.start(AI_SDK)
    folding.add({"type": "tool-input-start", "toolCallId": "c", "toolName": "t"})
    pieces: list[JSON] = [{"type": "tool-input-delta", "toolCallId": "c", "inputTextDelta": char} for char in opening]

    start = time.thread_time()
    for number in range(1_000_000 // len(opening)):
        for piece in pieces:
            folding.add(piece)
        if number % 100_000 == 0:
            _ = folding.message
    message: Any = folding.message
    assert time.thread_time() - start < 3 * SECONDS_MAX
    assert len(message["parts"][0]["rawInput"]) >= 999_990


@pytest.mark.parametrize("format_name", sorted(TOOL_DICTATIONS))
@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_memory_stays_in_proportion_to_what_came(format_name: str, opening: str) -> None:
    said = TOOL_DICTATIONS[format_name]
    folding = said_in_pieces(format_name, said)
    piece = said.piece(opening)

    tracemalloc.start()
    try:
        for _ in range(5_000):
            folding.add(piece)
        assert folding.message
        assert folding.final() is None or encode(folding.final())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 400 * 5_000 * len(opening)


# -- values that are made to break -------------------------------------------------------------------------------------


def nested(depth: int) -> JSON:
    value: JSON = 0
    for _ in range(depth):
        value = {"a": [value]}
    return value


EVIL: Final[dict[str, JSON]] = {
    "deep": nested(2_000),
    "a megabyte": "x" * 1_000_000,
    "__proto__": {"__proto__": {"constructor": {"prototype": 1}}},
    "a huge integer": 10**400,
    "infinite": float("inf"),
    "not a number": float("nan"),
    "half a pair": "\ud83d",
    "a null byte": "\x00",
    "minus zero": -0.0,
}


@pytest.mark.parametrize("evil", EVIL)
@pytest.mark.parametrize("format_name", sorted(FORMATS))
def test_a_value_made_to_break_things_is_folded_or_refused_in_every_field(format_name: str, evil: str) -> None:
    value = EVIL[evil]
    said = DICTATIONS[format_name]
    good = [*said.opening, said.piece("a")]
    for at, chunk in enumerate(good):
        for bad in _with(chunk, value):
            folding = Fold.start(format_name)
            for one in [*good[:at], bad, *good[at:]]:
                folding.add(one)
            assert encode(folding.message)
            assert encode(Fold.restore(folding.state()).message) == encode(folding.message)


def _with(chunk: JSON, value: JSON) -> Iterator[JSON]:
    """The chunk with this value in the place of it, of each of its fields, and of theirs; and beside them."""
    yield value
    if isinstance(chunk, dict):
        yield {**chunk, "__proto__": value}
        for key, child in chunk.items():
            for changed in _with(child, value):
                yield {**chunk, key: changed}
    elif isinstance(chunk, list):
        for at, child in enumerate(chunk):
            for changed in _with(child, value):
                yield [*chunk[:at], changed, *chunk[at + 1 :]]


def test_plain_text_of_evil_texts_is_what_they_are() -> None:
    folding = Fold.start(TEXT)
    for piece in ("\x00", "__proto__", "\ud83d", "\ude00"):
        folding.add(piece)

    assert folding.message["parts"] == [{"type": "text", "text": "\x00__proto__😀"}]
