"""Unclean elections, in some of the schedules: a log loses records that it had confirmed, and grows again with others.

What was lost is lost, and every promise about it is void. But no node goes on with it: whoever has it finds out, stops
and begins anew, and in the end all have what is left of the log, and what has come since.
"""

from __future__ import annotations

import asyncio
from random import Random

from tests.simulator.history import History
from tests.simulator.node import Node, Shared

LOSING = 8
"""One schedule in so many has such elections; all others are what they are without this fault."""
_RESIDUE = 5


def losing(first: int, count: int) -> range:
    """So many seeds, from `first` on, whose schedules lose records."""
    begin = first + (_RESIDUE - first) % LOSING
    return range(begin, begin + count * LOSING, LOSING)


def loses(seed: int) -> bool:
    """Whether logs lose records in the schedule of a seed."""
    return seed % LOSING == _RESIDUE


class Losses:
    """Of one schedule, by chance of its own."""

    def __init__(self, seed: int, nodes: list[Node], logs: list[Shared], history: History) -> None:
        self.are_over = False
        """Whether there are to be no more."""
        self._rng = Random(f"losses {seed}")
        self._nodes, self._logs, self._history = nodes, logs, history

    async def run(self) -> None:
        """One after the other, at any moment."""
        for _ in range(self._rng.choice((1, 1, 2, 3))):
            await asyncio.sleep(self._rng.random() * 5)
            if not self.are_over:
                await self._elect(self._rng.choice(self._logs))

    async def _elect(self, shared: Shared) -> None:
        truth = shared.truth
        # The record that says which log it is stays: a log that has lost that one has lost all.
        # Nor that a snapshot is left that is behind nothing lost: where all before it is trimmed, none could begin.
        kept = max(truth.first + 1, shared.place.oldest if truth.first else 0)
        position = max(kept, truth.end - self._rng.choice((1, 2, 3, 5, 10)))
        if position >= truth.end:
            return
        self._history.has_lost = True
        truth.lose(position)
        shared.place.lose(position)
        for node in self._nodes:
            node.replicas[shared.number].lose(position)
        await asyncio.sleep(self._rng.uniform(2.1, 5.0))  # longer than a client is out of touch without a doubt
        truth.lead()
