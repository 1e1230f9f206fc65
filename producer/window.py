"""Which batches of one writer are under way, which may be sent, and which are durable. Pure: a state machine.

A writer is a generation, or the producer of a raw stream.

The broker accepts the batches of one writer in the order of their seq and in no other. Requests travel over several
connections and overtake each other; answers get lost. Two rules make that harmless:

- A batch is sent the first time as soon as there is room. It is sent *again* only as the head of the window, when
  everything before it is acknowledged. So after a loss the window heals one batch at a time, always from its oldest.
- A refusal of a batch that was not the head when it was sent is not believed: a gap then only means that it overtook
  another. It is sent again as the head, and a refusal of the head is final. A gap there is a real one: the broker
  misses what it had acknowledged. So whatever was written before a refused batch is durable when the refusal is told.

While one waits to be sent again, nothing new is admitted: it would meet a gap for certain, and the window would go on
like that for ever, two requests for each batch. What is written meanwhile makes the next batch larger.

Nothing follows the first batch until that is acknowledged. There a generation opens or an epoch begins, and there a
second writer under the same name is found out (its bytes under that seq differ), before a batch of ours could be taken
after one of its. For the same reason an answer settles its own batch only: that batch 6 was accepted does not prove
that 5 was ours.

A flight moves: ready → sent → (held → ready → sent …) → acknowledged, and is then forgotten.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum, auto
from typing import Generic, TypeVar

from producer.batcher import Batch

__all__ = ["Flight", "State", "Window"]

R = TypeVar("R")


class State(Enum):
    """Where a flight stands."""

    READY = auto()  # may be sent now
    SENT = auto()  # a request is out
    HELD = auto()  # was sent, is to be sent again, and is not the head


@dataclass(slots=True, eq=False)
class Flight:
    """A batch that has a seq and is not acknowledged."""

    seq: int
    batch: Batch
    state: State = State.READY
    sent_as_head: bool = False
    """Whether everything before it was acknowledged when its newest request left."""
    was_sent: bool = False
    """Whether a request has left at all."""


class Window(Generic[R]):
    """The flights of one writer, oldest first. `R` is what an acknowledgement carries.

    Always: acked_seq < every seq in flight < next_seq, and between them nothing is missing that was not acknowledged.
    """

    def __init__(self, *, next_seq: int, in_flight_max: int) -> None:
        self.next_seq = next_seq
        self.acked_seq = next_seq - 1
        """It and everything before it are acknowledged."""
        self.receipt: R | None = None
        """The acknowledgement of `acked_seq`; None until there was one."""
        self.chunks_acked = 0
        """In the batches up to `acked_seq` that went through this window."""
        self.bytes = 0
        """Of the chunks in flight."""
        self.chunks = 0
        self.in_flight_max = in_flight_max
        self._flights: OrderedDict[int, Flight] = OrderedDict()
        self._early: dict[int, tuple[R, int]] = {}
        """Acknowledged before a predecessor was: receipt and chunks, by seq."""

    def __len__(self) -> int:
        return len(self._flights)

    @property
    def has_room(self) -> bool:
        """Whether another batch may be admitted."""
        if self.receipt is None:
            return not self._flights
        return len(self._flights) < self.in_flight_max and not self.is_healing

    @property
    def is_healing(self) -> bool:
        """Whether something waits to be sent again, behind the head."""
        return any(flight.state is State.HELD for flight in self._flights.values())

    @property
    def head(self) -> Flight | None:
        """The oldest flight; None if everything admitted is acknowledged."""
        return next(iter(self._flights.values()), None)

    def admit(self, batch: Batch) -> Flight:
        """Give a batch the next seq. Call it only while `has_room`."""
        flight = Flight(self.next_seq, batch)
        self._flights[flight.seq] = flight
        self.next_seq += 1
        self.bytes += batch.content_bytes
        self.chunks += batch.chunks
        return flight

    def send(self, flight: Flight) -> None:
        """A request for this flight leaves. Call it only while it is READY."""
        flight.state = State.SENT
        flight.was_sent = True
        flight.sent_as_head = flight is self.head

    def acknowledge(self, flight: Flight, receipt: R) -> None:
        """The broker has it, as new or as a duplicate."""
        del self._flights[flight.seq]
        self.bytes -= flight.batch.content_bytes
        self.chunks -= flight.batch.chunks
        self._early[flight.seq] = (receipt, flight.batch.chunks)
        while (next_acked := self._early.pop(self.acked_seq + 1, None)) is not None:
            self.acked_seq += 1
            self.receipt, chunks = next_acked
            self.chunks_acked += chunks
        self._release_head()

    def retry(self, flight: Flight) -> None:
        """The attempt failed, with or without effect."""
        flight.state = State.HELD
        self._release_head()

    def retry_as_head(self, flight: Flight) -> bool:
        """The broker refused it. False if that is final: it was the head already, and stays as it is."""
        if flight.sent_as_head:
            return False
        self.retry(flight)
        return True

    def _release_head(self) -> None:
        head = self.head
        if head is not None and head.state is State.HELD:
            head.state = State.READY
