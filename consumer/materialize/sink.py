"""The port to a user's database, and what can go wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol

import msgspec

from consumer.materialize.rows import Change

__all__ = ["Fenced", "Sink", "SinkError", "SinkRefused", "SinkUnavailable", "Stored", "WrongSchema"]


class SinkError(Exception):
    """Every error of a database that is written to. Its transaction has left nothing, if it is not said otherwise."""

    exit_status: ClassVar[int] = 1


class SinkUnavailable(SinkError):
    """No answer, a lock, a restart, a full disk: the same may succeed later.

    The transaction may have been committed all the same; `claim` tells.
    """


class SinkRefused(SinkError):
    """It will refuse this again: no such database, no permission, or a file that is none. For the operator to mend."""


class WrongSchema(SinkError):
    """The tables are of a newer version. A newer `streamfold` has to write them; nothing was touched."""

    exit_status: ClassVar[int] = 3


class Fenced(SinkError):
    """A process that was started later writes this session. This one must write it no more."""

    exit_status: ClassVar[int] = 4

    def __init__(self, session_id: str, epoch: int) -> None:
        super().__init__(f"session {session_id} is written by a process that was started later (epoch {epoch})")
        self.session_id = session_id
        self.epoch = epoch


class Stored(msgspec.Struct, frozen=True):
    """A session as the database has it; what was never written stands at the start, without messages."""

    next_offset: str
    states: list[tuple[int, str, bytes]]
    """`SessionFold.load` takes these: position, message id and state of each message."""


class Sink(Protocol):
    """Where rows go. Each method is one transaction: done whole, or not at all.

    Every opened sink has an epoch, higher than all before it in this database. A session is written by the highest
    epoch that has claimed it. Epochs are compared within each transaction, so nothing depends on a database session
    that stays: a pooler may give every transaction another one.

    Every method raises SinkUnavailable and SinkRefused. They may be called at the same time, for different sessions.
    """

    async def open(self) -> None:
        """Connect, bring the tables to this version, and take the next epoch.

        Raises WrongSchema if they are of a newer one.
        """
        ...

    async def claim(self, session_id: str) -> Stored:
        """Make the session ours to write, and return how it stands. May be repeated. Raises Fenced."""
        ...

    async def write(self, change: Change) -> None:
        """Write messages and offset. Raises Fenced if the session is not ours.

        Raises SinkUnavailable if it does not stand at `change.offset`: an earlier write whose fate was unknown. Claim
        it again.
        """
        ...

    async def delete(self, session_id: str) -> None:
        """Delete a session and its messages, if they are there. Raises Fenced."""
        ...

    async def offsets(self, session_ids: Sequence[str]) -> dict[str, str]:
        """Where those of these sessions stand that are there."""
        ...

    async def session_ids(self, after: str, limit: int) -> list[str]:
        """The ids of sessions in their order, those after this one."""
        ...

    async def aclose(self) -> None:
        """Let go of all connections."""
        ...
