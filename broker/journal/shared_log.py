"""The log that several processes write to and all of them read: what a cluster's journal needs of Kafka, and no more.

One class for Kafka (`broker.journal.kafka`); a simulation has its own. What the port promises:

1. Records have one order, the same for every reader, and positions that rise by one.
2. What is read is durable (Kafka: on as many replicas as the topic asks for), and stays; what was appended is read.
3. A record whose `append` failed may be there, or come later, or come twice. `ClusterJournal` deals with that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from broker import limits
from broker.errors import EngineStopped


class LogRecord(NamedTuple):
    """One record: where it stands, when the log took it (its clock may step back), and its bytes."""

    position: int
    time_ms: int
    data: bytes


class LogLost(EngineStopped):
    """The log no longer has what comes next: it was trimmed, truncated or made anew under a reader."""

    spoils_reads = True


class LogTruncated(LogLost):
    """Worse: it no longer has what was read from it, or has something else there."""


class SharedLog(Protocol):
    """The port. One owner: a journal, in one event loop."""

    async def open(self) -> None:
        """Connect. Raises StartError."""

    async def first(self) -> int:
        """The position of the first record that is left. Raises Unavailable."""
        ...

    async def end(self) -> int:
        """The position of the next record to come. Raises Unavailable."""
        ...

    def seek(self, position: int, last: LogRecord | None = None) -> None:
        """Read from there on; what is read follows `last`, if that is given, or LogTruncated is raised."""

    async def read(self) -> Sequence[LogRecord]:
        """The next records in order, at least one: waits for it, through any outage. Raises LogLost, LogTruncated."""
        ...

    async def look_up(self, positions: Sequence[int]) -> Sequence[LogRecord | None]:
        """The records there, asked for in this order, as one server has them; None where it has none.

        The server may lead no more, and not know it yet: ask first for a record that only one has that has led since.
        Where the log is read from stays where it is. Raises Unavailable.
        """
        ...

    def heed(self, is_watched: Callable[[], bool]) -> None:
        """Ask this whether anybody waits for what comes next; where nobody does, reads may come a little later."""

    async def append(self, data: bytes) -> int:
        """Its position, once it is durable. Raises OutcomeUnknown, within a bounded time."""
        ...

    async def trim(self, position: int) -> None:
        """Drop the records before `position`. Raises Unavailable."""

    @property
    def events(self) -> Mapping[str, int]:
        """How often what happened to this log that only its kind knows, by name."""
        ...

    async def aclose(self, within_s: float = limits.DRAIN_S) -> None:
        """Disconnect, within that time or a few seconds more. Idempotent."""


__all__ = ["LogLost", "LogRecord", "LogTruncated", "SharedLog"]
