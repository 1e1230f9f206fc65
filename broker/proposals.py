"""Entries on their way through the journal, and who waits for what they did."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Protocol

import msgspec

from broker.applied import ENTRY_BYTES
from broker.core.apply import keys
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


class Proposer(Protocol):
    """Who proposes one entry after the other about the same rows, and so has claimed them."""

    flying: int
    """Of its entries that were proposed together with others: how many nothing was heard of. The partition counts."""

    def told(self, entry: Entry, outcome: Outcome, /) -> None:
        """The entry is durable, and did this. As a `Waiter` hears it, and in the order of the entries."""

    def told_error(self, entry: Entry, error: Exception, /) -> None:
        """As `Partition.propose` raises."""


Together = tuple[Proposer, Entry]
"""An entry that is proposed together with others; its proposer has claimed all rows that it needs."""


class ProposerWaits:
    """A proposer as it waits for one entry that is proposed by itself."""

    __slots__ = ("_entry", "_proposer")

    def __init__(self, proposer: Proposer, entry: Entry) -> None:
        self._proposer = proposer
        self._entry = entry

    def done(self) -> bool:
        """As in `Waiter`."""
        return False

    def set_result(self, outcome: Outcome) -> None:
        """As in `Waiter`."""
        self._proposer.told(self._entry, outcome)

    def set_exception(self, error: Exception) -> None:
        """As in `Waiter`."""
        self._proposer.told_error(self._entry, error)


class Proposal:
    """An entry that was proposed: who waits for it, the rows that it needs, and what it counts for in bytes."""

    __slots__ = ("keys", "size", "stamped", "waiter")

    def __init__(self, waiter: Waiter, keys: list[Key], entry: Entry) -> None:
        self.waiter = waiter
        self.keys = keys
        self.size = len(entry.body) + ENTRY_BYTES
        self.stamped = False  # with the life of the path that was seen here: see `see_life`

    def told(self, _: Entry, outcome: Outcome) -> None:
        """The entry did this."""
        if not self.waiter.done():
            self.waiter.set_result(outcome)

    def told_error(self, _: Entry, error: Exception) -> None:
        """Why there is no outcome."""
        if not self.waiter.done():
            self.waiter.set_exception(error)

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
        self._waiting: dict[int, Proposal | Together] = {}
        self._claims: dict[Key, list[Proposer]] = {}
        self._claimed: dict[Proposer, Sequence[Key]] = {}

    def __contains__(self, key: object) -> bool:
        """Whether a row has to stay in memory: something on its way needs it, or a proposer has claimed it."""
        return key in self.keys or key in self._claims

    def is_pending(self, key: Key) -> bool:
        """Whether something on its way needs the row."""
        return key in self.keys or any(proposer.flying for proposer in self._claims.get(key, ()))

    def claim(self, proposer: Proposer, keys: Sequence[Key]) -> None:
        """Have these rows stay in memory until the proposer lets go; always the same ones of one proposer."""
        if proposer not in self._claimed:
            self._claimed[proposer] = keys
            for key in keys:
                self._claims.setdefault(key, []).append(proposer)

    def let_go(self, proposer: Proposer) -> None:
        """End a claim, if there is one."""
        for key in self._claimed.pop(proposer, ()):
            claims = self._claims[key]
            claims.remove(proposer)
            if not claims:
                del self._claims[key]

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

    def add_together(self, gathered: Sequence[Together]) -> None:
        """As `stamp` and `add`, of many."""
        boot, first = self._boot, self._number + 1
        self._number += len(gathered)
        self._waiting.update(zip(range(first, self._number + 1), gathered, strict=True))
        size_bytes = 0
        for number, (proposer, entry) in enumerate(gathered, first):
            _force(entry, "boot", boot)
            _force(entry, "proposal", number)
            size_bytes += len(entry.body)
            proposer.flying += 1
        self.size_bytes += size_bytes + len(gathered) * ENTRY_BYTES

    def keys_of(self, entry: Entry) -> Sequence[Key]:
        """The rows that an entry needs and that may be missing."""
        proposal = self._waiting.get(entry.proposal) if entry.boot == self._boot else None
        if proposal is None:
            return keys(entry)
        return () if isinstance(proposal, tuple) else proposal.keys

    def take(self, entry: Entry) -> Proposal | Proposer | None:
        """Who is to be told what became of an entry, with which the journal is done; None for another boot's."""
        if entry.boot != self._boot:
            return None
        proposal = self._waiting.pop(entry.proposal, None)
        if isinstance(proposal, tuple):
            proposer = proposal[0]
            proposer.flying -= 1
            self.size_bytes -= len(entry.body) + ENTRY_BYTES
            return proposer
        if proposal is not None:
            self._uncount(proposal)
        return proposal

    def _uncount(self, proposal: Proposal) -> None:
        self.size_bytes -= proposal.size
        keys = self.keys
        for key in proposal.keys:
            if keys[key] == 1:
                del keys[key]
            else:
                keys[key] -= 1

    def fail(self, error: Exception) -> None:
        """Nobody will learn what became of them."""
        waiting, self._waiting = self._waiting, {}
        for proposal in waiting.values():
            if isinstance(proposal, tuple):
                proposer, entry = proposal
                proposer.flying -= 1
                proposer.told_error(entry, error)
            elif not proposal.waiter.done():
                proposal.waiter.set_exception(error)
        self.keys.clear()
        self.size_bytes = 0
