"""Whether the broker can be reached, as far as the attempts of one Producer tell. Pure; the time is an argument.

    healthy ── failures in a row ──► degraded ── more of them, for a while ──► unhealthy
       ▲                                │ ▲                                        │
       └──── successes in a row ────────┘ └────────── one success (a probe's) ─────┘

Healthy is as fast as it goes. Degraded sends one batch at a time and waits for its acknowledgement: what fails then
fails alone, and the next one is not wasted on it. Unhealthy sends nothing but one probe now and then: work that begins
fails at once instead of after a deadline, and work under way waits for the probe, within its own deadline.
"""

from __future__ import annotations

from enum import StrEnum

from producer.limits import Limits

__all__ = ["Health", "HealthState"]


class HealthState(StrEnum):
    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"


class Health:
    """The state, and the rules by which it moves."""

    def __init__(self, limits: Limits) -> None:
        self.state = HealthState.HEALTHY
        self._limits = limits
        self._failures = 0
        """In a row."""
        self._successes = 0
        """In a row, since it became degraded."""
        self._failing_since_s = 0.0
        """When the first failure of this row was; nothing if there is none."""
        self._probe_due_s = 0.0
        """When the next request may leave while it is unhealthy."""

    @property
    def is_healthy(self) -> bool:
        return self.state is HealthState.HEALTHY

    @property
    def is_unhealthy(self) -> bool:
        return self.state is HealthState.UNHEALTHY

    def succeeded(self) -> None:
        """The broker answered, whatever it thought of the request."""
        self._failures = 0
        if self.state is HealthState.UNHEALTHY:
            self.state = HealthState.DEGRADED
            self._successes = 0
        if self.state is HealthState.DEGRADED:
            self._successes += 1
            if self._successes >= self._limits.recovered_after:
                self.state = HealthState.HEALTHY

    def failed(self, now_s: float) -> None:
        """There was no usable answer."""
        if not self._failures:
            self._failing_since_s = now_s
        self._failures += 1
        self._successes = 0
        if self.state is HealthState.UNHEALTHY:
            self._probe_due_s = now_s + self._limits.probe_s
        elif self._failures >= self._limits.unhealthy_after and self._has_failed_long(now_s):
            self.state = HealthState.UNHEALTHY
            self._probe_due_s = now_s + self._limits.probe_s
        elif self._failures >= self._limits.degraded_after:
            self.state = HealthState.DEGRADED

    def _has_failed_long(self, now_s: float) -> bool:
        return now_s - self._failing_since_s >= self._limits.unhealthy_s

    def blocked_s(self, now_s: float) -> float:
        """How long nothing should be sent: 0.0 if a request may leave now."""
        return max(0.0, self._probe_due_s - now_s) if self.is_unhealthy else 0.0

    def take_probe(self, now_s: float) -> None:
        """A request leaves while it is unhealthy: no other one until it is answered, or this long."""
        self._probe_due_s = now_s + self._limits.probe_s
