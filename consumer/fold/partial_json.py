"""The value of JSON text that is still arriving, by the rule of the library that shows it.

Each library has its own rule (FOLDS section 9) and a reader must see what that library would show, so none of these
is "better" than another. Here: the AI SDK's `parsePartialJson`, and the strict parse that all of them build on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from enum import Enum, auto
from typing import ClassVar, Final, Literal, NamedTuple

from msgspec import UNSET, UnsetType

from consumer.fold.growing import rejoined
from consumer.plain import DEPTH_MAX, JSON, NotJSON, nests_within

JS_BLANKS: Final = (
    "\t\n\v\f\r \u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000\ufeff"
)
"""What `trim` of a JavaScript string takes away."""

_INT_EXACT_MAX: Final = 2**53


class PartialJSON(NamedTuple):
    """What was made of a text: UNSET if it has no value (yet), else plain data with numbers as JavaScript has them."""

    value: JSON | UnsetType
    state: Literal["successful-parse", "repaired-parse", "failed-parse"]


def parse_ai_sdk(text: str) -> PartialJSON:
    """The value that the AI SDK shows for a tool input of which `text` has arrived. See AISDKParser."""
    return AISDKParser().parse(text)


def parse_strict(text: str) -> JSON:
    """One JSON text as `JSON.parse` takes it, numbers as doubles.

    Raises NotJSON if it is anything else, or nests deeper than DEPTH_MAX.
    """
    decoder = _EXACT if _LONG_NUMBER.search(text) else _PLAIN
    try:
        value: JSON = decoder.decode(text)
    except (ValueError, RecursionError) as error:
        raise NotJSON(str(error)) from error
    if not nests_within(value, DEPTH_MAX):
        raise NotJSON(f"nested deeper than {DEPTH_MAX}")
    return _all_rejoined(value) if "\\u" in text and rejoined(text) is not text else value


def _all_rejoined(value: JSON) -> JSON:
    """The value with both halves of each pair joined in its texts, where one half was an escape and the other not."""
    if isinstance(value, dict):
        return {rejoined(key): _all_rejoined(child) for key, child in value.items()}
    if isinstance(value, list):
        return [_all_rejoined(child) for child in value]
    return rejoined(value) if isinstance(value, str) else value


def parse_secure(text: str) -> JSON:
    """The same without keys that could reach an object's prototype. Raises NotJSON for these too."""
    value = parse_strict(text)
    if _may_reach_prototype(text) and reaches_prototype(value):
        raise NotJSON("a key that could reach an object's prototype")
    return value


def reaches_prototype(value: JSON) -> bool:
    """Whether a `__proto__` key, or `constructor: {prototype: …}`, is anywhere in the value. Does not recurse."""
    nodes = [value]
    while nodes:
        node = nodes.pop()
        if isinstance(node, list):
            nodes += node
        elif isinstance(node, dict):
            constructor = node.get("constructor")
            if "__proto__" in node or (isinstance(constructor, dict) and "prototype" in constructor):
                return True
            nodes += node.values()
    return False


def _may_reach_prototype(text: str) -> bool:
    # An escape could spell any letter of such a key.
    return "__proto__" in text or "constructor" in text or "\\u00" in text


def _refuse(name: str) -> JSON:
    raise NotJSON(f"{name} is no JSON number")


def _number(digits: str) -> int | float:
    number = float(digits)
    return int(number) if abs(number) <= _INT_EXACT_MAX and number.is_integer() else number


# A call of ours for every integer is slow, and only long ones are other numbers as doubles.
_PLAIN: Final = json.JSONDecoder(parse_constant=_refuse, parse_float=_number)
_EXACT: Final = json.JSONDecoder(parse_constant=_refuse, parse_float=_number, parse_int=_number)
_LONG_NUMBER: Final = re.compile("[0-9]{16}")


class _In(Enum):
    """Where the scan stands. What has not begun a value yet waits for one; `_FOLLOWS` says what comes after it."""

    ROOT = auto()
    END = auto()
    STRING = auto()
    ESCAPE = auto()
    UNICODE_ESCAPE = auto()
    NUMBER = auto()
    LITERAL = auto()
    OBJECT_START = auto()
    OBJECT_KEY = auto()
    OBJECT_COLON = auto()
    OBJECT_VALUE = auto()
    OBJECT_NEXT = auto()
    OBJECT_COMMA = auto()
    ARRAY_START = auto()
    ARRAY_NEXT = auto()
    ARRAY_COMMA = auto()


_FOLLOWS: Final = {
    _In.ROOT: _In.END,
    _In.OBJECT_VALUE: _In.OBJECT_NEXT,
    _In.ARRAY_START: _In.ARRAY_NEXT,
    _In.ARRAY_COMMA: _In.ARRAY_NEXT,
}
_BEGINS: Final = {
    '"': _In.STRING,
    "{": _In.OBJECT_START,
    "[": _In.ARRAY_START,
    **dict.fromkeys("tfn", _In.LITERAL),
    **dict.fromkeys("-0123456789", _In.NUMBER),
}
_CLOSERS: Final = {
    _In.STRING: '"',
    **dict.fromkeys((mode for mode in _In if mode.name.startswith("OBJECT")), "}"),
    **dict.fromkeys((mode for mode in _In if mode.name.startswith("ARRAY")), "]"),
}
_LITERALS: Final = ("true", "false", "null")
_HEX: Final = frozenset("0123456789abcdefABCDEF")
_HEX_DIGITS: Final = 4
_OPEN_MAX: Final = DEPTH_MAX + 2
"""The start and one scalar are open beside lists and objects: no text that begins with more than this has a value."""
_STRING_RUN: Final = re.compile(r'[^"\\]*')


class AISDKParser:
    """The AI SDK's rule for one text that grows: parse it as it is; else cut it where it can be kept, and close it.

    The scan that finds the cut does not validate: what it does not expect it passes over, and the strict parse
    afterwards decides. Where it is lax (a backslash in a key, anything after an array's value) it is so as the
    reference is. It goes on where it stood, so only the parse itself looks at the whole text again.
    """

    __slots__ = ("_hex_digits", "_kept", "_literal_start", "_open", "_scanned", "_text")

    def __init__(self) -> None:
        self._text = ""
        self._scanned = 0
        self._open = [_In.ROOT]
        """What is open where the scan stands, the outermost first."""
        self._kept = 0
        """text[:_kept] can be kept: everything that is open can be closed there."""
        self._literal_start = 0
        self._hex_digits = 0

    def parse(self, text: str) -> PartialJSON:
        """The value of `text`, which begins with all that was given before. Never raises.

        A `__proto__` key, or a `constructor` that holds a `prototype`, counts as a failure. Not as the reference: a
        value that nests deeper than DEPTH_MAX is no value.
        """
        if len(self._open) > _OPEN_MAX:
            return PartialJSON(UNSET, "failed-parse")
        try:
            return PartialJSON(parse_secure(text), "successful-parse")
        except NotJSON:
            pass
        try:
            return PartialJSON(parse_secure(self._repaired(text)), "repaired-parse")
        except NotJSON:
            return PartialJSON(UNSET, "failed-parse")

    def _repaired(self, text: str) -> str:
        self._text = text
        at, end = self._scanned, len(text)
        while at < end and self._open[-1] is not _In.END and len(self._open) <= _OPEN_MAX:
            if self._open[-1] is _In.STRING:
                at = self._skip_string_run(at)
            if at < end:
                self._moves[self._open[-1]](self, text[at], at)
            at += 1
        self._scanned = end
        return text[: self._kept] + "".join(map(self._closer, reversed(self._open)))

    def _closer(self, mode: _In) -> str:
        if mode is not _In.LITERAL:
            return _CLOSERS.get(mode, "")
        begun = self._text[self._literal_start :]
        return next((word[len(begun) :] for word in _LITERALS if word.startswith(begun)), "")

    def _skip_string_run(self, at: int) -> int:
        run = _STRING_RUN.match(self._text, at)
        stop = run.end() if run else at
        self._kept = max(self._kept, stop)
        return stop

    def _keep(self, at: int) -> None:
        self._kept = at + 1

    def _pop(self, at: int) -> None:
        self._open.pop()
        self._keep(at)

    def _value(self, char: str, at: int) -> None:
        begun = _BEGINS.get(char)
        if begun is None:
            return
        self._open[-1] = _FOLLOWS[self._open[-1]]
        self._open.append(begun)
        self._literal_start = at
        if char != "-":
            self._keep(at)

    def _first_item(self, char: str, at: int) -> None:
        if char == "]":
            self._pop(at)
        else:
            self._value(char, at)

    def _string(self, char: str, at: int) -> None:
        if char == "\\":
            self._open.append(_In.ESCAPE)
        else:
            self._pop(at)  # the run before it was skipped, so this is the closing quote

    def _escape(self, char: str, at: int) -> None:
        if char == "u":
            self._open[-1] = _In.UNICODE_ESCAPE
            self._hex_digits = 0
        else:
            self._pop(at)

    def _unicode_escape(self, char: str, at: int) -> None:
        if char in _HEX:
            self._hex_digits += 1
            if self._hex_digits == _HEX_DIGITS:
                self._pop(at)

    def _number(self, char: str, at: int) -> None:
        if char in "0123456789":
            self._keep(at)
        elif char not in "eE-.":
            self._scalar_ended(char, at)

    def _literal(self, char: str, at: int) -> None:
        begun = self._text[self._literal_start : at + 1]
        if any(word.startswith(begun) for word in _LITERALS):
            self._keep(at)
        else:
            self._scalar_ended(char, at)

    def _scalar_ended(self, char: str, at: int) -> None:
        self._open.pop()
        if self._open[-1] is _In.OBJECT_NEXT:
            self._next_member(char, at)
        elif self._open[-1] is _In.ARRAY_NEXT and char in ",]":
            self._next_item(char, at)

    def _first_member(self, char: str, at: int) -> None:
        if char == "}":
            self._pop(at)
        else:
            self._key_start(char, at)

    def _key_start(self, char: str, _at: int) -> None:
        if char == '"':
            self._open[-1] = _In.OBJECT_KEY

    def _key(self, char: str, _at: int) -> None:
        if char == '"':
            self._open[-1] = _In.OBJECT_COLON

    def _colon(self, char: str, _at: int) -> None:
        if char == ":":
            self._open[-1] = _In.OBJECT_VALUE

    def _next_member(self, char: str, at: int) -> None:
        if char == ",":
            self._open[-1] = _In.OBJECT_COMMA
        elif char == "}":
            self._pop(at)

    def _next_item(self, char: str, at: int) -> None:
        if char == ",":
            self._open[-1] = _In.ARRAY_COMMA
        elif char == "]":
            self._pop(at)
        else:
            self._keep(at)

    _moves: ClassVar[dict[_In, Callable[[AISDKParser, str, int], None]]] = {
        _In.ROOT: _value,
        _In.STRING: _string,
        _In.ESCAPE: _escape,
        _In.UNICODE_ESCAPE: _unicode_escape,
        _In.NUMBER: _number,
        _In.LITERAL: _literal,
        _In.OBJECT_START: _first_member,
        _In.OBJECT_KEY: _key,
        _In.OBJECT_COLON: _colon,
        _In.OBJECT_VALUE: _value,
        _In.OBJECT_NEXT: _next_member,
        _In.OBJECT_COMMA: _key_start,
        _In.ARRAY_START: _first_item,
        _In.ARRAY_NEXT: _next_item,
        _In.ARRAY_COMMA: _value,
    }
