"""One attempt to write one message, as an asynchronous context manager."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import anyio

from consumer.address import checked_id
from consumer.errors import BufferFull, ClientError, Fenced, Refused
from consumer.wire import ENDED, Code, Reason, Status
from producer.coalesce import Coalescer, Delta, Merging
from producer.control import Control, Stopped
from producer.encoding import encode_chunk
from producer.ending import end_because, finish_of
from producer.guard import GuardedTransport
from producer.limits import Limits
from producer.opening import Opened, Opening
from producer.sender import Sender
from producer.uploads import Receipt, UploadMode

__all__ = ["Generation", "Pressure"]


@dataclass(frozen=True, slots=True)
class Pressure:
    """What is done when chunks come faster than they leave, before `write` waits."""

    merging: Merging
    coalescer: Coalescer
    drop: Callable[[Any], bool] | None


class Generation(Opened):
    """Write chunks inside `async with`; made by `Producer.generation`.

    Order and completeness: chunks become durable in the order in which they were written, each once, with none missing
    before one that is there. Sending goes on in the background; `write` returns before a chunk is durable, `flush` and
    `finish` return after.

    Leaving the context ends the generation: `complete` when left normally, `failed` with the type and the text of the
    exception when left by one, `aborted` when cancelled. In each case everything written is sent first. The ending runs
    in a task of the Producer, so that neither the cancelled scope nor a second cancellation stops it; leaving waits for
    it, at most `finish_timeout_s`. An error of the ending is raised when the context is left normally, unless a call
    had raised it before; otherwise it is added to the exception under way as a note, and is in `error`.

    Somebody else may end it: a stop, a newer generation in the lane, the lease. Then `stopped` is set and every call
    raises Fenced. It is learned from the next answer of the broker, a heartbeat's at the latest.
    """

    def __init__(
        self,
        opening: Opening,
        *,
        transport: GuardedTransport,
        control: Control,
        limits: Limits,
        start: Callable[[Sender], None],
        resume: bool,
        pressure: Pressure,
        mode: UploadMode,
    ) -> None:
        self._opening = opening
        self._transport = transport
        self._control = control
        self._limits = limits
        self._start = start
        self._resume = resume
        self._pressure = pressure
        self._mode = mode
        self.dropped_chunks = 0
        """Not sent, by the policy `drop`."""
        self._skip = 0
        """Chunks still to be skipped: durable already, and about to be written again."""
        self._was_complete = False
        """Taken up after its finish: all that is left is to skip what is written again, and to finish likewise."""
        self._entered: Sender | None = None

    @property
    def receipt(self) -> Receipt | None:
        """The newest acknowledgement; None before the first of this process."""
        return self._sender.receipt

    @property
    def durable_chunks(self) -> int:
        """How many chunks of the generation are known to be durable, those of earlier processes included."""
        return self._sender.chunks_durable

    @property
    def stopped(self) -> anyio.Event:
        """Set as soon as it is known that the generation has ended and takes no more; `error` then says why."""
        return self._sender.fenced

    @property
    def error(self) -> ClientError | None:
        """Why it can go no further; None while it can, and after an ending that went well."""
        return self._sender.error

    async def write(self, chunk: Any) -> None:
        """Queue a chunk: any JSON value in the generation's format. Waits while the buffer is full.

        When cancelled, the chunk is not queued. With `resume`, the first `durable_chunks` chunks are not queued either:
        they are there.

        Raises TypeError if the chunk is no JSON and ChunkTooLarge if it is above the limit; neither does harm, and the
        next can be written. Raises Fenced if the generation was ended by somebody else, Unavailable, Refused or Gap if
        an earlier chunk could not be delivered (see there; nothing more can be written), Finished after `finish`.
        """
        queued = self._queueable(chunk)
        if queued is not None:
            await self._sender.put(*queued)

    def write_nowait(self, chunk: Any) -> None:
        """As `write`, but raises BufferFull instead of waiting; the chunk is then not queued."""
        queued = self._queueable(chunk)
        if queued is not None:
            self._sender.put_nowait(*queued)

    def try_write(self, chunk: Any) -> bool:
        """As `write`, but False instead of waiting; the chunk is then not queued, and is the caller's to keep."""
        try:
            self.write_nowait(chunk)
        except BufferFull:
            return False
        return True

    async def flush(self) -> Receipt | None:
        """Wait until everything written before the call is durable; returns the newest receipt.

        None if this process has not written anything. Raises what `write` raises, and Unavailable if it took longer
        than `flush_timeout_s`; the sending then goes on.
        """
        return await self._sender.flush()

    async def finish(
        self,
        status: Status | str = Status.COMPLETE,
        *,
        reason: str | None = None,
        error: Any = None,
        usage: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        txid: str | None = None,
    ) -> Receipt | None:
        """End the generation; returns when everything written, and the end, are durable.

        With `txid`, others can wait for that too (`Reader.wait_for_txid`): the record of the end carries it.

        The receipt is that of the end; None if an earlier process had finished it. Leaving the context afterwards does
        nothing more. Raises what `write` raises, Unavailable if it took longer than `finish_timeout_s` (the broker ends
        the generation when its lease runs out), ValueError if `status` is no end or `txid` no id, and TypeError if a
        value is no JSON.
        """
        told = {"reason": reason, "error": error, "usage": usage, "metadata": self._counted(metadata)}
        finish = finish_of(status, **told, txid=txid if txid is None else checked_id("txid", txid))
        if self._was_complete and finish.status is Status.COMPLETE:
            return None
        self._sender.check()
        self._sender.close(finish)
        await self._sender.over.wait()
        self._sender.raise_error()
        return self.receipt

    async def stop(self, *, requested_by: str | None = None, reason: str | None = None) -> Stopped | None:
        """End it as aborted, at once: what is in flight is cancelled, what is queued is dropped.

        What is durable stays. To keep everything written, use `finish("aborted")`. Returns how it ended, None if the
        broker never heard of it. Raises Unavailable or Refused if the stop itself could not be delivered; writing is
        over in any case, and the lease ends the generation.
        """
        self._sender.abandon(Fenced(Reason.STOPPED, generation_status=Status.ABORTED))
        self._sender.error_told = True
        await self._sender.over.wait()
        if not self._sender.has_sent:
            return None
        try:
            return await self._control.stop(self.session_id, self.generation_id, requested_by, reason)
        except Refused as refusal:
            if refusal.code != Code.GENERATION_NOT_FOUND or self._sender.is_open:
                raise
        return await self._stop_before_it_opens(requested_by, reason)

    async def __aenter__(self) -> Self:
        if self._entered is not None:
            raise RuntimeError("a generation can be entered once; make another, with resume=True if it is the same")
        next_seq = await self._take_up() if self._resume else 0
        place = self._opening.place(next_seq=next_seq, chunks=self._skip)
        self._entered = Sender(self._transport, place, self._limits, self._mode)
        if self._was_complete:
            self._entered.conclude()
        self._start(self._entered)
        return self

    async def __aexit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._sender.closing and self.error is None:
            self._sender.close(finish_of(**end_because(error), metadata=self._counted(None)))
        await self._sender.leave(error)

    @property
    def _sender(self) -> Sender:
        if self._entered is None:
            raise RuntimeError("use the generation inside 'async with'")
        return self._entered

    def _queueable(self, chunk: Any) -> tuple[bytes, Delta | None] | None:
        """The chunk as it is to be queued; None if it is durable already, or dropped."""
        if self._skip:
            self._skip -= 1
            return None
        self._sender.check()
        encoded = encode_chunk(chunk)
        self._sender.check_size(encoded)
        delta = self._delta(chunk, encoded)
        drop = self._pressure.drop
        if drop is not None and not self._sender.has_room(encoded, delta) and drop(chunk):
            self.dropped_chunks += 1
            self._sender.count_dropped()
            return None
        return encoded, delta

    def _delta(self, chunk: Any, encoded: bytes) -> Delta | None:
        """The chunk as one that may join the one before; None if it may not."""
        merging = self._pressure.merging
        if merging is Merging.NEVER:
            return None
        delta = self._pressure.coalescer.delta(chunk, encoded)
        return delta if merging is Merging.ALWAYS or self._sender.is_pressed else None

    def _counted(self, metadata: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        """With what was dropped."""
        return {**(metadata or {}), "droppedChunks": self.dropped_chunks} if self.dropped_chunks else metadata

    async def _take_up(self) -> int:
        """Ask how far earlier processes got; the seq to go on with. Raises Fenced if there is nothing to go on with."""
        try:
            state = await self._control.generation_state(self.session_id, self.generation_id)
        except Refused as refusal:
            if refusal.code != Code.GENERATION_NOT_FOUND:
                raise
            return 0
        if state.status in ENDED and state.status != Status.COMPLETE:
            raise Fenced(state.reason or "finished", current_epoch=state.fence, generation_status=state.status)
        self._was_complete = state.status == Status.COMPLETE
        self._skip = state.chunks
        return state.seq + 1

    async def _stop_before_it_opens(self, requested_by: str | None, reason: str | None) -> Stopped:
        """Stop it when its first batch was cancelled on its way, and may still arrive and open it.

        An end in the place of that batch settles it; if that is refused, the batch has arrived meanwhile.
        """
        try:
            receipt = await self._sender.end_unopened(finish_of(Status.ABORTED, reason=Reason.STOPPED))
        except Refused as refusal:
            if refusal.code != Code.PAYLOAD_MISMATCH:
                raise
            return await self._control.stop(self.session_id, self.generation_id, requested_by, reason)
        return Stopped(self.generation_id, Status.ABORTED, Reason.STOPPED, receipt.offset)
