"""The value of JSON text that is still arriving, as Anthropic's package tells it (FOLDS section 9).

The text is cut into tokens, what cannot stand at its end is dropped, what is open is closed, and that is parsed
strictly. Text that is wrong and not just cut is parsed as it is, which fails.
"""

from __future__ import annotations

import re
from typing import Final

from msgspec import UNSET

from consumer.fold.partial_json import PartialJSON, parse_strict
from consumer.plain import DEPTH_MAX, NotJSON

_TOKEN: Final = re.compile(
    r"""[ \t\n\r]*+(?:
        (?P<bracket>[{}\[\]]) | (?P<colon>:) | (?P<comma>,)
        | (?P<string>"[^"\\]*+(?:\\.[^"\\]*+)*+") | (?P<unfinished>".*)
        | (?P<number>(?:-|(?=[0-9.]))(?:[0-9.]|[eE][-+]?)*) | (?P<word>[A-Za-z]+)
    )""",
    re.VERBOSE | re.DOTALL,
)
_BLANKS: Final = " \t\n\r"
_NUMBER: Final = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_LITERALS: Final = ("true", "false", "null")
_CLOSER: Final = {"{": "}", "[": "]"}
_BEFORE_KEY: Final = frozenset({"{", "comma"})


def parse_anthropic(text: str) -> PartialJSON:
    """The value that Anthropic's package shows for a tool input of which `text` has arrived. See AnthropicParser."""
    return AnthropicParser().parse(text)


class AnthropicParser:
    """Anthropic's rule for one text that grows. Tokens that cannot change any more are not looked at again."""

    __slots__ = ("_ends", "_is_too_deep", "_is_wrong", "_kinds", "_openers", "_scanned")

    def __init__(self) -> None:
        self._scanned = 0
        self._kinds: list[str] = []
        """Of the tokens before that. A bracket is of its own kind."""
        self._ends: list[int] = []
        self._openers: list[str] = []
        """The brackets that are open, the outermost first."""
        self._is_wrong = False
        self._is_too_deep = False

    def parse(self, text: str) -> PartialJSON:
        """The value of `text`, which begins with all that was given before; UNSET where the package throws.

        Not as the reference: a value that nests deeper than DEPTH_MAX is no value.
        """
        repaired = self._repaired(text)
        if self._is_too_deep:
            return PartialJSON(UNSET, "failed-parse")
        try:
            value = parse_strict(text if repaired is None else repaired)
        except NotJSON:
            return PartialJSON(UNSET, "failed-parse")
        return PartialJSON(value, "successful-parse" if repaired is None else "repaired-parse")

    def _repaired(self, text: str) -> str | None:
        """The text without its loose end, and closed. None if it is wrong, however it goes on."""
        literal_end = self._scan(text)
        if self._is_wrong or self._is_too_deep:
            return None
        end = literal_end or self._end_of_kept(text)
        return text[:end] + "".join(_CLOSER[opener] for opener in reversed(self._openers))

    def _scan(self, text: str) -> int:
        """Take the tokens that are whole. The end of a literal that is whole, but may turn out to be none; else 0.

        That, and any other word, number or string at the end, stays for the next time: more text may change it.
        """
        end = len(text.rstrip(_BLANKS))
        while self._scanned < end and not self._is_wrong and not self._is_too_deep:
            found = _TOKEN.match(text, self._scanned)
            if found is None or found.lastgroup is None:
                self._is_wrong = True
                break
            kind, token, at = found.lastgroup, found[found.lastgroup], found.end()
            if kind == "unfinished" or (kind == "number" and at == len(text)):
                break
            if kind == "word" and token not in _LITERALS:
                self._is_wrong = at < end or not any(literal.startswith(token) for literal in _LITERALS)
                break
            if kind == "word" and at == len(text):
                return at
            self._take(token if kind == "bracket" else kind, at)
        return 0

    def _take(self, kind: str, end: int) -> None:
        if kind in _CLOSER:
            self._openers.append(kind)
            self._is_too_deep = len(self._openers) > DEPTH_MAX
        elif kind in _CLOSER.values():
            self._is_wrong = not self._openers or _CLOSER[self._openers.pop()] != kind
        self._kinds.append(kind)
        self._ends.append(end)
        self._scanned = end

    def _end_of_kept(self, text: str) -> int:
        kept = len(self._kinds)
        while kept and self._is_loose(text, kept - 1):
            kept -= 1
        if kept and self._kinds[kept - 1] == "comma":
            kept -= 1
        return self._ends[kept - 1] if kept else 0

    def _is_loose(self, text: str, last: int) -> bool:
        """Whether this token cannot stand at the end: a colon, a number that is none, a key."""
        kind = self._kinds[last]
        if kind == "number":
            start = self._ends[last - 1] if last else 0
            return not _NUMBER.fullmatch(text[start : self._ends[last]].strip(_BLANKS))
        is_key = kind == "string" and self._openers[-1:] == ["{"] and last > 0 and self._kinds[last - 1] in _BEFORE_KEY
        return kind == "colon" or is_key
