"""The store: what has been applied, checkpointed at an index. One transaction moves all of it.

Invariant: the files hold exactly what entries 1 … `applied_index` made of the state, whatever process died when.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import msgspec

from broker.core.page import Page
from broker.core.state import Key, Row


class Head(msgspec.Struct, frozen=True):
    """Where the store stands."""

    applied_index: int = 0
    time_ms: int = 0  # the partition's time at that index
    mark: bytes = b""  # what the journal wants to be told at its next opening, opaque here


class Snapshot(msgspec.Struct, frozen=True, gc=False):
    """Some of the folded messages of a session, and where in the log all of its messages now stand.

    `messages` are (ordinal, message id, bytes) of those that changed since the last snapshot; the others stay. A
    snapshot of another incarnation replaces all.
    """

    path: str
    incarnation: int
    position: int
    messages: Sequence[tuple[int, str, bytes]]


class Checkpoint(msgspec.Struct, frozen=True):
    """Everything that changed between two indexes."""

    head: Head
    rows: Mapping[Key, Row | None]  # None: the row is gone
    pages: Sequence[tuple[int, Sequence[Page]]]  # (incarnation, its new consecutive pages, in order)
    ended: Sequence[tuple[str, int]]  # (path, incarnation or birth): lives that are over
    snapshots: Sequence[Snapshot] = ()


class Store(Protocol):
    """The port. All methods may be called while a checkpoint is being written; what they see is one side of it."""

    async def open(self) -> Head:
        """Open or create. Raises StartError (DataDirInUse, NewerFormat, Damaged)."""
        ...

    async def load(self, keys: Iterable[Key]) -> dict[Key, Row | None]:
        """The stored rows; None for those that do not exist."""
        ...

    async def read(self, incarnation: int, position: int, bytes_max: int) -> list[Page]:
        """Stored pages from the one that holds `position` on, consecutive, in one read transaction.

        The first begins at `position` exactly (cut), the run ends at the first page that takes it to `bytes_max` or
        more bytes of data. Empty when nothing is stored from `position` on.
        """
        ...

    async def write(self, checkpoint: Checkpoint) -> None:
        """Make a checkpoint durable, in one transaction, off the event loop.

        Raises Unavailable when it definitely was not written (disk full: try again later), EngineStopped when that
        cannot be told.
        """

    async def sweep(self, steps_max: int = 16) -> bool:
        """Remove some of what ended lives left (pages, rows), in bounded steps; True while more is left."""
        ...

    async def overdue(self, now_ms: int, limit: int) -> list[tuple[str, int]]:
        """Stored streams whose deadline is at or before `now_ms`: (path, incarnation), earliest first."""
        ...

    async def watched(self, letter: bytes, after: Key, limit: int) -> list[Key]:
        """Stored rows that somebody must look after unasked (`state.is_watched`), of one kind, in order after `after`.

        `letter` is the first of their keys; `after` is b"" to begin with.
        """
        ...

    async def keys(self, prefix: Key, after: Key, limit: int) -> list[Key]:
        """Keys of stored rows that begin with `prefix`, in order after `after`, which is b"" to begin with."""
        ...

    async def active(self, before: tuple[int, Key], limit: int) -> list[tuple[int, Key]]:
        """Stored sessions by last activity, newest first: (time, key) below `before`."""
        ...

    async def idle(self, after: tuple[int, Key], before_ms: int, limit: int) -> list[tuple[int, Key]]:
        """Stored sessions by last activity, oldest first: (time, key) above `after`, times below `before_ms`."""
        ...

    async def snapshot(self, path: str, incarnation: int) -> Snapshot | None:
        """The whole snapshot of a session's messages, by rising ordinal; None when there is none for this life."""
        ...

    async def aclose(self) -> None:
        """Finish what is being written and close. Idempotent."""


__all__ = ["Checkpoint", "Head", "Snapshot", "Store"]
