"""Snapshots of a partition: its store as one file, where all nodes of a cluster can get it.

A log that several nodes apply may only forget what they can have from elsewhere. So a node copies its store now and
then (`maker`), to a place (`Place`; `folder` is one), and what the second newest good snapshot has is trimmed from the
log. A node that is behind the log's start, or new, begins with the newest one that it can use (`restore`).

Not to be confused with the snapshot of a session, which is its folded messages and is in the store (`store.Snapshot`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol


class Place(Protocol):
    """Where the snapshots of one partition are kept, by name. Called in threads: its methods may block."""

    def names(self) -> list[str]:
        """Those that are there, in no order. Raises OSError."""
        ...

    def write(self, name: str, chunks: Iterable[bytes]) -> None:
        """Keep `chunks`: whole and durable when this returns, and not at all when it does not. Raises OSError."""

    def read(self, name: str) -> Iterator[bytes]:
        """What was written, in pieces of any size. Raises OSError."""
        ...

    def remove(self, name: str) -> None:
        """Let go of it; nothing if it is not there. Raises OSError."""


__all__ = ["Place"]
