"""A result in the making: a tree of objects and lists that are edited in place, with texts in it that grow.

Formats whose result is not one flat list of parts keep it so. What came in a chunk becomes part of the tree as it is
and is never edited: where the tree has to change, `own_object` and `own_list` first put a copy of the draft's own
there, one level deep. `plain` gives the tree as data that stays as it is while the tree goes on. Because ownership is
found out on the way, a tree that was stored as plain data is gone on with by wrapping its root.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

from consumer.fold.growing import Growing
from consumer.plain import JSON

Key: TypeAlias = str | int


class Object(dict[str, Any]):
    """An object that the draft owns. Its values are plain data that it does not own, or nodes of the tree."""

    __slots__ = ()


class Items(list[Any]):
    """A list that the draft owns, likewise."""

    __slots__ = ()


def own_object(holder: Any, key: Key) -> Object:
    """The object at `key`, to be edited. Where there is none, an empty one is put in the place of what is there."""
    value = _at(holder, key)
    if type(value) is not Object:
        value = holder[key] = Object(value if isinstance(value, dict) else {})
    return value


def own_list(holder: Any, key: Key) -> Items:
    """The list at `key`, to be edited. Where there is none, an empty one is put in the place of what is there."""
    value = _at(holder, key)
    if type(value) is not Items:
        value = holder[key] = Items(value if isinstance(value, list) else ())
    return value


def grow(holder: Any, key: Key, delta: str) -> None:
    """Append to the text at `key`, in time that does not depend on its length. What is no text is replaced."""
    value = _at(holder, key)
    if type(value) is not Growing:
        value = holder[key] = Growing(-1, value if isinstance(value, str) else "")
    value.pieces.append(delta)


def text_at(holder: Any, key: Key) -> str | None:
    """The text at `key`; None if something else or nothing is there."""
    value = _at(holder, key)
    if type(value) is Growing:
        return value.text()
    return value if isinstance(value, str) else None


def plain(node: Any) -> Any:
    """The tree from this node on as plain data. Costs the nodes that the draft owns, and the texts that have grown."""
    kind = type(node)
    if kind is Growing:
        return node.text()
    if kind is Object:
        fields = {}
        for key, value in node.items():  # not a comprehension, which would take a second frame for each level
            fields[key] = plain(value) if type(value) in _OWN else value
        return fields
    if kind is Items:
        items = []
        for value in node:
            items.append(plain(value) if type(value) in _OWN else value)  # noqa: PERF401  as above
        return items
    return node


_OWN: Final = frozenset({Growing, Items, Object})


def _at(holder: Any, key: Key) -> Any:
    try:
        return holder[key]
    except KeyError:
        return None


def fill_to(items: Items, length: int) -> None:
    """Put nulls at the end of the list until it has this length: a hole of a JavaScript list is null in JSON."""
    items.extend([None] * (length - len(items)))


def array_index(value: JSON) -> int | None:
    """A number as JavaScript takes it for an index of a list; None for all others, and for what is no number."""
    if type(value) is int:
        return value if value >= 0 else None
    return int(value) if isinstance(value, float) and value.is_integer() and value >= 0 else None
