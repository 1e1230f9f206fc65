"""What a `Journal` says of others where there are none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from broker.core.outcome import Outcome
from broker.journal import Commit
from broker.journal.clock import Clock, Milliseconds


class LoneJournal:
    """The half of a `Journal` that is alike wherever this process alone proposes, the time among it."""

    lone_proposer: bool = True
    identity: bytes = b""

    def __init__(self, wall_ms: Milliseconds, monotonic_ms: Milliseconds) -> None:
        self._wall_ms, self._monotonic_ms = wall_ms, monotonic_ms
        self._begin_time(0)

    def _begin_time(self, durable_ms: int) -> None:
        """It runs on from here, or from the wall clock where that is later."""
        self._clock = Clock(durable_ms, self._wall_ms, self._monotonic_ms)

    def now_ms(self) -> int:
        """As in `Journal`; see `Clock`. Any thread."""
        return self._clock.now_ms()

    def heed(self, is_watched: Callable[[], bool]) -> None:
        """There are no others."""

    def applied(self, commit: Commit, outcomes: Sequence[Outcome]) -> None:
        """Never told: this process proposes alone."""

    def mark(self) -> bytes:
        """Nothing beside the index."""
        return b""

    async def catch_up(self) -> bool:
        """There are no others."""
        return False

    @property
    def lag_s(self) -> float:
        """There are no others."""
        return 0.0

    @property
    def events(self) -> Mapping[str, int]:
        """Nothing out of the ordinary."""
        return {}
