"""Waiting for a condition, never for a time."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

POLL_S = 0.02
POLL_OWN_S = 0.002
"""Of a fact that costs nothing to look at."""
WAIT_S_MAX = 30.0


async def eventually(look: Callable[[], Awaitable[T]], wait_s_max: float = WAIT_S_MAX) -> T:
    """The first thing that is true of all that `look` returns. Raises TimeoutError."""
    async with asyncio.timeout(wait_s_max):
        while True:
            found = await look()
            if found:
                return found
            await asyncio.sleep(POLL_S)


async def until(fact: Callable[[], object]) -> None:
    """Return as soon as it is so: a counter, a file, a list that others fill. Raises TimeoutError."""
    async with asyncio.timeout(WAIT_S_MAX):
        while not fact():  # noqa: ASYNC110 -- such facts have no event that could be waited for
            await asyncio.sleep(POLL_OWN_S)
