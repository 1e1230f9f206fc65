"""How the AI SDK merges a message's metadata into what is there (FOLDS section 2.3).

Metadata may be any JSON. What looks odd below is what JavaScript does when a list or a string is spread as an object.
"""

from __future__ import annotations

from typing import Final

from consumer.fold.draft import FatalChunk
from consumer.plain import JSON, JSONObject

_SKIPPED: Final = frozenset({"__proto__", "constructor", "prototype"})


def merged(base: JSON, more: JSON) -> JSON:
    """`more` merged into `base`, neither of them changed. Null is nothing: then the other one comes back as it is.

    Objects are merged key by key, also inside; anything else inside them is replaced. Raises FatalChunk when
    something has to be merged into a string, a number or a boolean: the reference stops with a TypeError.
    """
    if more is None:
        return base
    return more if base is None else _merged(base, more)


def _merged(base: JSON, more: JSON) -> JSONObject:
    result = _spread(base)
    for key, value in _spread(more).items():
        if key in _SKIPPED:
            continue
        if not isinstance(base, (dict, list)):
            raise FatalChunk("bad-metadata", "metadata cannot be merged into a scalar")
        old = result.get(key)
        result[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


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
