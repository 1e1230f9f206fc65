"""JSON Patch (RFC 6902) as `fast-json-patch` applies it with validation: all of a patch, or nothing.

Where that package is laxer than the RFC so is this: an index behind the end of a list is its end for `move` and
`copy`, and a number may have leading zeros where a list grows. Keys that reach an object's prototype are refused.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, Final

from consumer.fold.tree import Items, Object, own_list, own_object, plain
from consumer.plain import DEPTH_MAX, JSON, JSONObject, nests_within

COPIED_SIZE_MAX: Final = 4_000_000
"""Of a document that copies were made in: nodes and characters. A handful of copies can double it a hundred times."""

_LEVELS_ABOVE: Final = 8
"""How deep in a stored fold a document is. What is patched stays that much less deep than DEPTH_MAX."""


class BadPatch(ValueError):
    """This cannot be applied to the document, which stays as it was."""


def patched(document: JSON, patch: JSON) -> JSON:
    """The document after all operations. It shares with the old one what they did not touch. Raises BadPatch."""
    if not isinstance(patch, list):
        raise BadPatch("a patch is a list of operations")
    holder = Object(root=document)
    for operation in patch:
        _apply(holder, operation)
    result: JSON = plain(holder["root"])
    if any(isinstance(operation, dict) and operation["op"] == "copy" for operation in patch):
        _check_size(result)
    return result


def _apply(holder: Object, operation: Any) -> None:
    if not isinstance(operation, dict):
        raise BadPatch("an operation is an object")
    op, path = operation.get("op"), operation.get("path")
    if not isinstance(op, str) or op not in _OPERATIONS:
        raise BadPatch("`op` is none of RFC 6902")
    if op in _WITH_VALUE and "value" not in operation:
        raise BadPatch(f"`{op}` has a `value`")
    keys = _keys(path)
    if keys or op != "remove":
        _OPERATIONS[op](holder, keys, operation)
    else:
        holder["root"] = None


def _keys(pointer: Any) -> list[str]:
    if not isinstance(pointer, str) or not (pointer == "" or pointer.startswith("/")):
        raise BadPatch("a pointer is empty or begins with a slash")
    raw = pointer.split("/")
    if "__proto__" in raw or ("constructor", "prototype") in itertools.pairwise(raw):
        raise BadPatch("a key that could reach an object's prototype")
    return [key.replace("~1", "/").replace("~0", "~") for key in raw[1:]]


# -- operations --------------------------------------------------------------------------------------------------------


def _add(holder: Object, keys: list[str], operation: JSONObject) -> None:
    _put(holder, keys, operation["value"], index_may_exceed=False)


def _replace(holder: Object, keys: list[str], operation: JSONObject) -> None:
    _value_at(holder, keys)
    if not keys:
        _put(holder, keys, operation["value"], index_may_exceed=False)
        return
    _check_depth(operation["value"], keys)
    parent: Any = _parent(holder, keys)
    parent[_existing(parent, keys[-1])] = operation["value"]


def _remove(holder: Object, keys: list[str], _operation: JSONObject) -> None:
    _value_at(holder, keys)
    parent: Any = _parent(holder, keys)
    del parent[_existing(parent, keys[-1])]


def _test(holder: Object, keys: list[str], operation: JSONObject) -> None:
    if not _equal(plain(_value_at(holder, keys)), operation["value"]):
        raise BadPatch("a test failed")


def _copy(holder: Object, keys: list[str], operation: JSONObject) -> None:
    value = plain(_value_at(holder, _keys(operation.get("from"))))
    _put(holder, keys, value, index_may_exceed=True)


def _move(holder: Object, keys: list[str], operation: JSONObject) -> None:
    source = _keys(operation.get("from"))
    value = plain(_value_at(holder, source))
    if keys:
        if not source:
            raise BadPatch("the whole document cannot become a part of itself")
        _parent(holder, keys)  # which must be there before the source is taken away
        _remove(holder, source, operation)
    _put(holder, keys, value, index_may_exceed=True)


_OPERATIONS: Final[dict[str, Callable[[Object, list[str], JSONObject], None]]] = {
    "add": _add,
    "remove": _remove,
    "replace": _replace,
    "move": _move,
    "copy": _copy,
    "test": _test,
}
_WITH_VALUE: Final = frozenset({"add", "replace", "test"})


# -- places ------------------------------------------------------------------------------------------------------------


def _value_at(holder: Object, keys: list[str]) -> Any:
    """What is there. Raises BadPatch if nothing is."""
    node = holder["root"]
    for key in keys:
        node = node[_existing(node, key)]
    return node


def _parent(holder: Object, keys: list[str]) -> Object | Items:
    """The object or list that the last key is for, to be edited."""
    parent = _owned(holder, "root")
    for key in keys[:-1]:
        parent = _owned(parent, _existing(parent, key))
    return parent


def _owned(holder: Any, key: str | int) -> Object | Items:
    value = holder[key]
    if isinstance(value, dict):
        return own_object(holder, key)
    if isinstance(value, list):
        return own_list(holder, key)
    raise BadPatch("no object or list on the way")


def _existing(node: Any, key: str) -> str | int:
    if isinstance(node, dict) and key in node:
        return key
    if isinstance(node, list) and _is_index(key) and str(int(key)) == key and int(key) < len(node):
        return int(key)
    raise BadPatch("nothing is at this path")


def _is_index(key: str) -> bool:
    return len(key) < _INDEX_DIGITS_MAX and key.isascii() and key.isdigit()


_INDEX_DIGITS_MAX: Final = 10


def _put(holder: Object, keys: list[str], value: JSON, *, index_may_exceed: bool) -> None:
    _check_depth(value, keys)
    if not keys:
        holder["root"] = value
        return
    parent, key = _parent(holder, keys), keys[-1]
    if isinstance(parent, dict):
        parent[key] = value
        return
    if key not in {"-", ""} and not _is_index(key):
        raise BadPatch("an index of a list is a number")
    index = len(parent) if key == "-" else int(key or 0)
    if index > len(parent) and not index_may_exceed:
        raise BadPatch("an index behind the end of a list")
    parent.insert(index, value)


def _check_depth(value: JSON, keys: list[str]) -> None:
    if not nests_within(value, DEPTH_MAX - _LEVELS_ABOVE - len(keys)):
        raise BadPatch("nested too deeply")


def _check_size(document: JSON) -> None:
    size = 0
    nodes = [document]
    while nodes:
        node = nodes.pop()
        size += 1 + (len(node) if isinstance(node, (str, list, dict)) else 0)
        if size > COPIED_SIZE_MAX:
            raise BadPatch("copies have made the document too large")
        nodes += node if isinstance(node, list) else node.values() if isinstance(node, dict) else ()


def _equal(one: JSON, other: JSON) -> bool:
    pairs = [(one, other)]
    while pairs:
        left, right = pairs.pop()
        if isinstance(left, dict) and isinstance(right, dict) and left.keys() == right.keys():
            pairs += [(left[key], right[key]) for key in left]
        elif isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
            pairs += zip(left, right, strict=True)
        elif isinstance(left, (dict, list)) or isinstance(left, bool) != isinstance(right, bool) or left != right:
            return False
    return True
