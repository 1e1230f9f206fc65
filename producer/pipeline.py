"""The shell around batcher and window: what is written goes out in batches, in order, each once, in the background."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from functools import partial
from typing import Generic, TypeVar

import anyio
import anyio.abc
import anyio.lowlevel

from consumer.errors import (
    AttemptFailed,
    BufferFull,
    ChunkTooLarge,
    ClientError,
    Fenced,
    Finished,
    Gap,
    Refused,
    Unavailable,
    Unhealthy,
)
from consumer.retry import persist
from producer.batcher import Batch, Batcher
from producer.coalesce import Delta
from producer.encoding import JSON_ARRAY, Framing
from producer.health import Health
from producer.limits import Limits
from producer.metrics import Metrics
from producer.signal import Signal
from producer.window import Flight, State, Window

__all__ = ["Pipeline"]

R = TypeVar("R")

_log = logging.getLogger("streamfold.producer")


class Pipeline(ABC, Generic[R]):
    """Takes encoded chunks, and sees to it that they arrive once and in order. `R` is what acknowledges a batch.

    `run` does the work, in a task whose owner is not the one who writes: cancelling the writer does not cancel it. It
    returns when everything written is acknowledged after the end was told, or when `error` is set.
    """

    def __init__(
        self,
        name: str,
        limits: Limits,
        framing: Framing = JSON_ARRAY,
        *,
        next_seq: int = 0,
        in_flight_max: int | None = None,
    ) -> None:
        self.name = name
        """What is told of it in notes and logs."""
        self.changed = Signal()
        """Rings when something was acknowledged, and when `error` is set."""
        self.over = anyio.Event()
        """Set when `run` has returned. Nothing is sent any more."""
        self.fenced = anyio.Event()
        self.error: ClientError | None = None
        """Why it can go no further; the first reason that was met."""
        self.error_told = False
        """The caller has seen `error`."""
        self.closing = False
        """The end has been told: nothing more is written."""
        self._unseen = False
        """Something was queued since the sending task last ran. Who writes without pause must let it run, or nothing
        leaves and no answer is heard."""
        self._limits = limits
        self._framing = framing
        self._batcher = Batcher(limits, framing)
        self._window: Window[R] = Window(next_seq=next_seq, in_flight_max=in_flight_max or limits.in_flight_max)
        self._scope = anyio.CancelScope(shield=True)
        self._acknowledged_s = anyio.current_time()
        """When the broker last acknowledged a batch."""
        self._chunks_added = 0
        self._ending_s_max = limits.finish_timeout_s
        """From the end being told to giving up."""
        self._ended_s = 0.0
        """When the end was told."""
        self._health = Health(limits)
        self._metrics = Metrics()

    def watch(self, health: Health, metrics: Metrics) -> None:
        """Go by this health, which others share, and count here. To be called before `run`."""
        self._health = health
        self._metrics = metrics

    # -- what a kind of writer adds ----------------------------------------------------------------------------------

    @abstractmethod
    async def _post(self, seq: int, batch: Batch) -> R:
        """Send a batch once. Raises AttemptFailed if it may succeed later; Gap and Refused are judged by the window."""

    @abstractmethod
    def abort(self) -> None:
        """End it, if it is not ended yet, with everything that was written: its writer goes away."""

    async def _keep_alive(self) -> None:
        """Runs beside the sending, and is cancelled at its end."""

    async def _seal(self, flight: Flight) -> None:
        """The batch has its seq, and is about to be sent for the first time. The one after it has to wait for this."""

    async def _conclude_refused(self, refusal: Refused) -> None:
        """The broker will not take the head of the window; what can still be said is said here."""

    # -- what is known -----------------------------------------------------------------------------------------------

    @property
    def receipt(self) -> R | None:
        """The newest acknowledgement with everything before it acknowledged."""
        return self._window.receipt

    @property
    def chunks_acked(self) -> int:
        """Chunks that went through here and are durable; every one before them is."""
        return self._window.chunks_acked

    def unavailable(self, text: str, cause: Unavailable | None = None) -> Unavailable:
        """The error that tells what is unacknowledged at this moment."""
        kind = Unavailable if cause is None else type(cause)
        told = kind(
            text,
            unacknowledged_batches=len(self._window),
            unacknowledged_chunks=self.queued_chunks,
            status=None if cause is None else cause.status,
            retry_after_s=None if cause is None else cause.retry_after_s,
        )
        told.__cause__ = None if cause is None else cause.__cause__
        return told

    # -- what the writer calls ---------------------------------------------------------------------------------------

    async def put(self, encoded: bytes, delta: Delta | None = None) -> None:
        """Queue a chunk; waits while the buffer is full. When cancelled, it is not queued. Raises what `check` does.

        `delta` is the chunk seen as one, if it may join the one before.
        """
        self.check_size(encoded)
        if self._unseen:
            await anyio.lowlevel.checkpoint()
        while not self.has_room(encoded, delta):
            self.check()
            await self.changed.wait()
        self.check()
        self._add(encoded, delta)

    def put_nowait(self, encoded: bytes, delta: Delta | None = None) -> None:
        """As `put`, but raises BufferFull instead of waiting."""
        self.check_size(encoded)
        self.check()
        if not self.has_room(encoded, delta):
            raise BufferFull("the buffer has no room for this chunk")
        self._add(encoded, delta)

    def count_dropped(self) -> None:
        """A chunk was left out on purpose."""
        self._metrics.dropped_chunks += 1

    @property
    def is_pressed(self) -> bool:
        """As much is under way as may be: what is written now waits."""
        return not self._may_admit

    @property
    def queued_chunks(self) -> int:
        """Written and not acknowledged."""
        return self._batcher.chunks + self._window.chunks

    @property
    def queued_bytes(self) -> int:
        return self._batcher.bytes + self._window.bytes

    @property
    def in_flight(self) -> int:
        """Batches that were sent, or are about to be, and are not acknowledged."""
        return len(self._window)

    async def flush(self) -> R | None:
        """Wait until everything written before the call is durable; the newest receipt, None if nothing was written.

        Raises the error, and Unavailable if it took longer than `flush_timeout_s`; the sending then goes on.
        """
        target = self._chunks_added
        self._batcher.seal()
        self.changed.ring()
        with anyio.move_on_after(self._limits.flush_timeout_s):
            while self.chunks_acked < target:
                self.raise_error()
                await self.changed.wait()
            return self.receipt
        raise self.unavailable(f"not flushed within {self._limits.flush_timeout_s:g} s")

    def check(self) -> None:
        """Raise if nothing more can be written: the error, or Finished."""
        self.raise_error()
        if self.closing:
            raise Finished("its own caller has ended it")

    def raise_error(self) -> None:
        if self.error is not None:
            self.error_told = True
            raise self.error

    def end(self, last: Batch | None = None) -> None:
        """Nothing more is written, but for a last batch; starts the clock of the ending."""
        self.closing = True
        self._ended_s = anyio.current_time()
        if last is None:
            self._batcher.seal()
        else:
            self._chunks_added += last.chunks
            self._batcher.add_batch(last)
        self._scope.deadline = self._ended_s + self._ending_s_max
        self.changed.ring()

    def abandon(self, error: ClientError) -> None:
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

    async def leave(self, leaving: BaseException | None) -> None:
        """Wait until nothing is sent any more, whatever is cancelled around it; then tell the error if nobody did.

        It is raised, or becomes a note of the exception with which the writer leaves.
        """
        with anyio.CancelScope(shield=True):
            await self.over.wait()
        if self.error is None or self.error_told or leaving is self.error:
            return
        if leaving is None:
            raise self.error
        text = f"{self.name} could not be ended: {self.error}"
        leaving.add_note(text)
        if not isinstance(leaving, Exception):
            # Whoever cancels swallows the cancellation, and the note with it.
            _log.warning("%s", text)

    # -- sending -----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Send until the end; see the class. Cancelling the scope around it does not interrupt it, `abandon` does."""
        try:
            with self._scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._keep_alive)
                    await self._send_batches(tasks)
                    tasks.cancel_scope.cancel()
            if isinstance(self.error, Refused):
                await self._conclude_refused(self.error)
        finally:
            self._settle()

    def _settle(self) -> None:
        if self.error is None and not self._is_settled:
            self.error = self.unavailable(f"not finished within {self._ending_s_max:g} s")
        self._count_end()
        self.over.set()
        self.changed.ring()

    def _count_end(self) -> None:
        if self.error is not None:
            self._metrics.errors += 1
            self._metrics.failed_finishes += self.closing
        elif self.closing:
            self._metrics.finish.add(anyio.current_time() - self._ended_s)

    @property
    def _may_admit(self) -> bool:
        """Whether another batch may go under way: one at a time while attempts keep failing."""
        return self._window.has_room and (self._health.is_healthy or not self._window)

    @property
    def _is_settled(self) -> bool:
        return self.closing and not self._window and self._batcher.wait_s(anyio.current_time()) is None

    async def _send_batches(self, tasks: anyio.abc.TaskGroup) -> None:
        while not self._is_settled:
            self._unseen = False
            wait_s = self._batcher.wait_s(anyio.current_time()) if self._may_admit else None
            if wait_s is None:
                await self.changed.wait()
            elif wait_s > 0:
                with anyio.move_on_after(wait_s):
                    await self.changed.wait()
            else:
                flight = self._window.admit(self._batcher.take())
                await self._seal(flight)
                tasks.start_soon(self._deliver, flight)

    async def _deliver(self, flight: Flight) -> None:
        try:
            receipt = await persist(partial(self._attempt, flight), self._limits, deadline_s=self._limits.deadline_s)
        except Unavailable as error:
            self.abandon(self.unavailable(str(error), error))
        except ClientError as error:
            self.abandon(error)
        else:
            self._window.acknowledge(flight, receipt)
            self._acknowledged_s = anyio.current_time()
            self._metrics.acknowledged_batches += 1
            if flight.batch.chunks:
                self._metrics.enqueue_to_durable.add(self._acknowledged_s - flight.batch.since_s)
            self.changed.ring()

    async def _attempt(self, flight: Flight) -> R:
        """One attempt that counts as such; overtaking another batch on the way does not."""
        while True:
            while flight.state is not State.READY:
                await self.changed.wait()
            self._metrics.resent_batches += flight.was_sent
            self._window.send(flight)
            try:
                return await self._post(flight.seq, flight.batch)
            except AttemptFailed:
                self._metrics.failed_attempts += 1
                self._window.retry(flight)
                raise
            except Unhealthy as error:
                self._window.retry(flight)
                raise AttemptFailed(str(error), retry_after_s=error.retry_after_s, effect_unknown=False) from error
            except (Gap, Refused):
                if not self._window.retry_as_head(flight):
                    raise

    def check_size(self, encoded: bytes) -> None:
        """Raises ChunkTooLarge."""
        if len(encoded) > self._limits.chunk_bytes_max:
            raise ChunkTooLarge(f"a chunk of {len(encoded)} bytes; {self._limits.chunk_bytes_max} are allowed")

    def has_room(self, encoded: bytes, delta: Delta | None = None) -> bool:
        """Whether the buffer takes this chunk; what is in flight counts."""
        more_bytes, more_chunks = self._batcher.cost(encoded, delta)
        return (
            self.queued_bytes + more_bytes <= self._limits.buffer_bytes_max
            and self.queued_chunks + more_chunks <= self._limits.buffer_chunks_max
        )

    def _add(self, encoded: bytes, delta: Delta | None) -> None:
        merged_before = self._batcher.merged
        look_again = self._batcher.add(encoded, anyio.current_time(), delta)
        merged = self._batcher.merged - merged_before
        self._chunks_added += 1 - merged
        self._metrics.written_chunks += 1
        self._metrics.merged_chunks += merged
        if look_again:
            self._unseen = True
            self.changed.ring()
