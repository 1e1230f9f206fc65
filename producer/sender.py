"""The pipeline of one generation: its batches on the session API, its lease, and its end when a batch is refused."""

from __future__ import annotations

from functools import partial

import anyio

from consumer.answer import check
from consumer.errors import BadAnswer, ClientError, Refused, Unavailable, Unhealthy
from consumer.retry import persist
from consumer.transport import Request
from consumer.wire import Code, Status
from producer.batcher import Batch
from producer.ending import Finish, finish_of
from producer.guard import GuardedTransport
from producer.limits import Limits
from producer.ndjson import NdjsonConnection
from producer.pipeline import Pipeline
from producer.streaming import Silence, StreamingUpload
from producer.uploads import Connection, Place, PostUpload, Receipt, UploadMode
from producer.websocket import SocketConnection

__all__ = ["Sender"]

HEARTBEATS_A_LEASE = 3
"""Two of them may be lost before the lease runs out."""


class Sender(Pipeline[Receipt]):
    """What is written into one generation, on its way."""

    def __init__(
        self, transport: GuardedTransport, place: Place, limits: Limits, mode: UploadMode = UploadMode.POST
    ) -> None:
        streams = mode is not UploadMode.POST and transport.carries_streams
        in_flight_max = limits.streamed_in_flight_max if streams else limits.in_flight_max
        super().__init__(
            f"the generation at {place.target}", limits, next_seq=place.next_seq, in_flight_max=in_flight_max
        )
        self._transport = transport
        self._place = place
        self._mode = mode
        self._posts = PostUpload(transport.compressing, place)
        self._stream = self._streaming() if streams else None
        self.told_status = Status.COMPLETE
        """How it ends, once that was told: complete, if an earlier process has."""

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

    def close(self, finish: Finish) -> None:
        """Queue the finish, and start the clock of the ending."""
        self.told_status = finish.status
        self.end(_finish(finish))

    def abort(self) -> None:
        """See Pipeline."""
        if not self.closing and self.error is None:
            self.close(finish_of(Status.ABORTED, reason="the producer was closed"))

    async def end_unopened(self, finish: Finish) -> Receipt:
        """Finish in the place of the first batch. Call it when `over`, and no batch was acknowledged."""
        return await persist(
            partial(self._posts.send, 0, _finish(finish)), self._limits, deadline_s=self._limits.deadline_s
        )

    async def _post(self, seq: int, batch: Batch) -> Receipt:
        """See Pipeline. Over the connection, if there is one, and what may go there."""
        stream = self._stream
        if stream is None or self._goes_alone:
            return await self._posts.send(seq, batch)
        if batch.last and (self._mode is UploadMode.NDJSON or batch.txid is not None):
            await stream.rest()  # the finish is a request of its own, behind the last line or frame
            return await self._posts.send(seq, batch)
        try:
            return await stream.send(seq, batch)
        except (Silence, BadAnswer, Refused) as error:
            if stream.has_worked or not _is_held_back(error):
                raise
            self._transport.streams, self._stream = False, None
            self._window.in_flight_max = self._limits.in_flight_max
            return await self._posts.send(seq, batch)  # which is a copy, if it arrived after all

    @property
    def _goes_alone(self) -> bool:
        """A batch that nothing may follow gains nothing from a connection, and a request tells at once what is wrong.

        That is the first one, one that failed with others behind it, and each one while attempts keep failing.
        """
        return self.receipt is None or self._window.is_healing or not self._transport.health.is_healthy

    def _streaming(self) -> StreamingUpload:
        timeout_s = self._limits.attempt_timeout_s
        return StreamingUpload(self._connected, self._transport, self.abandon, attempt_timeout_s=timeout_s)

    async def _connected(self, first: int) -> Connection:
        """A connection whose first batch has this seq."""
        verb = "chunks" if self._mode is UploadMode.NDJSON else "upload"
        request = Request("POST", f"{self._place.target}/{verb}{self._place.query_for(first)}")
        url, headers = await self._transport.resolved(request)
        if self._mode is UploadMode.NDJSON:
            return await NdjsonConnection.open(url, headers, first)
        return await SocketConnection.open(url, headers)

    async def _conclude_refused(self, refusal: Refused) -> None:
        """End the generation in place of the batch that the broker will not take, and say what is missing.

        Everything before that batch is acknowledged and nothing after it was accepted, so its seq is the next one.
        """
        head = self._window.head
        if head is None or refusal.code == Code.PAYLOAD_MISMATCH:  # then that seq is another writer's
            return
        lost = {"firstChunk": self.chunks_durable, "chunks": self._window.chunks + self._batcher.chunks}
        finish = finish_of(Status.FAILED, error={"code": refusal.code, "lost": lost})
        attempt = partial(self._posts.send, head.seq, _finish(finish))
        with anyio.CancelScope(shield=True):
            try:
                await persist(attempt, self._limits, deadline_s=self._limits.finish_timeout_s)
            except ClientError as error:
                refusal.add_note(f"the generation could not be ended as failed either: {error}")

    async def _keep_alive(self) -> None:
        """See Pipeline."""
        async with anyio.create_task_group() as tasks:
            if self._stream is not None:
                tasks.start_soon(self._stream.run)
            tasks.start_soon(self._renew_lease)

    async def _renew_lease(self) -> None:
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


def _is_held_back(error: ClientError) -> bool:
    """Whether something on the way does not let such a connection through: it answers itself, or keeps silent."""
    return not isinstance(error, Refused) or error.code.startswith("HTTP_")


def _finish(finish: Finish) -> Batch:
    return Batch(finish.body, chunks=0, content_bytes=0, last=True, txid=finish.txid)
