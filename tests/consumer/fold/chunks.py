"""Chunks for properties: those of the vectors, those that are nearly right, and JSON that is no chunk at all."""

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from consumer.fold import FORMATS
from consumer.plain import JSON
from tests.consumer.fold.dictations import AI_SDK, TEXT
from tests.vectors import Vector, is_unread, vectors_in

FOLDER: Final = Path(os.environ.get("STREAMFOLD_VECTORS", Path(__file__).parents[2] / "data"))
"""Where the vectors are; the environment can name another folder."""


def vectors(format_name: str) -> Iterator[Vector]:
    """All vectors of one format in the folder."""
    for file in sorted(FOLDER.glob("*.jsonl")):
        yield from (vector for vector in vectors_in(file) if vector.get("format") == format_name)


_SCALARS: Final = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
_KEYS: Final = st.sampled_from(["a", "b", "__proto__", "constructor", "prototype"]) | st.text(max_size=3)

texts: Final = st.text(max_size=8) | st.sampled_from(['{"a":[1,', "\ud83d", "\ude00", "\\u00", '"x', "-", "tr", "]}"])
plain_data: Final[SearchStrategy[JSON]] = st.recursive(
    _SCALARS | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=3),
    max_leaves=8,
)

_IDS: Final = st.sampled_from(["1", "2", "", "__proto__"])
_FIELDS: Final[dict[str, SearchStrategy[JSON]]] = {
    "id": _IDS,
    "delta": texts,
    "toolCallId": _IDS,
    "toolName": st.sampled_from(["search", "run-code"]),
    "inputTextDelta": texts,
    "approvalId": _IDS,
    "messageId": st.sampled_from(["m1", "m2"]),
    "dynamic": st.booleans(),
    "transient": st.booleans(),
    "inputEncoding": st.sampled_from(["json", "text"]),
    "finishReason": st.sampled_from(["stop", "length"]),
    "errorText": st.just("overloaded"),
    **dict.fromkeys(
        ("data", "input", "output", "messageMetadata", "providerMetadata", "toolMetadata", "title", "citations"),
        plain_data,
    ),
}
_TYPES: Final = st.sampled_from(
    [
        *(f"{kind}-{move}" for kind in ("text", "reasoning") for move in ("start", "delta", "end")),
        *(f"tool-input-{move}" for move in ("start", "delta", "available", "error")),
        *(f"tool-output-{result}" for result in ("available", "error", "denied")),
        *("tool-approval-request", "tool-approval-response", "start", "finish", "message-metadata"),
        *("start-step", "finish-step", "reset-step", "data-x", "data-y", "error", "abort", "file", "custom"),
        *("source-url", "source-document", "steering-message", "of-tomorrow"),
    ]
)
good_chunks: Final[SearchStrategy[JSON]] = st.fixed_dictionaries({"type": _TYPES, **_FIELDS})
"""Each field is of the right type and all are there; most are not for this type, and ids need not fit."""

_nearly_chunks: Final[SearchStrategy[JSON]] = st.builds(
    lambda kind, fields, wrong: {**fields, **wrong, **kind},
    st.fixed_dictionaries({}, optional={"type": _TYPES | plain_data}),
    st.fixed_dictionaries({}, optional=_FIELDS),
    st.dictionaries(st.sampled_from(sorted(_FIELDS)), plain_data, max_size=2),
)
any_json: Final[SearchStrategy[JSON]] = _nearly_chunks | plain_data


# -- chunks of every format --------------------------------------------------------------------------------------------

VECTOR_FORMATS: Final = tuple(sorted(set(FORMATS) - {TEXT}))
formats: Final = st.sampled_from(sorted(FORMATS))


@cache
def sequences(format_name: str) -> tuple[tuple[JSON, ...], ...]:
    """The chunks of each vector of a format."""
    return tuple(
        tuple(chunk for chunk in vector["chunks"] if not is_unread(chunk)) or (None,) for vector in vectors(format_name)
    )


def chunks_of(format_name: str, max_size: int) -> SearchStrategy[list[JSON]]:
    """Chunks that a format knows, in an order that need not make sense."""
    if format_name == TEXT:
        return st.lists(texts, max_size=max_size)
    mixed = st.sampled_from(sequences(format_name)).flatmap(lambda known: _some_of(known, max_size))
    return mixed | st.lists(good_chunks, max_size=max_size) if format_name == AI_SDK else mixed


def _some_of(known: tuple[JSON, ...], max_size: int) -> SearchStrategy[list[JSON]]:
    """All up to a point, or any in any order, with or without others that are only nearly right."""
    right = st.sampled_from(known)
    return (
        st.integers(0, min(len(known), max_size)).map(lambda count: [*known[:count]])
        | st.lists(right, max_size=max_size)
        | st.lists(right | right.flatmap(_nearly), max_size=max_size)
    )


def _nearly(chunk: JSON) -> SearchStrategy[JSON]:
    """The chunk with something else in one place."""
    if isinstance(chunk, dict) and chunk:
        inside = st.sampled_from(sorted(chunk)).flatmap(
            lambda key: _nearly(chunk[key]).map(lambda value: {**chunk, key: value})
        )
        without = st.sampled_from(sorted(chunk)).map(lambda key: {k: chunk[k] for k in chunk if k != key})
        return inside | inside | without | plain_data
    if isinstance(chunk, list) and chunk:
        inside_list = st.integers(0, len(chunk) - 1).flatmap(
            lambda at: _nearly(chunk[at]).map(lambda value: [*chunk[:at], value, *chunk[at + 1 :]])
        )
        return inside_list | inside_list | plain_data
    return plain_data


def format_and_chunks(max_size: int = 25) -> SearchStrategy[tuple[str, list[JSON]]]:
    """A format, and chunks for it of all kinds: right ones, nearly right ones, and JSON that is no chunk."""
    return formats.flatmap(
        lambda name: st.tuples(
            st.just(name), chunks_of(name, max_size) | st.lists(good_chunks | any_json, max_size=max_size)
        )
    )
