"""A bell that any number of tasks wait for."""

from __future__ import annotations

import anyio

__all__ = ["Signal"]


class Signal:
    """Wakes everybody who waits at the moment it rings; who comes later waits for the next ring.

    Waiters look at the state again themselves: a ring says that something changed, not what.
    """

    def __init__(self) -> None:
        self._next = anyio.Event()

    def ring(self) -> None:
        """Wake all who wait."""
        self._next.set()
        self._next = anyio.Event()

    async def wait(self) -> None:
        """Return at the next ring."""
        await self._next.wait()
