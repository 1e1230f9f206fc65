"""What HTTP has done, as plain numbers: counting must cost nothing on the way of an append."""

from __future__ import annotations

from typing import Final

from broker.http.live_readers import LiveReaders

STATUS_CLASSES: Final = ("1xx", "2xx", "3xx", "4xx", "5xx")


class Traffic:
    """Read by the metrics."""

    def __init__(self, live: LiveReaders) -> None:
        self.live = live
        self._responses = [0] * (len(STATUS_CLASSES) + 1)
        self.bugs = 0
        """Requests that ran into an exception nobody expected."""

    def count(self, status: int) -> None:
        """Count a response."""
        self._responses[status // 100] += 1

    @property
    def responses(self) -> dict[str, int]:
        """Responses by the class of their status."""
        return dict(zip(STATUS_CLASSES, self._responses[1:], strict=True))
