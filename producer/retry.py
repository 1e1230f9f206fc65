"""Attempts until one is answered, inside a deadline."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio
import stamina

from producer.errors import AttemptFailed, Unavailable
from producer.limits import Limits

__all__ = ["persist"]

T = TypeVar("T")


async def persist(attempt: Callable[[], Awaitable[T]], limits: Limits, *, deadline_s: float | None = None) -> T:
    """What `attempt` returns, as soon as it does not raise AttemptFailed.

    Between attempts it waits: as long as the broker asked, else exponentially longer with jitter. Any other error
    passes through at once. Raises Unavailable if `deadline_s` (default: the limit) passed first; attempt and wait under
    way are then cancelled.
    """
    failure: AttemptFailed | None = None
    seconds = limits.deadline_s if deadline_s is None else deadline_s
    with anyio.move_on_after(seconds):
        try:
            # The deadline is the scope's: it bounds the attempt and the wait under way too.
            async for retry in stamina.retry_context(
                on=_wait_s,
                attempts=None,
                timeout=None,
                wait_initial=limits.backoff_s_initial,
                wait_max=limits.backoff_s_max,
                wait_jitter=limits.backoff_s_jitter,
            ):
                with retry:
                    try:
                        return await attempt()
                    except AttemptFailed as error:
                        failure = error
                        raise
        except AttemptFailed:  # retries are switched off (stamina.set_active, stamina.set_testing)
            pass
    status = None if failure is None else failure.status
    raise Unavailable(f"no answer within {seconds:g} s ({failure or 'silence'})", status=status) from failure


def _wait_s(error: Exception) -> bool | float:
    """Whether to try again; as a number, after how many seconds."""
    if not isinstance(error, AttemptFailed):
        return False
    return True if error.retry_after_s is None else error.retry_after_s
