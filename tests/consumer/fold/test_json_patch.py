"""JSON Patch as AG-UI's client applies it: where a patch fails nothing of it is left."""

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given

from consumer.fold.json_patch import COPIED_SIZE_MAX, BadPatch, patched
from consumer.plain import DEPTH_MAX, JSON, encode
from tests.consumer.fold.chunks import plain_data


def op(name: str, path: str, **fields: JSON) -> JSON:
    return {"op": name, "path": path, **fields}


@pytest.mark.parametrize(
    ("document", "operation", "result"),
    [
        ({}, op("add", "/a", value=1), {"a": 1}),
        ({"a": 1}, op("add", "/a", value=2), {"a": 2}),
        ({"a": 1}, op("replace", "", value=[]), []),
        ({"a": 1}, op("remove", ""), None),
        ([1, 3], op("add", "/1", value=2), [1, 2, 3]),
        ([1], op("add", "/-", value=2), [1, 2]),
        ([1, 2], op("remove", "/0"), [2]),
        ({"a": {"b": {"b": 1}}}, op("replace", "/a/b/b", value=2), {"a": {"b": {"b": 2}}}),
        ({"a/b": {"~": 1}}, op("replace", "/a~1b/~0", value=2), {"a/b": {"~": 2}}),
        ({"a": [1], "b": 2}, op("move", "/a/0", **{"from": "/b"}), {"a": [2, 1]}),
        ({"a": [1]}, op("copy", "/b", **{"from": "/a"}), {"a": [1], "b": [1]}),
        ({"a": 1}, op("copy", "/b", **{"from": ""}), {"a": 1, "b": {"a": 1}}),
        ({"a": {"b": 1}}, op("move", "", **{"from": "/a"}), {"b": 1}),
        ({"a": [{"b": 1.0}]}, op("test", "/a", value=[{"b": 1}]), {"a": [{"b": 1.0}]}),
    ],
)
def test_an_operation_changes_the_document(document: JSON, operation: JSON, result: JSON) -> None:
    before = encode(document)

    assert patched(document, [operation]) == result
    assert encode(document) == before


@pytest.mark.parametrize(
    "operation",
    [
        None,
        [],
        {},
        op("rename", "/a"),
        {"op": "add", "value": 1},
        op("add", "a", value=1),
        op("add", "/c"),
        op("add", "/a/b/c", value=1),
        op("add", "/l/9", value=1),
        op("add", "/l/x", value=1),
        op("replace", "/c", value=1),
        op("replace", "/l/-", value=1),
        op("remove", "/c"),
        op("remove", "/l/01"),
        op("move", "/c"),
        op("move", "/c", **{"from": "/d"}),
        op("move", "/a/x", **{"from": ""}),
        op("move", "/a/x", **{"from": "/a"}),
        op("copy", "/c", **{"from": "/l/7"}),
        op("test", "/a", value=True),
        op("test", "/l", value=[1]),
        op("add", "/__proto__", value=1),
        op("add", "/constructor/prototype", value=1),
    ],
)
def test_a_patch_with_an_operation_that_fails_is_refused(operation: JSON) -> None:
    document: JSON = {"a": 1, "l": [1, 2], "constructor": {}}

    with pytest.raises(BadPatch):
        patched(document, [op("add", "/b", value=1), operation])
    assert document == {"a": 1, "l": [1, 2], "constructor": {}}


@given(plain_data, plain_data)
def test_any_json_is_a_patch_or_refused(document: JSON, patch: JSON) -> None:
    candidates: list[Any] = [patch, [patch], [{"op": "add", "path": "/a", "value": patch}]]
    for candidate in candidates:
        try:
            assert encode(patched(document, candidate))
        except BadPatch:
            continue


def grown(operations: Iterable[JSON]) -> tuple[JSON, str]:
    """A document that patches are applied to until one is refused, and why that was."""
    document: JSON = {"text": "x" * 1000}
    for operation in operations:
        try:
            document = patched(document, [operation])
        except BadPatch as error:
            return document, str(error)
    return document, ""


def test_patches_that_nest_ever_deeper_are_refused_in_time() -> None:
    document, why = grown(op("add", "/a" * depth, value={}) for depth in range(1, 2 * DEPTH_MAX))

    assert "deep" in why
    assert encode(document)


def test_copies_that_double_a_document_are_refused_in_time() -> None:
    document, why = grown(op("copy", f"/{number}", **{"from": ""}) for number in range(100))

    assert "large" in why
    assert len(encode(document)) < 2 * COPIED_SIZE_MAX
