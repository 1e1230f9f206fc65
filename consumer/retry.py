"""Attempts until one is answered, inside a deadline."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from functools import partial
from http import HTTPStatus
from typing import Final, TypeVar

import anyio
import stamina

from consumer.errors import AttemptFailed, RateLimited, Unavailable
from consumer.limits import RequestLimits

__all__ = ["persist"]

T = TypeVar("T")

_LEFT_S_MIN: Final = 1e-6
"""Of a deadline, once an attempt has failed: of none at all stamina warns."""


async def persist(
    attempt: Callable[[], Awaitable[T]],
    limits: RequestLimits,
    *,
    deadline_s: float | None,
    interrupts: bool = True,
) -> T:
    """What `attempt` returns, as soon as it does not raise AttemptFailed.

    Between attempts it waits: as long as the broker asked, within `retry_after_s_max`, else exponentially longer with
    jitter. Any other error passes through at once. Raises Unavailable (RateLimited if the last answer was 429) if
    `deadline_s` passed first; None is no deadline. When it `interrupts`, attempt and wait under way are then
    cancelled; otherwise it is an attempt that fails after the deadline which ends it.
    """
    failure: AttemptFailed | None = None
    begun_s = anyio.current_time()
    with anyio.move_on_after(deadline_s if interrupts and deadline_s is not None else math.inf):
        try:
            return await attempt()  # most are answered at once: whatever would repeat them costs more than they do
        except AttemptFailed as error:
            failure = error
        try:
            async for retry in stamina.retry_context(
                on=partial(_wait_s, limits),
                attempts=None,
                timeout=None if interrupts or deadline_s is None else _left_s(begun_s, deadline_s),
                wait_initial=limits.backoff_s_initial,
                wait_max=limits.backoff_s_max,
                wait_jitter=limits.backoff_s_jitter,
            ):
                with retry:
                    if retry.num == 1:  # has been made
                        raise failure
                    try:
                        return await attempt()
                    except AttemptFailed as error:
                        failure = error
                        raise
        except AttemptFailed:  # past the deadline, or retries are switched off (stamina.set_active, set_testing)
            pass
    raise _given_up(failure, deadline_s) from failure


def _wait_s(limits: RequestLimits, error: Exception) -> bool | float:
    """Whether to try again; as a number, after how many seconds."""
    if not isinstance(error, AttemptFailed):
        return False
    return True if error.retry_after_s is None else min(error.retry_after_s, limits.retry_after_s_max)


def _left_s(begun_s: float, deadline_s: float) -> float:
    """What is left of the deadline, in seconds."""
    return max(begun_s + deadline_s - anyio.current_time(), _LEFT_S_MIN)


def _given_up(failure: AttemptFailed | None, deadline_s: float | None) -> Unavailable:
    within = "" if deadline_s is None else f" within {deadline_s:g} s"
    text = f"no answer{within} ({failure or 'silence'})"
    if failure is None:
        return Unavailable(text)
    kind = RateLimited if failure.status == HTTPStatus.TOO_MANY_REQUESTS else Unavailable
    return kind(text, status=failure.status, retry_after_s=failure.retry_after_s)
