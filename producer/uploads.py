"""How the batches of one generation travel: one small port, and the plainest way through it, a POST for each batch.

The others keep one connection for the whole answer (`streaming`): `ndjson` and `websocket`. Whichever it is, a batch is
sent under its seq, an acknowledgement says that it is durable, and what is lost on the way is sent again by the window.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import msgspec

from consumer.answer import read
from consumer.transport import Request, Transport
from consumer.wire import JSON, PRODUCER_SEQ, STREAM_DURABILITY, TXID
from producer.batcher import Batch

__all__ = ["Acknowledgement", "Place", "PostUpload", "Receipt", "Upload", "UploadMode"]


class UploadMode(StrEnum):
    """How batches travel. Same guarantees, same calls; one that a proxy does not let through falls back to `post`."""

    POST = "post"  # a request for each batch, several at once
    NDJSON = "ndjson"  # one request for the whole answer, a line for each batch
    WEBSOCKET = "websocket"  # one WebSocket for the whole answer; needs the extra `websocket`


@dataclass(frozen=True, slots=True)
class Place:
    """Where a generation is written, and where its sequence stands."""

    target: str
    """The path of the generation."""
    opening: str
    """The query that opens it; travels with seq 0 only."""
    lease_ms: int
    next_seq: int = 0
    chunks: int = 0
    """Durable before this process took it up."""
    txid: str | None = None
    """What the batch is called that opens it."""

    def query_for(self, seq: int) -> str:
        """What follows the path of a batch with this seq."""
        return f"?{self.opening}" if seq == 0 else ""


@dataclass(frozen=True, slots=True)
class Receipt:
    """What the broker acknowledged: everything up to this batch is in the log."""

    offset: str
    """Where the log stands after it; a reader that starts here gets what came later. Empty if the broker does not
    remember it any more."""
    seq: int
    fence: int
    durability: str
    """What the acknowledgement promises: a value of `consumer.wire.Durability`, empty if the broker did not say."""
    duplicate: bool = False
    """It had arrived before: an earlier attempt did it, or an earlier process."""


class Acknowledgement(msgspec.Struct):
    """As the broker writes it."""

    seq: int
    fence: int
    offset: str | None = None
    duplicate: bool = False

    def receipt(self, durability: str) -> Receipt:
        return Receipt(self.offset or "", self.seq, self.fence, durability, self.duplicate)


class Upload(Protocol):
    """Sends batches of one generation."""

    async def send(self, seq: int, batch: Batch) -> Receipt:
        """Send a batch once; returns when it is acknowledged. Called for several batches at once, in their order.

        Raises AttemptFailed if there was no answer, or one that may be another later; Fenced, Gap and Refused as the
        broker says, of this batch or of one before it.
        """
        ...

    async def run(self) -> None:
        """What has to go on beside the sending, until it is cancelled."""
        ...


class PostUpload:
    """A request for each batch. Several at once overtake each other; the window sees to the order."""

    def __init__(self, transport: Transport, place: Place) -> None:
        self._transport = transport
        self._place = place

    async def send(self, seq: int, batch: Batch) -> Receipt:
        """See Upload."""
        verb = "finish" if batch.last else "chunks"
        target = f"{self._place.target}/{verb}{self._place.query_for(seq)}"
        headers = {"content-type": JSON, PRODUCER_SEQ: str(seq)}
        txid = batch.txid or (self._place.txid if seq == 0 else None)
        if txid is not None:
            headers[TXID] = txid
        response = await self._transport.send(Request("POST", target, batch.body, headers))
        return read(response, Acknowledgement).receipt(response.headers.get(STREAM_DURABILITY, ""))

    async def run(self) -> None:
        """See Upload."""


Reported = Callable[[Exception], None]
"""Told of an error that no batch is waiting for: a stop, say."""
Connect = Callable[[int], Awaitable["Connection"]]
"""Opens a connection whose first batch has this seq."""


class Connection(Protocol):
    """One connection that carries batches in their order, and acknowledgements back."""

    async def send(self, seq: int, batch: Batch) -> None:
        """Write a batch. Raises AttemptFailed if the connection is lost."""
        ...

    async def receive(self) -> Receipt:
        """The next acknowledgement; it stands for everything up to its seq.

        Raises what the broker refused with, and AttemptFailed if the connection is lost or ended.
        """
        ...

    async def aclose(self) -> None:
        """Close it. Never raises."""
        ...
