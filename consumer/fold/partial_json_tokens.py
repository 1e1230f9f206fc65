"""The value of JSON text that is still arriving, as Anthropic's package tells it (FOLDS section 9).

The text is cut into tokens, what cannot stand at its end is dropped, what is open is closed, and that is parsed
strictly. Text that is wrong and not just cut is parsed as it is, which fails.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from msgspec import UNSET

from consumer.fold.partial_json import PartialJSON, parse_strict
from consumer.plain import DEPTH_MAX, NotJSON


class _Token(NamedTuple):
    kind: str
    text: str
    at_end: bool
    """Whether it touches the end of the text, so that more of it may follow."""


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
_STEPS: Final = {"{": 1, "[": 1, "}": -1, "]": -1}
_SCALARS: Final = frozenset({"string", "number", "word"})


def parse_anthropic(text: str) -> PartialJSON:
    """The value that Anthropic's package shows for a tool input of which `text` has arrived; UNSET where it throws.

    Not as the reference: a value that nests deeper than DEPTH_MAX is no value.
    """
    try:
        repaired = _repaired(text)
        value = parse_strict(text if repaired is None else repaired)
    except NotJSON:
        return PartialJSON(UNSET, "failed-parse")
    return PartialJSON(value, "successful-parse" if repaired is None else "repaired-parse")


def _repaired(text: str) -> str | None:
    """The text without its loose end, and closed. None if it is wrong; NotJSON if it nests too deeply."""
    tokens = _tokens(text)
    if tokens is None:
        return None
    openers = _open_brackets(tokens)
    if openers is None:
        return None
    _drop_loose_end(tokens, openers[-1] if openers else "")
    return _joined(tokens) + "".join(_CLOSER[opener] for opener in reversed(openers))


def _tokens(text: str) -> list[_Token] | None:
    """None where one is wrong. Raises NotJSON where it nests so deeply that, wrong or not, it has no value."""
    tokens: list[_Token] = []
    at, end, depth = 0, len(text.rstrip(_BLANKS)), 0
    while at < end:
        found = _TOKEN.match(text, at)
        if found is None or found.lastgroup is None:
            return None
        at = found.end()
        kind, token = found.lastgroup, found[found.lastgroup]
        if kind == "word" and token not in _LITERALS:
            if at < end or not any(literal.startswith(token) for literal in _LITERALS):
                return None
        elif kind != "unfinished":
            tokens.append(_Token(kind, token, at == len(text)))
            depth += _STEPS.get(token, 0)
            if depth > DEPTH_MAX:
                raise NotJSON(f"nested deeper than {DEPTH_MAX}")
    return tokens


def _open_brackets(tokens: list[_Token]) -> list[str] | None:
    """The brackets that are open at the end, the outermost first. None if one is closed that was not open."""
    openers: list[str] = []
    for token in tokens:
        if token.kind != "bracket":
            continue
        if token.text in _CLOSER:
            openers.append(token.text)
        elif not openers or _CLOSER[openers.pop()] != token.text:
            return None
    return openers


def _drop_loose_end(tokens: list[_Token], innermost: str) -> None:
    while tokens:
        last = tokens[-1]
        is_loose = (
            last.kind == "colon"
            or (last.kind == "number" and (last.at_end or not _NUMBER.fullmatch(last.text)))
            or (last.kind == "string" and innermost == "{" and _begins_member(tokens))
        )
        if not is_loose:
            break
        tokens.pop()
    if tokens and tokens[-1].kind == "comma":
        tokens.pop()


def _begins_member(tokens: list[_Token]) -> bool:
    """Whether the last token is a key: it comes first in its object, or after a comma."""
    return len(tokens) > 1 and (tokens[-2].kind == "comma" or tokens[-2].text == "{")


def _joined(tokens: list[_Token]) -> str:
    """The tokens as text, with scalars kept apart that would else become one."""
    pieces: list[str] = []
    for index, token in enumerate(tokens):
        if index and token.kind in _SCALARS and tokens[index - 1].kind in _SCALARS:
            pieces.append(" ")
        pieces.append(token.text)
    return "".join(pieces)
