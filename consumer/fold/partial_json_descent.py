"""The value of JSON text that is still arriving, by `partial-json`, which TanStack and OpenAI use (FOLDS section 9).

A descent over the first value in the text; what follows it is not looked at. An object or list in which anything fails
is as it was until then, and what holds it goes on behind the failure. The reference recurses and throws; here the open
objects and lists are on a stack, so that no text is too deep for it.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Final

from msgspec import UNSET

from consumer.fold.partial_json import JS_BLANKS, PartialJSON, parse_strict
from consumer.plain import DEPTH_MAX, JSON, NotJSON

_SKIPPED: Final = re.compile(r"[ \n\r\t]*")
_STRING_REST: Final = re.compile(r'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_NUMBER_REST: Final = re.compile(r"[^,\]}]*")
_WORDS: Final[tuple[tuple[str, JSON], ...]] = (
    ("null", None),
    ("true", True),
    ("false", False),
    ("Infinity", math.inf),
    ("-Infinity", -math.inf),
    ("NaN", math.nan),
)


def parse_tanstack(text: str) -> PartialJSON:
    """The value that TanStack shows for JSON of which `text` has arrived; UNSET where it has none.

    Not as the reference: a value that nests deeper than DEPTH_MAX is no value.
    """
    return _parsed(text, _TanStackParser)


def parse_openai(text: str) -> PartialJSON:
    """The value that OpenAI's package shows for JSON of which `text` has arrived; UNSET where it throws.

    Not as the reference: a value that nests deeper than DEPTH_MAX is no value.
    """
    return _parsed(text, _OpenAIParser)


def _parsed(text: str, parser: Callable[[str], _Parser]) -> PartialJSON:
    try:
        return PartialJSON(parser(text.strip(JS_BLANKS)).parse(), "repaired-parse")
    except (NotJSON, _TooDeep):
        return PartialJSON(UNSET, "failed-parse")


class _TooDeep(Exception):
    """Unlike all else this does not leave what was read until then."""


class _Parser(ABC):
    """One parse. Where the two users of the rule differ there is a method of its own."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._open: list[tuple[Any, str | None]] = []
        """The objects and lists around where the scan stands, the outermost first. What is read next goes into the
        last of them; into an object under the key that is kept with it."""

    def parse(self) -> JSON:
        """Raises NotJSON if the text has no value."""
        value: Any = self._begun()
        while self._open:
            holder, key = self._open[-1]
            if value is not UNSET:
                self._put(holder, key, value)
            value = self._continued(holder)
        result: JSON = value
        return result

    def _put(self, holder: Any, key: str | None, value: Any) -> None:
        if key is None:
            holder.append(value)
        else:
            self._set(holder, key, value)
        self._skip_blanks()
        if self._next() == ",":
            self._at += 1

    def _set(self, holder: dict[str, JSON], key: str, value: JSON) -> None:
        holder[key] = value

    def _continued(self, holder: Any) -> Any:
        """The next value in the object or list, or that itself when it ends or fails; UNSET if one has been opened."""
        try:
            if self._next() == ("}" if isinstance(holder, dict) else "]"):
                self._at += 1
                return self._closed()
            if isinstance(holder, dict):
                self._open[-1] = (holder, self._key())
            return self._begun()
        except NotJSON:
            return self._closed()

    def _closed(self) -> Any:
        return self._open.pop()[0]

    def _key(self) -> str:
        self._skip_blanks()
        if self._at >= len(self._text):
            raise NotJSON("no key")
        key = self._string()
        self._skip_blanks()
        self._at += 1  # whatever it is, it stands where a colon belongs
        return key

    def _begun(self) -> Any:
        """A value, or UNSET if that is an object or list, which is open now. Raises NotJSON if there is none."""
        self._skip_blanks()
        char = self._next()
        if char == "":
            raise NotJSON("the text ends")
        if char == '"':
            return self._string()
        if char in "{[":
            return self._opened(char)
        word = self._word()
        return self._number() if word is UNSET else word

    def _opened(self, char: str) -> Any:
        if len(self._open) == DEPTH_MAX:
            raise _TooDeep
        self._at += 1
        if char == "[":
            self._open.append(([], None))
        else:
            self._open.append(({}, ""))
            self._skip_blanks()
        return UNSET

    def _string(self) -> str:
        """The string that begins here. A key may begin with anything; then it is none, but the scan has moved on."""
        start = self._at
        rest = _STRING_REST.match(self._text, start + 1)
        self._at = rest.end() if rest else start + 1
        begun, is_closed = self._text[start : self._at], self._next() == '"'
        self._at = self._at + 1 if is_closed else len(self._text)
        if not begun.startswith('"'):
            raise NotJSON("no string")
        try:
            return _as_string(begun + '"')
        except NotJSON:
            if is_closed:
                raise
            return _as_string(self._text[start : max(self._text.rfind("\\"), 0)] + '"')

    def _word(self) -> Any:
        rest = self._text[self._at : self._at + 9]
        for word, value in _WORDS:
            is_cut = len(rest) < len(word) and word.startswith(rest) and rest != "-"
            if is_cut or rest.startswith(word):
                self._at += len(word)
                return value
        return UNSET

    def _number(self) -> JSON:
        """Numbers run to the next delimiter; at the top, to the end of the text."""
        start = self._at
        if start == 0:
            return self._top_number()
        self._at += self._next() == "-"
        rest = _NUMBER_REST.match(self._text, self._at)
        self._at = rest.end() if rest else self._at
        self._check_ended()
        number = self._text[start : self._at]
        try:
            return parse_strict(number)
        except NotJSON:
            return parse_strict(number[: max(self._exponent_of(number, start), 0)])

    def _check_ended(self) -> None:  # noqa: B027 -- not abstract: a parser that does not say lets it
        """Raises NotJSON if a number may not touch the end of the text."""

    @abstractmethod
    def _top_number(self) -> JSON:
        """The number that is all of the text."""

    @abstractmethod
    def _exponent_of(self, number: str, start: int) -> int:
        """Where a number that does not parse is cut."""

    def _next(self) -> str:
        return self._text[self._at : self._at + 1]

    def _skip_blanks(self) -> None:
        blanks = _SKIPPED.match(self._text, self._at)
        self._at = blanks.end() if blanks else self._at


class _TanStackParser(_Parser):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._last_e = text.rfind("e")

    def _set(self, holder: dict[str, JSON], key: str, value: JSON) -> None:
        if key != "__proto__":  # an assignment in JavaScript, which sets no property
            holder[key] = value

    def _top_number(self) -> JSON:
        try:
            return parse_strict(self._text)
        except NotJSON:
            return parse_strict(self._text[: max(self._last_e, 0)])

    def _exponent_of(self, number: str, start: int) -> int:
        """The last `e` of the whole text: behind the number nothing can be cut so that it parses."""
        at = self._last_e - start
        return at if at <= len(number) else 0


class _OpenAIParser(_Parser):
    def _top_number(self) -> JSON:
        return parse_strict(self._text)

    def _check_ended(self) -> None:
        if self._at == len(self._text):
            raise NotJSON("more digits may follow")

    def _exponent_of(self, number: str, start: int) -> int:  # noqa: ARG002  the other one wants to know
        return number.rfind("e")


def _as_string(text: str) -> str:
    value = parse_strict(text)
    if isinstance(value, str):
        return value
    raise NotJSON("no string")
