"""Every bound of a client, with its unit and its reason."""

from __future__ import annotations

from dataclasses import dataclass, fields

__all__ = ["Limits", "RequestLimits"]

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLimits:
    """What every client allows one request. All values are positive; None means without bound.

    Raises ValueError if one is not positive.
    """

    connect_timeout_s: float = 5.0
    attempt_timeout_s: float = 10.0
    """Silence after which a request that should be answered at once is given up. Above the broker's own 5 s wait for
    room, after which it answers 503 itself. A function that gives a header has as long."""
    deadline_s: float | None = 30.0
    """From the first attempt of a request to giving it up, all attempts and waits included. A broker's restart takes
    seconds."""
    backoff_s_initial: float = 0.1
    backoff_s_max: float = 5.0
    backoff_s_jitter: float = 0.5
    """Added at random to each wait, so that the clients of a restarted broker do not return in step."""
    retry_after_s_max: float = 60.0
    """What a broker may ask to wait; beyond it, asking again is cheaper than believing a broken clock."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and value <= 0 and field.name not in self._may_be_zero():
                raise ValueError(f"{field.name} must be above 0")

    @staticmethod
    def _may_be_zero() -> frozenset[str]:
        return frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits(RequestLimits):
    """What a reader allows itself. All values are positive; None means without bound.

    Raises ValueError if one is not positive.
    """

    batch_bytes_max: int = 32 * MIB
    """One page, one live batch or one list of messages. A broker of ours puts about 1 MiB into a page, or one single
    larger batch of up to 4 MiB, which base64 and framing may nearly double; a long session's messages are the largest
    thing there is."""
    read_bytes_max: int = 256 * MIB
    """All that one `read` holds in memory, as it came over the wire."""
    silence_s_max: float = 37.5
    """Silence after which a live connection counts as dead. A broker writes a keep-alive comment every 15 s and ends a
    long-poll after 30 s: two comments may be late before one is missed."""
    first_event_s_max: float = 5.0
    """How long a live connection may take to say anything at all. A broker tells at once where the stream stands; if
    nothing comes, something on the way may be holding it back, and an ordinary read finds out. Doubled each time that
    there really was nothing to tell, up to `silence_s_max`."""
    polling_s: float = 300.0
    """How long a reader polls when events were held back, before it tries a live connection again: finding out costs
    `first_event_s_max` each time."""
    polling_wait_s: float = 1.0
    """Between two reads of a list of sessions whose changes are held back. A stream is polled without a wait: there the
    broker answers when there is something new."""
    sessions_max: int = 10_000
    """Sessions that one list keeps: beyond it a list is no longer one to look at. About 1 KiB each."""
    stalled_s: float = 30.0
    """How long nothing may come of a running answer until a view calls it stalled. As long as the lease that a broker
    gives when no other is asked for: a producer that is quiet for longer lives by its heartbeats, or not at all."""
    follow_deadline_s: float | None = None
    """As `deadline_s`, while following. Without bound: who follows wants to go on when the broker is back, whenever
    that is."""
    life_s_min: float = 1.0
    """A live connection that ends sooner and brought nothing counts as a failed attempt. A server that hangs up at once
    is so not called in a tight loop."""
