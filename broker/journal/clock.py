"""The time of a journal that this process alone writes."""

from __future__ import annotations

import time
from collections.abc import Callable

Milliseconds = Callable[[], int]


def wall_ms() -> int:
    """The computer's idea of the time: it may step either way."""
    return time.time_ns() // 1_000_000


def monotonic_ms() -> int:
    """Milliseconds since some moment of this process; never goes back."""
    return time.monotonic_ns() // 1_000_000


class Clock:
    """Runs on from the last durable time or from the wall clock, whichever is later, with the monotonic clock.

    So it never goes back, over restarts too, and a step of the wall clock while the process runs moves nothing.
    """

    def __init__(self, durable_ms: int, wall_ms: Milliseconds, monotonic_ms: Milliseconds) -> None:
        self._monotonic_ms = monotonic_ms
        self._ahead_ms = max(durable_ms, wall_ms()) - monotonic_ms()

    def now_ms(self) -> int:
        """The time now. Any thread."""
        return self._ahead_ms + self._monotonic_ms()
