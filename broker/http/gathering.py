"""Batches of uploads that are proposed together, while there are many.

A commit, and what turns from taking tokens to applying them and back, cost as much as several tokens. Whoever uploads
does not wait for an ack before the next token, so some milliseconds more of them share one. Few tokens are proposed
as they come.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from broker import limits
from broker.core.entry import Entry
from broker.proposals import Proposer, Together

Propose = Callable[[Sequence[Together]], None]
"""As `Partition.propose_together`."""


class Gathering:
    """Of all uploads of a broker, in the order in which they came. Belongs to one event loop."""

    def __init__(self, propose: Propose) -> None:
        self._propose = propose
        self._gathered: list[Together] = []
        self._timer: asyncio.TimerHandle | None = None  # while anything is gathered
        self._loop = asyncio.get_running_loop()
        self._begun_s = 0.0  # on its clock: when the present span began
        self._count = 0  # of batches proposed in it
        self._are_many = False  # in the one before, or by now in this one

    def add(self, proposer: Proposer, entry: Entry) -> None:
        """Have it proposed: at once, or behind what is gathered, in `limits.UPLOAD_GATHER_S`."""
        gathered = self._gathered
        gathered.append((proposer, entry))
        if self._timer is None:
            self._begin()
        elif len(gathered) >= limits.GATHER_ENTRIES_MAX:
            self.flush()

    def flush(self) -> None:
        """Propose what is gathered. To be called before anything else is proposed for an upload: order counts."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        gathered, self._gathered = self._gathered, []
        self._count += len(gathered)
        if gathered:
            self._propose(gathered)

    def _begin(self) -> None:
        """The first is gathered."""
        now_s = self._loop.time()
        past_s = now_s - self._begun_s
        if past_s >= limits.UPLOAD_GATHER_S:
            self._are_many = self._count * limits.UPLOAD_GATHER_S >= limits.UPLOAD_GATHER_FROM * past_s
            self._begun_s, self._count = now_s, 0
        if self._are_many or self._count >= limits.UPLOAD_GATHER_FROM:
            self._timer = self._loop.call_later(limits.UPLOAD_GATHER_S, self.flush)
        else:
            self.flush()
