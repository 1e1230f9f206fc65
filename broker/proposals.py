"""Entries on their way through the journal, and who waits for what they did."""

from __future__ import annotations

import os
from typing import Protocol

import msgspec

from broker.applied import ENTRY_BYTES
from broker.core.entry import Entry, Kind
from broker.core.outcome import Outcome
from broker.core.state import Key

_MAKES_A_LIFE = frozenset(
    {Kind.CREATE, Kind.SESSION_CREATE, Kind.SESSION_RESET, Kind.FORK_REF, Kind.SUBSCRIPTION_CREATE}
)
_MAKES_A_WAKE = frozenset({Kind.SUBSCRIPTION_ATTEMPT, Kind.SUBSCRIPTION_CLAIM})
_NEEDS_CHANCE = _MAKES_A_LIFE | _MAKES_A_WAKE
_force = msgspec.structs.force_setattr


class Waiter(Protocol):
    """Who waits for what an entry did: a future, or one that is quick, never raises, and need not be told later."""

    def done(self) -> bool:
        """Whether nobody waits any more."""
        ...

    def set_result(self, outcome: Outcome, /) -> None:
        """The entry is durable, and did this."""

    def set_exception(self, error: Exception, /) -> None:
        """As `Partition.propose` raises."""


class Proposal:
    """An entry that was proposed: who waits for it, the rows that it needs, and what it counts for in bytes."""

    __slots__ = ("keys", "size", "stamped", "waiter")

    def __init__(self, waiter: Waiter, keys: list[Key], entry: Entry) -> None:
        self.waiter = waiter
        self.keys = keys
        self.size = len(entry.body) + ENTRY_BYTES
        self.stamped = False  # with the life of the path that was seen here: see `see_life`

    def see_life(self, entry: Entry, incarnation: int) -> None:
        """Say in the entry which life of its path its proposer saw."""
        _force(entry, "incarnation", incarnation)
        self.stamped = True


class Proposals:
    """Those of one boot, by their numbers."""

    def __init__(self) -> None:
        self.keys: dict[Key, int] = {}
        """How many of them need a row. Their rows stay in memory."""
        self.size_bytes = 0
        """What they count for together."""
        self._boot = int.from_bytes(os.urandom(8), "big") >> 1
        self._number = 0  # of the newest
        self._waiting: dict[int, Proposal] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def stamp(self, entry: Entry) -> None:
        """Fill in what the pure function that made the entry could not know. The entry is ours alone until proposed."""
        self._number += 1
        _force(entry, "boot", self._boot)
        _force(entry, "proposal", self._number)
        if entry.kind in _NEEDS_CHANCE and not entry.nonce:
            _force(entry, "nonce", int.from_bytes(os.urandom(8), "big") >> 1 or 1)

    def add(self, entry: Entry, proposal: Proposal) -> None:
        """A stamped entry was handed to the journal."""
        self._waiting[entry.proposal] = proposal
        self.size_bytes += proposal.size
        keys = self.keys
        for key in proposal.keys:
            keys[key] = keys.get(key, 0) + 1

    def of(self, entry: Entry) -> Proposal | None:
        """The proposal behind an entry; None for another proposer's."""
        return self._waiting.get(entry.proposal) if entry.boot == self._boot else None

    def take(self, entry: Entry) -> Proposal | None:
        """As `of`; the journal is done with the entry."""
        if entry.boot != self._boot:
            return None
        proposal = self._waiting.pop(entry.proposal, None)
        if proposal is None:
            return None
        self.size_bytes -= proposal.size
        keys = self.keys
        for key in proposal.keys:
            if keys[key] == 1:
                del keys[key]
            else:
                keys[key] -= 1
        return proposal

    def fail(self, error: Exception) -> None:
        """Nobody will learn what became of them."""
        for proposal in self._waiting.values():
            if not proposal.waiter.done():
                proposal.waiter.set_exception(error)
        self._waiting.clear()
        self.keys.clear()
        self.size_bytes = 0
