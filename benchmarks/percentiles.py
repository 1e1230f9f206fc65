"""Latencies in an HdrHistogram: exact to three digits from a microsecond to two minutes, whatever their number."""

from __future__ import annotations

from typing import Final

from hdrh.histogram import HdrHistogram

MOST_US: Final = 120_000_000
DIGITS: Final = 3
ENCODED_DIGITS: Final = 2


class Latencies:
    """What was recorded, and its percentiles in milliseconds."""

    def __init__(self) -> None:
        self._histogram = HdrHistogram(1, MOST_US, DIGITS)

    def record(self, seconds: float) -> None:
        """Add one; what is longer than the longest counts as that."""
        self._histogram.record_value(min(MOST_US, max(1, round(seconds * 1e6))))

    @property
    def count(self) -> int:
        """How many were recorded."""
        return int(self._histogram.get_total_count())

    def ms(self, percentile: float) -> float:
        """The latency that `percentile` of 100 do not exceed."""
        return float(self._histogram.get_value_at_percentile(percentile)) / 1000

    @property
    def most_ms(self) -> float:
        """The longest."""
        return float(self._histogram.get_max_value()) / 1000

    def encoded(self) -> str:
        """In HdrHistogram's own compressed form, as its tools in any language read it; to two digits: small."""
        coarser = HdrHistogram(1, MOST_US, ENCODED_DIGITS)
        for value in self._histogram.get_recorded_iterator():
            coarser.record_value(value.value_iterated_to, value.count_at_value_iterated_to)
        encoded: bytes = coarser.encode()
        return encoded.decode()


def latencies(seconds: list[float]) -> Latencies:
    """All of them, recorded."""
    found = Latencies()
    for one in seconds:
        found.record(one)
    return found
