"""A number that only rises, and those who wait until it is high enough."""

from __future__ import annotations

import asyncio


class Rising:
    """Begins as `value`. Whoever is cancelled while it waits is forgotten at the next rise."""

    def __init__(self, value: int = 0) -> None:
        self.value = value
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._error: Exception | None = None

    async def reach(self, value: int) -> None:
        """Return once it is at `value` or above. Raises what `fail` was told, if it is not by then."""
        if self.value >= value:
            return
        if self._error is not None:
            raise self._error
        reached: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((value, reached))
        await reached

    def rise(self, value: int) -> None:
        """To `value`, unless it is there already: wake those who waited for no more."""
        self.value = max(self.value, value)
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        for wanted, reached in waiting:
            if reached.done():
                continue
            if wanted <= self.value:
                reached.set_result(None)
            else:
                self._waiting.append((wanted, reached))

    def fail(self, error: Exception) -> None:
        """It will never rise again."""
        self._error = error
        waiting, self._waiting = self._waiting, []
        for _, reached in waiting:
            if not reached.done():
                reached.set_exception(error)
