"""What a producer has done and has before it, in numbers: for a status line, a log, or an exporter of the caller's."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Duration", "Metrics"]


@dataclass(slots=True)
class Duration:
    """How long something took, each time that it was done."""

    count: int = 0
    total_s: float = 0.0
    max_s: float = 0.0
    last_s: float = 0.0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.total_s += seconds
        self.last_s = seconds
        self.max_s = max(self.max_s, seconds)


@dataclass(slots=True)
class Metrics:
    """Of one Producer. What is counted is counted since it was made; what is queued is as of this moment."""

    written_chunks: int = 0
    """Taken by `write`, those that were merged included."""
    merged_chunks: int = 0
    """Became part of the chunk before; nothing is lost."""
    dropped_chunks: int = 0
    """Not sent, by the caller's own policy; each generation's end says how many of its own."""
    acknowledged_batches: int = 0
    failed_attempts: int = 0
    """Requests for a batch that had no usable answer, and were made again."""
    resent_batches: int = 0
    """Sent again for any reason: an attempt that failed, or one that overtook another batch."""
    errors: int = 0
    """Generations and stream producers that could not go on: stopped ones too."""
    failed_finishes: int = 0
    """Those of them that had been told their end."""
    enqueue_to_durable: Duration = field(default_factory=Duration)
    """From the writing of a batch's oldest chunk to its acknowledgement."""
    finish: Duration = field(default_factory=Duration)
    """From the call to its acknowledgement, with all that had to be sent before."""
    settlement: Duration = field(default_factory=Duration)
    """From a generation's end to its being settled, those that were."""
    failed_settlement_attempts: int = 0
    """Times that the application could not settle one, and was asked again."""
    failed_settlements: int = 0
    """Given up: there is a record of each in its session."""
    untold_settlements: int = 0
    """Those of them of which there is no record, since the broker could not be told, or did not take it."""
    unsettled: int = 0
    """Being settled at this moment."""
    queued_chunks: int = 0
    """Written and not acknowledged."""
    queued_bytes: int = 0
    in_flight_batches: int = 0
