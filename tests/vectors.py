"""Compares our folds with what the reference implementations did: `python -m tests.vectors DIR`.

Every `*.jsonl` file in the folder is read, one vector a line, and each vector whose format is built is checked: the
message after every chunk, what readers are shown, where errors are and whether they are fatal. Prints a line for each
file and the first difference of each vector; exits 0 only if there was something to check and nothing differs.
"""

from __future__ import annotations

import base64
import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

from msgspec import UNSET

from consumer.fold import BadUIMessageStream, Fold, read_ui_message_stream
from consumer.fold.partial_json import PartialJSON, parse_ai_sdk
from consumer.fold.partial_json_descent import parse_openai, parse_tanstack
from consumer.fold.partial_json_tokens import parse_anthropic
from consumer.plain import JSON, decode, encode

Vector: TypeAlias = dict[str, Any]
Check: TypeAlias = Callable[[Vector], "Difference | None"]


class Difference(NamedTuple):
    where: str
    expected: object
    got: object

    def __str__(self) -> str:
        return f"{self.where}: expected {_shown(self.expected)}, got {_shown(self.got)}"


class Absent:
    def __repr__(self) -> str:
        return "nothing"


ABSENT: Final = Absent()
_SHOWN_CHARS: Final = 160


def _shown(value: object) -> str:
    text = repr(value) if isinstance(value, Absent) else json.dumps(value, default=repr)
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}…"


# -- comparing ---------------------------------------------------------------------------------------------------------


def first_difference(expected: object, got: object, where: str = "$") -> Difference | None:
    """Where two JSON values part, or None. Numbers are compared as doubles, as JavaScript has no others."""
    if isinstance(expected, dict) and isinstance(got, dict):
        return _first(
            first_difference(expected.get(key, ABSENT), got.get(key, ABSENT), f"{where}.{key}")
            for key in [*expected, *(key for key in got if key not in expected)]
        )
    if isinstance(expected, list) and isinstance(got, list) and len(expected) == len(got):
        return _first(
            first_difference(one, other, f"{where}[{index}]")
            for index, (one, other) in enumerate(zip(expected, got, strict=True))
        )
    return None if _equal(expected, got) else Difference(where, expected, got)


def _equal(expected: object, got: object) -> bool:
    if _is_number(expected) and _is_number(got):
        one, other = _double(expected), _double(got)
        return one == other or (math.isnan(one) and math.isnan(other))
    return type(expected) is type(got) and expected == got


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _double(number: Any) -> float:
    try:
        return float(number)
    except OverflowError:
        return math.copysign(math.inf, number)


def _first(differences: Iterator[Difference | None]) -> Difference | None:
    return next((difference for difference in differences if difference is not None), None)


def _view(message: JSON) -> JSON:
    """The message as whoever reads its JSON sees it."""
    return decode(encode(message))


# -- one check for each format -----------------------------------------------------------------------------------------


def check_ai_sdk(vector: Vector) -> Difference | None:
    """Every emission, every silent state, the errors and the end of a UI message stream."""
    return _first(_ai_sdk_differences(vector))


def _ai_sdk_differences(vector: Vector) -> Iterator[Difference | None]:
    folding = Fold.start(vector["format"], vector.get("initial"))
    last: object = None
    for index, (chunk, snapshot) in enumerate(zip(vector["chunks"], vector["snapshots"], strict=True)):
        where = f"after chunk {index}"
        emitted = folding.add(chunk)
        yield first_difference(snapshot is not None, emitted, f"{where}, emitted")
        last = last if snapshot is None else snapshot
        yield first_difference(last, _view(folding.emitted), f"{where}, emission $")
        silent = vector["silent_states"].get(str(index), last)
        if silent is not None:
            yield first_difference(silent, _view(folding.message), f"{where}, message $")
    yield first_difference(vector["final"], _view(folding.emitted), "at the end, emission $")
    final_state = vector.get("final_state", vector["final"])
    yield first_difference(final_state, _view(folding.message), "at the end, message $")
    yield first_difference(final_state, _view(_folded_unseen(vector)), "folded without a look in between, message $")
    yield first_difference(
        [[error["index"], error["fatal"]] for error in vector["errors"]],
        [[error.index, error.fatal] for error in folding.errors],
        "errors $",
    )
    yield first_difference(vector["finish_reason"], folding.finish_reason, "finish_reason")


def _folded_unseen(vector: Vector) -> JSON:
    folding = Fold.start(vector["format"], vector.get("initial"))
    for chunk in vector["chunks"]:
        folding.add(chunk)
    return folding.message


_EXTRAS: Final = frozenset({"parsed", "parsed_arguments", "parsed_output", "output_parsed"})
"""What the packages of OpenAI and Anthropic add for callers that asked for structured output. No fold does."""
_RANDOM_CALL_ID: Final = "<generated-call-id>"


_NULL_IF_EQUAL: Final = frozenset({"anthropic-messages", "openai-responses"})
"""Formats whose vectors show no snapshot where it equals the last one. Others show none where none was given out."""


def check_completion(vector: Vector) -> Difference | None:
    """Every snapshot, the error and the final result of a stream whose message grows as a whole."""
    return _first(_completion_differences(vector))


def _completion_differences(vector: Vector) -> Iterator[Difference | None]:
    folding = Fold.start(vector["format"])
    failed_at = vector["error"] and vector["error"]["index"]
    last: object = None
    for index, (chunk, snapshot) in enumerate(zip(vector["chunks"], vector["snapshots"], strict=True)):
        if is_unread(chunk):
            yield first_difference([None], [snapshot], f"chunk {index} is no chunk, snapshots $")
            if failed_at == index or _ends_stream(chunk):
                break
            continue
        emitted = folding.add(chunk)
        if index != failed_at and (snapshot is not None or vector["format"] not in _NULL_IF_EQUAL):
            yield first_difference(snapshot is not None, emitted, f"after chunk {index}, emitted")
        last = last if snapshot is None else _without_extras(snapshot)
        yield first_difference(last, _view(folding.emitted), f"after chunk {index} $")
        if vector["error"] is None or failed_at == "end" or index < failed_at:
            yield first_difference([], [error.index for error in folding.errors if error.fatal], "fatal errors $")
    if isinstance(failed_at, int) and not is_unread(vector["chunks"][failed_at]):
        yield first_difference([failed_at], [error.index for error in folding.errors if error.fatal], "fatal errors $")
    else:
        yield first_difference(_without_extras(vector["final"]), _view(folding.final()), "final $")


def is_unread(chunk: JSON) -> bool:
    """Whether this stands for text on the wire that the reference does not get as a chunk: its end, or no JSON."""
    return isinstance(chunk, dict) and "__raw" in chunk


def _ends_stream(chunk: JSON) -> bool:
    return isinstance(chunk, dict) and "[DONE]" in str(chunk["__raw"])


def _without_extras(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_extras(item) for item in value]
    if isinstance(value, dict):
        return {
            key: _without_extras(child)
            for key, child in value.items()
            if key not in _EXTRAS and child != _RANDOM_CALL_ID
        }
    return value


def check_ag_ui_client(vector: Vector) -> Difference | None:
    """The messages and the state after every event, and what a run that was interrupted waits for."""
    return _first(_ag_ui_client_differences(vector))


def _ag_ui_client_differences(vector: Vector) -> Iterator[Difference | None]:
    last = initial_of(vector) or {"messages": [], "state": {}}
    folding = Fold.start(vector["format"], last)
    for index, (event, snapshot) in enumerate(zip(vector["chunks"], vector["snapshots"], strict=True)):
        folding.add(event)
        last = {**last, **(snapshot or {})}
        got = _view(folding.message)
        yield first_difference(last, _without(got, "pendingInterrupts"), f"after event {index} $")
        if vector["error"] is None:
            yield first_difference(False, folding.failed, f"after event {index}, failed")  # noqa: FBT003  the value
    yield first_difference(vector["final"], _without(_view(folding.message), "pendingInterrupts"), "final $")
    interrupts = folding.message.get("pendingInterrupts", [])
    yield first_difference(vector["pending_interrupts"], interrupts, "pending_interrupts $")
    if vector["error"] is not None:
        yield first_difference(True, folding.failed, "failed")  # noqa: FBT003  the value


_FROZEN_TIME: Final = "2026-01-01T00:00:00.000Z"
"""What the vectors' clock stood at. A fold has no clock."""


def check_ag_ui_tanstack(vector: Vector) -> Difference | None:
    """The messages after every event, at the end of the stream, and what the processor knows before that."""
    return _first(_ag_ui_tanstack_differences(vector))


def _ag_ui_tanstack_differences(vector: Vector) -> Iterator[Difference | None]:
    last = vector.get("initial", [])
    folding = Fold.start(vector["format"], {"messages": last})
    for index, (event, snapshot) in enumerate(zip(vector["chunks"], vector["snapshots"], strict=True)):
        folding.add(event)
        last = last if snapshot is None else snapshot
        yield first_difference(_undated(last), _undated(_told(folding.message)), f"after event {index} $")
    yield first_difference(_processor_state(vector["state"]), _state_of(folding), "state $")
    yield first_difference(_undated(vector["final"]), _undated(_told(folding.final())), "final $")


def _told(message: Any) -> Any:
    return decode(encode(message["messages"]))


def _undated(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages without the date that the clock gave them."""
    return [_without(one, "createdAt") if one.get("createdAt") == _FROZEN_TIME else one for one in messages]


def _processor_state(expected: dict[str, Any]) -> dict[str, Any]:
    """Without the value of unfinished arguments, which only a caller's function gets to see."""
    calls = {key: _without(call, "parsedArguments", "index") for key, call in expected["toolCalls"].items()}
    return {**expected, "toolCalls": calls}


def _state_of(folding: Fold) -> dict[str, Any]:
    draft: Any = folding.state()["draft"]
    streams = draft["streams"].values()
    state: dict[str, Any] = {
        "content": "".join(stream["total"] for stream in streams),
        "thinking": "".join(text for stream in streams for text in stream["steps"].values()),
        "finishReason": draft["finish_reason"],
        "done": draft["is_done"],
        "toolCalls": {key: {"id": key, **call} for stream in streams for key, call in stream["calls"].items()},
        "toolCallOrder": [key for stream in streams for key in stream["calls"]],
    }
    return state


def initial_of(vector: Vector) -> Any:
    """What the vector starts from, as its format's fold takes it."""
    if vector["format"] == "ag-ui-client" and "initial" in vector:
        return {"messages": vector["initial"], "state": vector.get("initial_state", {})}
    initial = vector.get("initial")
    return {"messages": initial} if isinstance(initial, list) else initial


def _without(message: Any, *fields: str) -> Any:
    return {field: value for field, value in message.items() if field not in fields}


_SSE_ERRORS: Final = {"AI_JSONParseError": "not-json", "AI_TypeValidationError": "not-a-chunk"}


def check_ai_sdk_sse(vector: Vector) -> Difference | None:
    """The chunks in a response body up to its end or first error, and which error that is."""
    chunks: list[JSON] = []
    error = None
    try:
        for chunk in read_ui_message_stream(map(base64.b64decode, vector["wire_base64"])):
            chunks.append(chunk)  # noqa: PERF402  those before the error count
    except BadUIMessageStream as failure:
        error = failure.code
    expected = vector["error"] and _SSE_ERRORS[vector["error"]["name"]]
    return first_difference(vector["chunks"], chunks, "chunks $") or first_difference(expected, error, "error")


PARSERS: Final[dict[str, Callable[[str], PartialJSON]]] = {
    "ai": parse_ai_sdk,
    "tanstack": parse_tanstack,
    "anthropic": parse_anthropic,
    "openai": parse_openai,
}
"""By the name of their column."""


def check_partial_json(vector: Vector) -> Difference | None:
    """What each parser that is built makes of every listed prefix of a text."""
    text = vector["text"].encode("utf-16-le", "surrogatepass")
    return _first(
        _parsed_difference(row[column], parse(_prefix(text, row[0])), f"{name}, first {row[0]} units")
        for column, name in enumerate(vector["columns"])
        for parse in filter(None, [PARSERS.get(name)])
        for row in vector["prefixes"]
    )


def _prefix(text: bytes, units: int) -> str:
    return text[: 2 * units].decode("utf-16-le", "surrogatepass")


def _parsed_difference(expected: dict[str, Any], parsed: PartialJSON, where: str) -> Difference | None:
    value = ABSENT if parsed.value is UNSET else parsed.value
    expected_value = _with_numbers(expected.get("v", ABSENT))
    return first_difference(expected_value, value, f"{where} $") or first_difference(
        expected.get("state", parsed.state), parsed.state, f"{where}, state"
    )


def _with_numbers(value: Any) -> Any:
    """The value with numbers in the place of what stands for those that JSON cannot hold."""
    if isinstance(value, list):
        return [_with_numbers(item) for item in value]
    if isinstance(value, dict):
        if value.keys() == {"$num"}:
            return float(value["$num"])
        return {key: _with_numbers(child) for key, child in value.items()}
    return value


CHECKS: Final[dict[str, Check]] = {
    "ag-ui-client": check_ag_ui_client,
    "ag-ui-tanstack": check_ag_ui_tanstack,
    "ai-sdk-ui-message-stream": check_ai_sdk,
    "ai-sdk-sse": check_ai_sdk_sse,
    "anthropic-messages": check_completion,
    "openai-chat": check_completion,
    "openai-responses": check_completion,
    "partial-json": check_partial_json,
}
"""What is built, by the `format` of a vector."""


# -- the folder and the report -----------------------------------------------------------------------------------------


def vectors_in(file: Path) -> Iterator[Vector]:
    with file.open("rb") as lines:
        for line in lines:
            yield json.loads(line)


def name_of(vector: Vector) -> str:
    return str(vector.get("name") or vector.get("text"))


def check(vector: Vector) -> Difference | None:
    """The first difference, or None. A fold that breaks differs; a format that is not built raises KeyError."""
    run = CHECKS[vector["format"]]
    try:
        return run(vector)
    except Exception as error:  # noqa: BLE001  one broken vector must not hide the others
        return Difference("raised", ABSENT, error)


def report(folder: Path) -> tuple[int, int]:
    """Print what was found. How many vectors were checked, and how many of them differ."""
    checked = differing = 0
    for file in sorted(folder.glob("*.jsonl")):
        counts = _report_file(file)
        checked += counts["checked"]
        differing += counts["differ"]
    print(f"{checked} vectors, {differing} differ")
    return checked, differing


def _report_file(file: Path) -> Counter[str]:
    counts: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    lines: list[str] = []
    for vector in vectors_in(file):
        if vector.get("format") not in CHECKS:
            skipped[str(vector.get("format"))] += 1
            continue
        counts["checked"] += 1
        difference = check(vector)
        if difference is not None:
            counts["differ"] += 1
            lines.append(f"  {name_of(vector)}: {difference}")
    if counts["checked"]:
        print(f"{file.name}: {counts['checked']} vectors, {counts['differ']} differ")
    for name, count in skipped.items():
        print(f"{file.name}: {count} vectors skipped, format {name} is not built")
    print("\n".join(lines), end="\n" if lines else "")
    return counts


def main() -> int:
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        print("usage: python -m tests.vectors DIR", file=sys.stderr)
        return 2
    checked, differing = report(Path(sys.argv[1]))
    return 0 if checked and not differing else 1


if __name__ == "__main__":
    sys.exit(main())
