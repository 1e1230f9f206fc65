"""What was found in the files of a broker."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Final

import msgspec

STREAMS_SHOWN_MAX: Final = 20
"""Paths that one finding names."""


class Weight(StrEnum):
    """How much a finding matters."""

    NOTE = "note"  # as it should be after a crash
    WARNING = "warning"  # the disk or somebody changed something; nothing depends on it
    DAMAGE = "damage"  # something that was acknowledged is missing or wrong, or the files do not belong together
    NEWER = "newer version"  # it cannot be judged here


class Finding(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """One thing that is not as a broker that was stopped in order leaves it.

    Bytes [at, end) of `file`, entries [first_index, next_index); None where that means nothing or cannot be told.
    `streams` are paths of entries in these bytes, as far as they can still be read; `streams_behind` are those of whole
    entries that come later and cannot be applied without them.
    """

    weight: Weight
    file: str
    what: str
    at: int | None = None
    end: int | None = None
    first_index: int | None = None
    next_index: int | None = None
    streams: tuple[str, ...] = ()
    streams_behind: tuple[str, ...] = ()


def shown(paths: Iterable[str]) -> tuple[str, ...]:
    """Some of the paths, in order, and how many more there are."""
    all_of_them = sorted(set(paths))
    more = len(all_of_them) - STREAMS_SHOWN_MAX
    return (*all_of_them[:STREAMS_SHOWN_MAX], *([f"… and {more} more"] if more > 0 else []))
