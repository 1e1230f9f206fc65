"""The pipeline of one generation: its batches on the session API, its lease, and its end when a batch is refused."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import anyio
import msgspec

from consumer.answer import check, read
from consumer.errors import ClientError, Refused, Unavailable, Unhealthy
from consumer.retry import persist
from consumer.transport import Request, Transport
from consumer.wire import JSON, PRODUCER_SEQ, STREAM_DURABILITY, Code, Status
from producer.batcher import Batch
from producer.encoding import encode_chunk
from producer.limits import Limits
from producer.pipeline import Pipeline

__all__ = ["Place", "Receipt", "Sender"]

HEARTBEATS_A_LEASE = 3
"""Two of them may be lost before the lease runs out."""


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


@dataclass(frozen=True, slots=True)
class Receipt:
    """What the broker acknowledged: everything up to this batch is in the log."""

    offset: str
    """Where the log stands after it; a reader that starts here gets what came later."""
    seq: int
    fence: int
    durability: str
    """What the acknowledgement promises: a value of `consumer.wire.Durability`, empty if the broker did not say."""
    duplicate: bool = False
    """It had arrived before: an earlier attempt did it, or an earlier process."""


class _Acknowledgement(msgspec.Struct):
    seq: int
    offset: str
    fence: int
    duplicate: bool = False


class Sender(Pipeline[Receipt]):
    """What is written into one generation, on its way."""

    def __init__(self, transport: Transport, place: Place, limits: Limits) -> None:
        super().__init__(f"the generation at {place.target}", limits, next_seq=place.next_seq)
        self._transport = transport
        self._place = place

    @property
    def chunks_durable(self) -> int:
        """Chunks of the generation that are known to be durable; every one before them is."""
        return self._place.chunks + self.chunks_acked

    @property
    def is_open(self) -> bool:
        """Whether the broker is known to have the generation."""
        return self._window.acked_seq >= 0

    @property
    def has_sent(self) -> bool:
        """Whether the broker may have the generation."""
        return self._window.next_seq > 0

    def close(self, body: bytes) -> None:
        """Queue the finish, and start the clock of the ending."""
        self.end(_finish(body))

    def abort(self) -> None:
        """See Pipeline."""
        if not self.closing and self.error is None:
            self.close(encode_chunk({"status": Status.ABORTED, "reason": "the producer was closed"}))

    async def end_unopened(self, body: bytes) -> Receipt:
        """Finish in the place of the first batch. Call it when `over`, and no batch was acknowledged."""
        return await persist(partial(self._post, 0, _finish(body)), self._limits, deadline_s=self._limits.deadline_s)

    async def _post(self, seq: int, batch: Batch) -> Receipt:
        target = f"{self._place.target}/{'finish' if batch.last else 'chunks'}"
        if seq == 0:
            target = f"{target}?{self._place.opening}"
        headers = {"content-type": JSON, PRODUCER_SEQ: str(seq)}
        response = await self._transport.send(Request("POST", target, batch.body, headers))
        answer = read(response, _Acknowledgement)
        durability = response.headers.get(STREAM_DURABILITY, "")
        return Receipt(answer.offset, answer.seq, answer.fence, durability, answer.duplicate)

    async def _conclude_refused(self, refusal: Refused) -> None:
        """End the generation in place of the batch that the broker will not take, and say what is missing.

        Everything before that batch is acknowledged and nothing after it was accepted, so its seq is the next one.
        """
        head = self._window.head
        if head is None or refusal.code == Code.PAYLOAD_MISMATCH:  # then that seq is another writer's
            return
        lost = {"firstChunk": self.chunks_durable, "chunks": self._window.chunks + self._batcher.chunks}
        body = encode_chunk({"status": "failed", "error": {"code": refusal.code, "lost": lost}})
        attempt = partial(self._post, head.seq, _finish(body))
        with anyio.CancelScope(shield=True):
            try:
                await persist(attempt, self._limits, deadline_s=self._limits.finish_timeout_s)
            except ClientError as error:
                refusal.add_note(f"the generation could not be ended as failed either: {error}")

    async def _keep_alive(self) -> None:
        """Renew the lease while nothing else does."""
        interval_s = self._place.lease_ms / 1000 / HEARTBEATS_A_LEASE
        renewed_s = anyio.current_time()
        while True:
            renewed_s = max(renewed_s, self._acknowledged_s)
            quiet_s = anyio.current_time() - renewed_s
            if quiet_s < interval_s:
                await anyio.sleep(interval_s - quiet_s)
            elif self.is_open:
                renewed_s = await self._renew(interval_s) or renewed_s
            else:
                renewed_s = anyio.current_time()  # no lease yet

    async def _renew(self, within_s: float) -> float | None:
        """One heartbeat; since when the lease then runs, None if it was not heard."""
        request = Request("POST", f"{self._place.target}/heartbeat")
        sent_s = anyio.current_time()
        try:
            await persist(partial(self._call, request), self._limits, deadline_s=within_s)
        except Unhealthy as error:
            await anyio.sleep(error.retry_after_s or 0.0)
            return None
        except Unavailable:
            return None  # it is tried again at once, and the next batch tells whether the lease held
        except ClientError as error:
            if not self.closing:  # else it may have crossed our own finish, whose answer tells more
                self.abandon(error)
        return sent_s

    async def _call(self, request: Request) -> None:
        check(await self._transport.send(request))


def _finish(body: bytes) -> Batch:
    return Batch(body, chunks=0, content_bytes=0, last=True)
