"""How the AI SDK merges a message's metadata into what is there (FOLDS section 2.3).

Metadata may be any JSON. What looks odd below is what JavaScript does when a list or a string is spread as an object.
"""

from __future__ import annotations

from typing import Final

from consumer.fold.draft import FatalChunk
from consumer.fold.tree import Object, own_object
from consumer.plain import JSON, JSONObject

_SKIPPED: Final = frozenset({"__proto__", "constructor", "prototype"})


def merge(message: Object, more: JSON) -> None:
    """`more` merged into the metadata of the message. Null is nothing; where there was none, `more` is taken whole.

    Objects are merged key by key, also inside; anything else inside them is replaced. Raises FatalChunk when
    something has to be merged into a string, a number or a boolean: the reference stops with a TypeError.
    """
    base = message.get("metadata")
    if base is None:
        message["metadata"] = more
    elif more is not None:
        _merge_into(_base_of(message, base, _spread(more)), _spread(more))


def _base_of(message: Object, base: JSON, more: JSONObject) -> Object:
    if isinstance(base, dict):
        return own_object(message, "metadata")
    if not isinstance(base, list) and not _SKIPPED.issuperset(more):
        raise FatalChunk("bad-metadata", "metadata cannot be merged into a scalar")
    spread = message["metadata"] = Object(_spread(base))
    return spread


def _merge_into(base: Object, more: JSONObject) -> None:
    for key, value in more.items():
        if key in _SKIPPED:
            continue
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            _merge_into(own_object(base, key), value)
        else:
            base[key] = value


def _spread(value: JSON) -> JSONObject:
    """The own properties of a value, as `{...value}` has them in JavaScript."""
    if isinstance(value, dict):
        return dict(value)
    if isinstance(value, list):
        return {str(index): item for index, item in enumerate(value)}
    if isinstance(value, str):
        return {str(index): unit for index, unit in enumerate(_utf16_units(value))}
    return {}


def _utf16_units(text: str) -> list[str]:
    units = text.encode("utf-16-le", "surrogatepass")
    return [chr(int.from_bytes(units[at : at + 2], "little")) for at in range(0, len(units), 2)]
