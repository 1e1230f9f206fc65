"""Sessions that wait to be brought up to date: each once, and never in two hands."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

import anyio

from consumer.session_list import SessionSummary

__all__ = ["Queue"]

WAITING_MAX: Final = 1_000
"""Sessions that wait, about 1 KiB each; then whoever finds more of them waits. The broker does not mind: it keeps for
each session only how it is now."""


class Queue:
    """First come, first served. A session that moves again while it waits, or while it is in hand, waits once."""

    def __init__(self, waiting_max: int = WAITING_MAX) -> None:
        self._waiting_max = waiting_max
        self._waiting: OrderedDict[str, SessionSummary | None] = OrderedDict()
        self._in_hand: set[str] = set()
        self._changed = anyio.Condition()

    async def put(self, session_id: str, session: SessionSummary | None) -> None:
        """Add a session as it was told last; None if the broker is to be asked. Waits for room."""
        async with self._changed:
            while len(self._waiting) >= self._waiting_max and session_id not in self._waiting:
                await self._changed.wait()
            self._waiting[session_id] = session
            self._changed.notify_all()

    async def take(self) -> tuple[str, SessionSummary | None]:
        """The next one. It is in hand until it is `done`."""
        async with self._changed:
            while True:
                for session_id in self._waiting:
                    if session_id not in self._in_hand:
                        session = self._waiting.pop(session_id)
                        self._in_hand.add(session_id)
                        self._changed.notify_all()
                        return session_id, session
                await self._changed.wait()

    async def done(self, session_id: str) -> None:
        async with self._changed:
            self._in_hand.discard(session_id)
            self._changed.notify_all()

    async def until_empty(self) -> None:
        """Return when nothing waits and nothing is in hand."""
        async with self._changed:
            while self._waiting or self._in_hand:
                await self._changed.wait()
