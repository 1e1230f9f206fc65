"""Offsets: the opaque tokens of positions (PROTOCOL.md section 8).

    {position:016x}_{incarnation:016x}

A position counts records (JSON mode) or bytes since the incarnation of its stream began. Fixed width makes tokens sort
as text in the order of their positions. The incarnation tells one life of a path from the next, so an offset of a
deleted stream never slides into a new stream of the same name. All zeros is the start of any stream.
"""

from __future__ import annotations

import re
from typing import Final

_TOKEN: Final = re.compile(r"([0-9a-f]{16})_([0-9a-f]{16})", re.ASCII)
POSITION_MAX: Final = 2**63 - 1
START_TOKEN: Final = f"{0:016x}_{0:016x}"


class InvalidOffset(ValueError):
    """The text is no offset that this broker could have issued."""


def format_offset(position: int, incarnation: int) -> str:
    """The token of `position` in the life `incarnation` of a stream."""
    return f"{position:016x}_{incarnation:016x}"


def parse_offset(text: str) -> tuple[int, int]:
    """The (position, incarnation) that a token stands for; incarnation 0 only in the start token.

    Raises InvalidOffset for anything that `format_offset` does not make. The sentinels `-1` and `now` are the
    caller's: they are not offsets.
    """
    match = _TOKEN.fullmatch(text)
    if match is None:
        raise InvalidOffset(text[:64])
    position, incarnation = int(match[1], 16), int(match[2], 16)
    if position > POSITION_MAX or (incarnation == 0 and position != 0):
        raise InvalidOffset(text[:64])
    return position, incarnation
