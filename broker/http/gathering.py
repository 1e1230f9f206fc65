"""Batches of uploads that are proposed together, while there are many.

A commit, and what turns from taking tokens to applying them and back, cost as much as several tokens. Whoever uploads
does not wait for an ack before the next token, so some milliseconds more of them share one. Few tokens are proposed
as they come.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from broker import limits
from broker.core.entry import Entry

Propose = Callable[[Entry], None]


class Gathering:
    """Of all uploads of a broker, in the order in which they came. Belongs to one event loop."""

    def __init__(self) -> None:
        self._gathered: list[tuple[Propose, Entry]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._begun_s = 0.0  # on its clock: when the present span began
        self._count = 0  # of batches in it
        self._count_before = 0  # … and in the one before

    def add(self, propose: Propose, entries: Iterable[Entry]) -> None:
        """Have `propose` called with each of them: at once, or behind what is gathered, in `limits.UPLOAD_GATHER_S`."""
        gathered = self._gathered
        before = len(gathered)
        gathered.extend([(propose, entry) for entry in entries])
        self._measure(len(gathered) - before)
        if len(gathered) >= limits.GATHER_ENTRIES_MAX or not self._are_many:
            self.flush()
        elif self._timer is None:
            self._timer = self._loop.call_later(limits.UPLOAD_GATHER_S, self.flush)

    def flush(self) -> None:
        """Propose what is gathered. To be called before anything else is proposed for an upload: order counts."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        gathered, self._gathered = self._gathered, []
        for propose, entry in gathered:
            propose(entry)

    @property
    def _are_many(self) -> bool:
        return self._count_before >= limits.UPLOAD_GATHER_FROM or self._count >= limits.UPLOAD_GATHER_FROM

    def _measure(self, count: int) -> None:
        now_s = self._loop.time()
        past_s = now_s - self._begun_s
        if past_s >= limits.UPLOAD_GATHER_S:
            self._count_before = self._count if past_s < 2 * limits.UPLOAD_GATHER_S else 0
            self._begun_s, self._count = now_s, 0
        self._count += count
