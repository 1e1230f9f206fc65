"""What replicas say that they made of a log, held against what this one made of it.

Each says now and then, in the log, which chain of hashes (over all outcomes) it has before some position. Whoever has
another one there says that too, and so does everybody who reads it; then what most of them have counts, and those that
have something else are wrong. Where no chain has most, two nodes that differ, all of them are: the log makes them anew.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import Final, NamedTuple

from broker import limits

_HEARD_MAX: Final = 64
"""Positions of which it is remembered who said what: minutes of audits."""


class Verdict(NamedTuple):
    """What a dispute ended with."""

    position: int
    is_wrong: bool
    """Whether this replica is."""


class _Dispute(NamedTuple):
    chain: bytes  # ours
    until: float


class Audits:
    """Of one partition. `boot` is this process's; pure, and told the time."""

    def __init__(self, boot: int) -> None:
        self._boot = boot
        self._chains: OrderedDict[int, bytes] = OrderedDict()  # ours by position, those of late
        self._heard: OrderedDict[int, dict[int, bytes]] = OrderedDict()  # by position: what which boot said
        self._disputes: dict[int, _Dispute] = {}

    def note(self, position: int, chain: bytes) -> None:
        """This replica has that chain before `position`."""
        self._chains[position] = chain
        if len(self._chains) > limits.CHAINS_KEPT:
            self._chains.popitem(last=False)

    def hear(self, boot: int, position: int, chain: bytes) -> bool | None:
        """Whether a replica says what this one says; None when it is too long ago to tell."""
        if position not in self._heard and len(self._heard) >= _HEARD_MAX:
            oldest, _ = self._heard.popitem(last=False)
            self._disputes.pop(oldest, None)
        self._heard.setdefault(position, {})[boot] = chain
        ours = self._chains.get(position)
        return None if ours is None else ours == chain

    def dispute(self, position: int, until: float) -> bytes | None:
        """They differ there: our chain, if it is now to be said, or None if it has been."""
        if position in self._disputes:
            return None
        ours = self._chains[position]
        self._disputes[position] = _Dispute(ours, until)
        return None if self._boot in self._heard[position] else ours

    def retire(self, boot: int) -> None:
        """That boot is over, and is heard as another one: what it said does not count twice."""
        for said in self._heard.values():
            said.pop(boot, None)

    def verdicts(self, now: float) -> list[Verdict]:
        """Of the disputes whose time is over. A replica that could not say its own waits until it has."""
        due = [
            position
            for position, dispute in self._disputes.items()
            if dispute.until <= now and self._boot in self._heard[position]
        ]
        return [Verdict(position, self._is_outvoted(position, self._disputes.pop(position).chain)) for position in due]

    def _is_outvoted(self, position: int, ours: bytes) -> bool:
        votes = Counter(self._heard[position].values())
        return any(votes[ours] <= count for chain, count in votes.items() if chain != ours)
