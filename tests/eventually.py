"""Waiting for a condition, never for a time."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

POLL_S = 0.02
WAIT_S_MAX = 30.0


async def eventually(look: Callable[[], Awaitable[T]], wait_s_max: float = WAIT_S_MAX) -> T:
    """The first thing that is true of all that `look` returns. Raises TimeoutError."""
    async with asyncio.timeout(wait_s_max):
        while True:
            found = await look()
            if found:
                return found
            await asyncio.sleep(POLL_S)
