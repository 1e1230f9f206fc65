"""Structured output in a TanStack message: JSON that arrives as text, and its value so far (FOLDS section 4)."""

from __future__ import annotations

from typing import Final

from msgspec import UNSET

from consumer.fold.growing import Growing
from consumer.fold.partial_json import JS_BLANKS
from consumer.fold.partial_json_descent import parse_tanstack
from consumer.fold.tanstack_messages import UIMessage, replace
from consumer.fold.tree import grow, plain

_SCALAR_CHARS_MAX: Final = 1_000
"""A structured output that is one number or literal is looked at after each delta, up to this length."""


def grow_structured(message: UIMessage, delta: str) -> None:
    """Append to the structured output. Its value waits until somebody looks, unless a part of it may have none."""
    part = message.structured or message.push({"type": "structured-output", "raw": ""})
    grow(part, "raw", delta)
    kept = {field: part[field] for field in ("raw", "partial", "reasoning") if field in part}
    replace(part, {**kept, "type": "structured-output", "status": "streaming"})
    if _may_fail(part["raw"]):
        settle_partial(message)


def _may_fail(raw: Growing) -> bool:
    """Whether the value may come and go as the text grows: that of a short number or word, not of an object or list."""
    start = raw.pieces[0] if len(raw.pieces[0]) > _SCALAR_CHARS_MAX else raw.text()
    return len(start) <= _SCALAR_CHARS_MAX and start.lstrip(JS_BLANKS)[:1] not in ("{", "[")


def settle_partial(message: UIMessage) -> None:
    """Bring the value of a structured output up to date; where a scalar has none, the last one stays."""
    part = message.structured
    raw = None if part is None else part.get("raw")
    if part is None or part.get("status") != "streaming" or type(raw) is not Growing:
        return
    text = raw.text()
    is_scalar = text[:_SCALAR_CHARS_MAX].lstrip(JS_BLANKS)[:1] not in ("{", "[")
    if is_scalar and len(text) > _SCALAR_CHARS_MAX:
        return
    value = parse_tanstack(text).value
    if value is not UNSET and value is not None:
        part["partial"] = value
    elif not is_scalar:
        part.pop("partial", None)  # it nests too deeply


def raw_of(message: UIMessage) -> str:
    """The text of it; empty if there is none."""
    raw = plain(message.structured.get("raw")) if message.structured else None
    return raw if isinstance(raw, str) else ""
