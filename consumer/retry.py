"""Attempts until one is answered, inside a deadline."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import stamina

from consumer.errors import AttemptFailed, Unavailable
from consumer.limits import Limits

__all__ = ["persist"]

T = TypeVar("T")


async def persist(attempt: Callable[[], Awaitable[T]], limits: Limits, deadline_s: float | None) -> T:
    """What `attempt` returns, as soon as it does not raise AttemptFailed.

    Between attempts it waits: as long as the broker asked, within `retry_after_s_max`, else exponentially longer with
    jitter. Any other error passes through at once. Raises Unavailable when an attempt fails after `deadline_s`; an
    attempt bounds itself, so it is never cut off where it may have got something.
    """

    def wait_s(error: Exception) -> bool | float:
        """Whether to try again; as a number, after how many seconds."""
        if not isinstance(error, AttemptFailed):
            return False
        return True if error.retry_after_s is None else min(error.retry_after_s, limits.retry_after_s_max)

    try:
        async for retry in stamina.retry_context(
            on=wait_s,
            attempts=None,
            timeout=deadline_s,
            wait_initial=limits.backoff_s_initial,
            wait_max=limits.backoff_s_max,
            wait_jitter=limits.backoff_s_jitter,
        ):
            with retry:
                return await attempt()
    except AttemptFailed as error:
        raise Unavailable(f"gave up: {error}", status=error.status) from error
    raise AssertionError("retry_context ends by returning or raising")
