"""Every bound of a producer, with its unit and its reason."""

from __future__ import annotations

from dataclasses import dataclass

from consumer.limits import RequestLimits

__all__ = ["Limits"]

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits(RequestLimits):
    """What a producer allows itself; all values are positive, `linger_ms` may be 0.

    Raises ValueError if one is not, or if two contradict each other.
    """

    linger_ms: float = 5.0
    """How long a chunk waits for company. Far below what an eye notices, and most of what a model emits in a burst
    comes within it. The first chunk of a generation never waits. Measured at 40 tokens/s, 0 to 20 ms make no difference
    to speak of, since what waits for an acknowledgement grows anyway (`benchmarks.uploads`)."""
    batch_bytes_max: int = 256 * KIB
    """A batch is cut at this many bytes of body; a larger chunk travels alone. A quarter of the smallest body limit
    that a broker of ours has, so a proxy's smaller limit can be met by lowering one number."""
    batch_chunks_max: int = 1000
    """A batch is cut at this many chunks. Flat out, batches of 10, 100, 1,000 and 4,000 cost the broker 128, 20, 5 and
    5 us a chunk (`benchmarks.uploads`): above this there is nothing to gain."""
    in_flight_max: int = 2
    """Batches sent and not acknowledged, each on a connection of its own. Chunks that come while all are under way make
    the next batch larger, so more of them buy little, and the more there are the more often one overtakes another and
    is sent twice: of eight answers at 40 tokens/s on a busy machine, none of 97 batches at 1, 25 of 113 at 2, 61 of 107
    at 4 (`benchmarks.uploads`). Two hide the round trip. Far below the 64 batches that a broker remembers receipts of.
    """
    streamed_in_flight_max: int = 16
    """The same over one connection, which keeps the order. Far below the 64 batches that a broker takes from one upload
    before they are durable."""
    buffer_bytes_max: int = 8 * MIB
    """Written and not acknowledged, in flight included; then `write` waits, so memory stays flat when the broker is
    slow."""
    buffer_chunks_max: int = 20_000
    """The same in chunks: small ones cost more memory than their bytes. Minutes of a fast model."""
    chunk_bytes_max: int = 1 * MIB - KIB
    """One chunk as JSON. With the array around it, it still fits the smallest body limit of a broker (1 MiB)."""

    compress_bytes_min: int | None = 16 * KIB
    """Request bodies of the session API from here on travel compressed; None: none do. Of text, zstd and gzip leave a
    third, of small deltas a tenth. From 16 KiB on, what that costs both sides in processor time is within the noise of
    what they do anyway, and over 10 Mbit/s batches of 64 KiB and 256 KiB take half as long; below, it costs a broker
    a tenth more and a round trip hides what it saves (`benchmarks.compression`). Batches of a running answer are
    hundreds of bytes; what gets this large is catching up, and pasted or attached."""

    deadline_s: float | None = 60.0
    """A broker's restart takes seconds; a machine's takes a minute, and what is being written cannot be read again."""
    flush_timeout_s: float = 60.0
    finish_timeout_s: float = 30.0
    """The ending of a generation: what is unacknowledged, and the finish. It also bounds how long a cancelled scope is
    held up. Whatever a broker did not get by then, its lease ends the generation."""

    settle_deadline_s: float = 300.0
    """From the first attempt to settle a generation to giving up: a deploy of the service that keeps quotas takes
    minutes. One attempt has `attempt_timeout_s`."""

    degraded_after: int = 3
    """Attempts that failed in a row, over all batches: then one batch at a time. A window of `in_flight_max` that is
    lost with its connection counts once for each of its batches."""
    recovered_after: int = 10
    """Answers in a row: then several at a time again. More than one window's worth."""
    unhealthy_after: int = 5
    unhealthy_s: float = 10.0
    """Failures in a row, and for how long at least: then nothing but probes. A broker that restarts is back sooner, and
    a client that just woke up should not be put off by its own network coming up."""
    probe_s: float = 2.0
    """How long between two probes of a broker that is taken for unhealthy: how late its return is noticed at most."""

    spool_bytes_max: int = 256 * MIB
    """What waits on disk for its delivery: a hundred thousand answers of a few KiB, or days of being offline."""
    catch_up_bytes_per_s: float = 4 * MIB
    """What leaves the spool, after as much at once: far above any model, and no storm on the network of a laptop that
    just woke up, nor on a broker that a thousand of them come back to."""
    catch_up_generations_max: int = 4
    """Generations of earlier processes that are delivered at once."""

    answer_bytes_max: int = 1 * MIB
    """One answer. Acknowledgements and refusals are hundreds of bytes; what is larger is not a broker's."""
    connections_max: int = 100
    """Of one Producer, whatever its generations: below the usual 1024 file descriptors of a process."""
    connection_idle_s: float = 60.0
    """How long an idle connection is kept. If the broker closes it earlier, that is noticed before use."""

    def __post_init__(self) -> None:
        RequestLimits.__post_init__(self)  # a class with slots is made anew by `dataclass`, and `super()` gets lost
        if self.linger_ms < 0:
            raise ValueError("linger_ms must not be below 0")
        if self.chunk_bytes_max > self.buffer_bytes_max:
            raise ValueError("chunk_bytes_max must not be above buffer_bytes_max: such a chunk would wait for ever")

    @staticmethod
    def _may_be_zero() -> frozenset[str]:
        return frozenset({"linger_ms"})
