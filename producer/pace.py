"""A bounded rate: how long to wait before so many bytes may leave. Pure; the time is an argument."""

from __future__ import annotations

__all__ = ["Pace"]


class Pace:
    """A bucket that holds `burst_bytes` and fills with `bytes_per_s`. What is taken may overdraw it; the next waits."""

    def __init__(self, bytes_per_s: float, burst_bytes: float) -> None:
        self._bytes_per_s = bytes_per_s
        self._burst_bytes = burst_bytes
        self._left = burst_bytes
        self._at_s = 0.0

    def take(self, count: int, now_s: float) -> float:
        """Take so many bytes; how long to wait before they are sent."""
        filled = (now_s - self._at_s) * self._bytes_per_s
        self._left = min(self._burst_bytes, self._left + filled) - count
        self._at_s = now_s
        return max(0.0, -self._left / self._bytes_per_s)
