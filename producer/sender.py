"""The shell around batcher and window: the tasks that send one generation's batches and renew its lease."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import anyio
import anyio.abc
import msgspec

from consumer.wire import JSON, PRODUCER_SEQ, STREAM_DURABILITY, Code
from producer.answer import check, read
from producer.batcher import Batcher, Verb
from producer.encoding import encode_chunk
from producer.errors import AttemptFailed, Fenced, Gap, ProducerError, Refused, Unavailable
from producer.limits import Limits
from producer.retry import persist
from producer.signal import Signal
from producer.transport import Request, Transport
from producer.window import Flight, State, Window

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


class Sender:
    """Takes encoded chunks, and sees to it that they arrive once and in order.

    `run` does the work, in a task whose owner is not the one who writes: cancelling the writer does not cancel it. It
    returns when the finish and everything before it is acknowledged, or when `error` is set.
    """

    def __init__(self, transport: Transport, place: Place, limits: Limits) -> None:
        self.changed = Signal()
        """Rings when something was acknowledged, and when `error` is set."""
        self.over = anyio.Event()
        """Set when `run` has returned. Nothing is sent any more."""
        self.fenced = anyio.Event()
        self.error: ProducerError | None = None
        """Why it can go no further; the first reason that was met."""
        self.closing = False
        """The finish has been written."""
        self.unseen = False
        """Something was queued since the sending task last ran. Who writes without pause must let it run, or nothing
        leaves and no answer is heard."""
        self._transport = transport
        self._place = place
        self._limits = limits
        self._batcher = Batcher(limits)
        self._window: Window[Receipt] = Window(next_seq=place.next_seq, in_flight_max=limits.in_flight_max)
        self._scope = anyio.CancelScope(shield=True)
        self._renewed_s = anyio.current_time()
        """When the broker last renewed the lease, as far as is known."""
        self._chunks_added = 0

    @property
    def receipt(self) -> Receipt | None:
        """The newest acknowledgement with everything before it acknowledged."""
        return self._window.receipt

    @property
    def chunks_durable(self) -> int:
        """Chunks of the generation that are known to be durable; every one before them is."""
        return self._place.chunks + self._window.chunks_acked

    @property
    def chunks_written(self) -> int:
        """Chunks of the generation that are durable or on their way."""
        return self._place.chunks + self._chunks_added

    @property
    def is_open(self) -> bool:
        """Whether the broker is known to have the generation."""
        return self._window.acked_seq >= 0

    @property
    def has_sent(self) -> bool:
        """Whether the broker may have the generation."""
        return self._window.next_seq > 0

    def has_room(self, encoded: bytes) -> bool:
        """Whether the buffer takes this chunk; what is in flight counts."""
        bytes_held = self._batcher.bytes + self._window.bytes
        chunks_held = self._batcher.chunks + self._window.chunks
        return (
            bytes_held + len(encoded) <= self._limits.buffer_bytes_max and chunks_held < self._limits.buffer_chunks_max
        )

    def add(self, encoded: bytes) -> None:
        """Queue a chunk. Call it only while it `has_room`."""
        self._chunks_added += 1
        if self._batcher.add(encoded, anyio.current_time()):
            self.unseen = True
            self.changed.ring()

    def hurry(self) -> None:
        """Send what is queued without waiting for company."""
        self._batcher.seal()
        self.changed.ring()

    def close(self, body: bytes) -> None:
        """Queue the finish, and start the clock of the ending."""
        self.closing = True
        self._batcher.add_finish(body)
        self._scope.deadline = anyio.current_time() + self._limits.finish_timeout_s
        self.changed.ring()

    def abandon(self, error: ProducerError) -> None:
        """Give up, and cancel what is in flight at once. The first error stays."""
        if self.error is None and not self.over.is_set():
            self.error = error
            if isinstance(error, Fenced):
                self.fenced.set()
            self._scope.cancel()
            self.changed.ring()

    def conclude(self) -> None:
        """Nothing to send: an earlier process has finished. In place of `run`."""
        self.closing = True
        self.over.set()

    def unavailable(self, text: str, status: int | None = None) -> Unavailable:
        """The error that tells what is unacknowledged at this moment."""
        return Unavailable(
            text,
            unacknowledged_batches=len(self._window),
            unacknowledged_chunks=self._batcher.chunks + self._window.chunks,
            status=status,
        )

    async def run(self) -> None:
        """Send until the end; see the class. Cancelling the scope around it does not interrupt it, `abandon` does."""
        try:
            with self._scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._send_heartbeats)
                    await self._send_batches(tasks)
                    tasks.cancel_scope.cancel()
            if isinstance(self.error, Refused):
                await self._finish_as_failed(self.error)
        finally:
            self._settle()

    def _settle(self) -> None:
        if self.error is None and not self._is_settled:
            self.error = self.unavailable(f"not finished within {self._limits.finish_timeout_s:g} s")
        self.over.set()
        self.changed.ring()

    @property
    def _is_settled(self) -> bool:
        return self.closing and not self._window and self._batcher.wait_s(anyio.current_time()) is None

    async def _send_batches(self, tasks: anyio.abc.TaskGroup) -> None:
        while not self._is_settled:
            self.unseen = False
            wait_s = self._batcher.wait_s(anyio.current_time()) if self._window.has_room else None
            if wait_s is None:
                await self.changed.wait()
            elif wait_s > 0:
                with anyio.move_on_after(wait_s):
                    await self.changed.wait()
            else:
                tasks.start_soon(self._deliver, self._window.admit(self._batcher.take()))

    async def _deliver(self, flight: Flight) -> None:
        batch = flight.batch
        attempt = partial(self._attempt, flight, self._request(batch.verb, flight.seq, batch.body))
        try:
            receipt = await persist(attempt, self._limits)
        except Unavailable as error:
            told = self.unavailable(str(error), error.status)
            told.__cause__ = error.__cause__
            self.abandon(told)
        except ProducerError as error:
            self.abandon(error)
        else:
            self._window.acknowledge(flight, receipt)
            self._renewed_s = anyio.current_time()
            self.changed.ring()

    async def _attempt(self, flight: Flight, request: Request) -> Receipt:
        """One attempt that counts as such; overtaking another batch on the way does not."""
        while True:
            while flight.state is not State.READY:
                await self.changed.wait()
            self._window.send(flight)
            try:
                return await self._append(request)
            except AttemptFailed:
                self._window.retry(flight)
                raise
            except (Gap, Refused):
                if not self._window.retry_as_head(flight):
                    raise

    async def _append(self, request: Request) -> Receipt:
        response = await self._transport.send(request)
        answer = read(response, _Acknowledgement)
        durability = response.headers.get(STREAM_DURABILITY, "")
        return Receipt(answer.offset, answer.seq, answer.fence, durability, answer.duplicate)

    def _request(self, verb: Verb, seq: int, body: bytes) -> Request:
        target = f"{self._place.target}/{verb}"
        if seq == 0:
            target = f"{target}?{self._place.opening}"
        return Request("POST", target, body, {"content-type": JSON, PRODUCER_SEQ: str(seq)})

    async def end_unopened(self, body: bytes) -> Receipt:
        """Finish in the place of the first batch. Call it when `over`, and no batch was acknowledged."""
        return await persist(partial(self._append, self._request(Verb.FINISH, 0, body)), self._limits)

    async def _finish_as_failed(self, refusal: Refused) -> None:
        """End the generation in place of the batch that the broker will not take, and say what is missing.

        Everything before that batch is acknowledged and nothing after it was accepted, so its seq is the next one.
        """
        head = self._window.head
        if head is None or refusal.code == Code.PAYLOAD_MISMATCH:  # then that seq is another writer's
            return
        lost = {"firstChunk": self.chunks_durable, "chunks": self._window.chunks + self._batcher.chunks}
        body = encode_chunk({"status": "failed", "error": {"code": refusal.code, "lost": lost}})
        attempt = partial(self._append, self._request(Verb.FINISH, head.seq, body))
        with anyio.CancelScope(shield=True):
            try:
                await persist(attempt, self._limits, deadline_s=self._limits.finish_timeout_s)
            except ProducerError as error:
                refusal.add_note(f"the generation could not be ended as failed either: {error}")

    async def _send_heartbeats(self) -> None:
        """Renew the lease while nothing else does."""
        interval_s = self._place.lease_ms / 1000 / HEARTBEATS_A_LEASE
        while True:
            quiet_s = anyio.current_time() - self._renewed_s
            if quiet_s < interval_s:
                await anyio.sleep(interval_s - quiet_s)
            elif self.is_open:
                await self._renew(interval_s)
            else:
                self._renewed_s = anyio.current_time()  # no lease yet

    async def _renew(self, within_s: float) -> None:
        request = Request("POST", f"{self._place.target}/heartbeat")
        sent_s = anyio.current_time()
        try:
            await persist(partial(self._call, request), self._limits, deadline_s=within_s)
        except Unavailable:
            pass  # it is tried again at once, and the next batch tells whether the lease held
        except ProducerError as error:
            if not self.closing:  # else it may have crossed our own finish, whose answer tells more
                self.abandon(error)
        else:
            self._renewed_s = max(self._renewed_s, sent_s)

    async def _call(self, request: Request) -> None:
        check(await self._transport.send(request))
