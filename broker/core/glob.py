"""Globs: patterns over stream paths (PROTOCOL.md 6.2).

    *     any one segment
    **    any number of segments, none included
    else  a segment that is just that; `%2A` in it stands for an asterisk

A path is walked once, whatever the pattern: all places where a match may stand are kept in one integer, a bit for each,
so nothing is ever tried again and no pattern can be made slow.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

PATTERN_SEGMENTS_MAX: Final = 64

_ENCODED_ASTERISK: Final = re.compile("%2[Aa]")
_GLOBS_MAX: Final = 4096


class InvalidPattern(ValueError):
    """The text is no pattern; the message says why."""


class Glob:
    """One pattern. Raises InvalidPattern for one that is empty, too long, or has an asterisk amid other characters."""

    __slots__ = ("_accept", "_any", "_literals", "_loops", "literal_prefix")

    def __init__(self, pattern: str) -> None:
        segments = _segments(pattern)
        # Bit i stands for: the first i segments of the pattern are used up.
        self._accept = 1 << len(segments)
        self._any = 0  # places from which any segment leads on …
        self._loops = 0  # … and those that it may also leave as they are
        self._literals: dict[str, int] = {}
        for place, segment in enumerate(segments):
            if segment == "**":
                self._loops |= 1 << place
            elif segment == "*":
                self._any |= 1 << place
            else:
                text = _ENCODED_ASTERISK.sub("*", segment)
                self._literals[text] = self._literals.get(text, 0) | 1 << place
        self.literal_prefix = _literal_prefix(segments)
        """What every path that matches begins with."""

    def matches(self, path: str) -> bool:
        """Whether the whole of `path` does. Takes one step a segment."""
        loops, literals, anything = self._loops, self._literals, self._any
        places = 1 | (loops & 1) << 1
        for segment in path.split("/"):
            places = (places & (literals.get(segment, 0) | anything)) << 1 | places & loops
            places |= (places & loops) << 1  # `**` may also stand for nothing; no two of them are neighbours
            if not places:
                return False
        return places & self._accept != 0


@lru_cache(maxsize=_GLOBS_MAX)
def glob(pattern: str) -> Glob:
    """The glob of a pattern, made once. Raises as `Glob` does."""
    return Glob(pattern)


def _segments(pattern: str) -> list[str]:
    """The segments, with runs of `**` as one: they match the same."""
    segments: list[str] = []
    for segment in pattern.split("/"):
        if not segment:
            raise InvalidPattern("an empty segment")
        if "*" in segment and segment not in ("*", "**"):
            raise InvalidPattern("an asterisk stands for whole segments; write %2A for the character")
        if segment != "**" or not segments or segments[-1] != "**":
            segments.append(segment)
    if len(segments) > PATTERN_SEGMENTS_MAX:
        raise InvalidPattern(f"more than {PATTERN_SEGMENTS_MAX} segments")
    return segments


def _literal_prefix(segments: list[str]) -> str:
    literal: list[str] = []
    for segment in segments:
        if segment in ("*", "**"):
            break
        literal.append(_ENCODED_ASTERISK.sub("*", segment))
    prefix = "/".join(literal)
    # `a/**` matches `a` too, so only a segment that must follow allows for the slash.
    follows = len(literal) < len(segments) and segments[len(literal)] == "*"
    return f"{prefix}/" if literal and follows else prefix
