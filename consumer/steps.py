"""Steps that are tried until they succeed, and that may be told at any time to begin anew."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import anyio

from consumer.limits import RequestLimits
from consumer.retry import persist

__all__ = ["Steps"]

T = TypeVar("T")


class Steps(Generic[T]):
    """What follows something: `attempt` brings it a step further, `drop` gives up the connection that it holds.

    An attempt may be cancelled wherever it waits, and is made again then; so once it has moved what it follows, it must
    return without waiting. One step at a time.
    """

    def __init__(
        self, attempt: Callable[[], Awaitable[T]], drop: Callable[[], Awaitable[None]], limits: RequestLimits
    ) -> None:
        self._attempt = attempt
        self._drop = drop
        self._limits = limits
        self._step = anyio.CancelScope()
        self._begins_anew = False

    async def next(self, deadline_s: float | None) -> T:
        """What the attempt returns. Raises as `persist`."""
        while True:
            if self._begins_anew:
                self._begins_anew = False
                await self._drop()
            with anyio.CancelScope() as self._step:
                return await persist(self._attempt, self._limits, deadline_s=deadline_s, interrupts=False)

    def begin_anew(self) -> None:
        """Give up the connection, and whatever this waits for, and make the next attempt at once."""
        self._begins_anew = True
        self._step.cancel()
