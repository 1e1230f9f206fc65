"""The client that writes: sessions, messages, generations; and raw streams."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import anyio
import anyio.abc

from consumer.address import broker_url
from consumer.transport import HttpTransport, Pool, Transport
from consumer.values import Values
from producer import websocket
from producer.archive import import_session
from producer.coalesce import Coalescer, Merging
from producer.control import Control, MessageReceipt, SessionReceipt, Stopped
from producer.ending import ended_by
from producer.generation import Generation, Pressure
from producer.guard import GuardedTransport
from producer.health import Health, HealthState
from producer.limits import Limits
from producer.metrics import Metrics
from producer.opening import Opening
from producer.outbox import Outbox
from producer.pipeline import Pipeline
from producer.sender import Sender
from producer.settlement import Settle, Settlements
from producer.spooled import SpooledGeneration
from producer.streams import Streams
from producer.uploads import UploadMode

__all__ = ["Producer"]

FORMAT_DEFAULT = "ai-sdk-ui-message-stream"
LEASE_MS_DEFAULT = 30_000


class Producer:
    """A connection pool to one broker, and the owner of the tasks that send. One for an application is enough.

        async with Producer("http://127.0.0.1:4437") as producer:
            await producer.create_session("session-1")
            async with producer.generation("session-1", "generation-1") as generation:
                await generation.write(chunk)

            await producer.streams.create("logs/1", content_type="text/plain")
            async with producer.streams.producer("logs/1", "worker-1", auto_claim=True) as writing:
                await writing.append("one line, and so on")

    Enter it where the application lives, not inside a request: what its generations have written is sent by its tasks,
    and goes on when a request is cancelled. Leaving it ends the generations that are still open as `aborted`, and
    the producers of streams, with everything they have written; that takes at most `finish_timeout_s`, and no
    cancellation cuts it short.

    `upload` says how batches travel (`UploadMode`; default: over a WebSocket if that is installed and gets through).
    With `spool`, a path, `spooled` makes generations that survive the process; entering then raises SpoolInUse,
    SpoolCorrupt or another SpoolError if the file cannot be used.

    `settle` is awaited with each generation that is over, however it ended, until it returns: for what has to be done
    once for an answer, such as releasing a quota. It may be called more than once for one generation, never at once. An
    exception is an attempt that failed, and is followed by another (but for a ClientError that is not `retryable`),
    until `settle_deadline_s` has passed; then a record of type `settlement` in the session tells readers that it
    failed. What ended in a spool is remembered there until it is settled, by the next process if need be; of anything
    else a killed process leaves nothing to settle. Leaving the producer gives it `finish_timeout_s`.

    `headers` and `params` go with every request; a function among them, async or not, is called for each one, so that a
    token can be renewed. All requests are retried on connection errors, time outs, 408, 429 and 5xx, as long as the
    deadline allows; doing so never doubles anything. Every error is one of `consumer.errors`. Raises ValueError if the
    URL is not http or https, or a parameter is the protocol's own (`offset`, `live`, `cursor`).
    """

    def __init__(
        self,
        url: str,
        *,
        limits: Limits | None = None,
        headers: Values | None = None,
        params: Values | None = None,
        transport: Transport | None = None,
        spool: Path | str | None = None,
        upload: UploadMode | str | None = None,
        settle: Settle | None = None,
    ) -> None:
        self._mode = _mode_for(transport) if upload is None else _usable(UploadMode(upload), transport)
        self._limits = limits or Limits()
        self._health = Health(self._limits)
        self._counted = Metrics()
        self._transport = GuardedTransport(
            transport or _http(url, self._limits, headers, params),
            self._health,
            compress_bytes_min=self._limits.compress_bytes_min,
        )
        self._control = Control(self._transport.compressing, self._limits)
        self._settlements = None if settle is None else Settlements(settle, self._control, self._limits, self._counted)
        self._outbox = None if spool is None else self._make_outbox(Path(spool), settle)
        self._stack = AsyncExitStack()
        self._tasks: anyio.abc.TaskGroup | None = None
        self._probing = anyio.CancelScope()
        self._pipelines: set[Pipeline[Any]] = set()
        self.streams = Streams(broker_url(url), self._transport, self._limits, self._start)
        """Raw streams: create, append, close, delete, head, fork, and idempotent producers."""

    async def __aenter__(self) -> Self:
        if self._tasks is not None:
            raise RuntimeError("a producer can be entered once")
        if self._outbox is not None:
            await self._stack.enter_async_context(self._outbox.opened())
        self._tasks = await anyio.create_task_group().__aenter__()
        self._tasks.start_soon(self._probe)
        return self

    async def __aexit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._tasks is not None
        self._probing.cancel()
        self._end_all()
        if self._settlements is not None:
            self._settlements.hurry()
        try:
            # Not told of the caller's exception: a task group would wrap it into a group.
            try:
                await self._tasks.__aexit__(None, None, None)
            finally:
                await self._stack.aclose()
        finally:
            with anyio.CancelScope(shield=True):
                await self._transport.aclose()

    @property
    def health(self) -> HealthState:
        """How the broker is, as far as the last attempts tell.

        `degraded` after some failures in a row: batches go one at a time, each after the acknowledgement of the one
        before. `unhealthy` after more of them, for `unhealthy_s`: whatever begins then raises Unhealthy at once, what
        is under way waits within its deadline, and a probe now and then finds out when it is over.
        """
        return self._health.state

    def metrics(self) -> Metrics:
        """What was done so far, and what is queued at this moment, over all generations and stream producers."""
        return replace(
            self._counted,
            enqueue_to_durable=replace(self._counted.enqueue_to_durable),
            finish=replace(self._counted.finish),
            settlement=replace(self._counted.settlement),
            queued_chunks=sum(pipeline.queued_chunks for pipeline in self._pipelines),
            queued_bytes=sum(pipeline.queued_bytes for pipeline in self._pipelines),
            in_flight_batches=sum(pipeline.in_flight for pipeline in self._pipelines),
        )

    async def create_session(
        self,
        session_id: str,
        *,
        message: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> SessionReceipt:
        """Create a session, with its first message if one is given: both exist then, or neither does.

        The same again is a success, with `created` False. Raises Refused (`MESSAGE_EXISTS`) if the message's id is
        taken by another message, Unavailable if there was no answer within the deadline, TypeError if a value is no
        JSON, ValueError if the id is none.
        """
        return await self._control.create_session(session_id, message, metadata)

    async def import_session(self, lines: AsyncIterable[bytes], *, session_id: str | None = None) -> SessionReceipt:
        """Make a session out of the lines of an exported file (`consumer.archive`), without their line breaks.

        The session has the file's id, or `session_id`, and exactly its records. It is there as a whole or not at all;
        the file is not held in memory. Raises BadArchive with the number of a line that is none of such a file, Refused
        (`SESSION_EXISTS`) if there is a session of that id, and what `create_session` raises.
        """
        return await import_session(self.streams, self._control, lines, session_id)

    async def send_message(
        self, session_id: str, message: Mapping[str, Any], *, txid: str | None = None
    ) -> MessageReceipt:
        """Add a whole message, `{"id": …, "role": …, …}`; its id is yours, and makes a repetition harmless.

        Raises Refused (`MESSAGE_EXISTS`, `SESSION_NOT_FOUND`, …), Unavailable, TypeError and ValueError as
        `create_session`.
        """
        return await self._control.send_message(session_id, message, txid)

    async def stop(
        self, session_id: str, generation_id: str, *, requested_by: str | None = None, reason: str | None = None
    ) -> Stopped:
        """End a generation as aborted, whoever writes it. What is durable stays; later chunks are refused.

        One that has ended already stays as it is: look at `status`. Raises Refused (`GENERATION_NOT_FOUND`, …),
        Unavailable and ValueError as `create_session`.
        """
        return await self._control.stop(session_id, generation_id, requested_by, reason)

    def generation(  # noqa: PLR0913  what a generation is opened with, each with its default
        self,
        session_id: str,
        generation_id: str,
        *,
        message_id: str | None = None,
        lane: str = "main",
        format: str = FORMAT_DEFAULT,  # noqa: A002  the session API's own word
        role: str = "assistant",
        actor_id: str | None = None,
        lease_ms: int = LEASE_MS_DEFAULT,
        txid: str | None = None,
        resume: bool = False,
        merging: Merging | str = Merging.NEVER,
        drop: Callable[[Any], bool] | None = None,
    ) -> Generation:
        """A generation to enter with `async with`; it writes the message `message_id` (default: the generation's id).

        No request is made on entering: the first batch opens the generation, and ends another that is open in the
        lane (`superseded`). Leaving it without having written anything opens and ends it at once. The generation is
        ended by the broker when nothing is heard of it for `lease_ms`; heartbeats are sent while nothing is written.

        `txid` names the opening: a reader that waits for it (`Reader.wait_for_txid`) has the message when that returns.
        `finish` takes one for the end. The receipts of `flush` and `finish` tell offsets.

        With `resume`, entering asks the broker how far earlier processes got (a generation that it does not know
        begins from the start). The caller then writes its chunks again *from the first*: as many as are durable
        (`durable_chunks`) are skipped unseen, so they have to be the same ones, and the rest is sent. One that had
        been completed takes the same chunks and the same finish again, without effect. Entering raises Fenced if the
        generation has ended in any other way, and Unavailable or Refused.

        What happens when chunks come faster than they leave: `write` waits for room in the buffer. Before that, with
        `merging`, adjacent deltas of one part become one chunk, while as much is under way as may be (`pressed`) or
        whenever they wait in the same batch (`always`); the message that readers fold is equal, and the log has fewer
        chunks. And when there is no room, a chunk for which `drop` is true is not sent at all: a policy of the
        caller's, such as `partial(has_no_effect, format)`. The generation's end then tells how many,
        as `droppedChunks` in its metadata.

        Two processes must not write one generation at once: the second one's batches differ from the first one's, and
        one of them gets Refused (`PAYLOAD_MISMATCH`). A batch that a killed process had sent may arrive just after the
        question how far it got, with the same outcome; resuming again is then safe.

        Raises ValueError if an id is none, the lease is outside 1,000 to 600,000 ms, or `resume` comes together with
        `merging` or `drop`: then the chunks in the log are not those that were written, and cannot be skipped.
        """
        if resume and (merging != Merging.NEVER or drop is not None):
            raise ValueError("what was merged or dropped from cannot be written again from the first chunk")
        opening = Opening(
            session_id=session_id,
            generation_id=generation_id,
            message_id=generation_id if message_id is None else message_id,
            lane=lane,
            format=format,
            role=role,
            actor_id=actor_id,
            lease_ms=lease_ms,
            txid=txid,
        )
        return Generation(
            opening,
            transport=self._transport,
            control=self._control,
            limits=self._limits,
            start=partial(self._start_generation, opening),
            resume=resume,
            pressure=Pressure(Merging(merging), Coalescer(format), drop),
            mode=self._mode,
        )

    def spooled(  # noqa: PLR0913  what a generation is opened with, each with its default
        self,
        session_id: str,
        generation_id: str,
        *,
        message_id: str | None = None,
        lane: str = "main",
        format: str = FORMAT_DEFAULT,  # noqa: A002  the session API's own word
        role: str = "assistant",
        actor_id: str | None = None,
        lease_ms: int = LEASE_MS_DEFAULT,
        txid: str | None = None,
        merging: Merging | str = Merging.ALWAYS,
    ) -> SpooledGeneration:
        """As `generation`, but written to the spool first: it survives this process, sleep, and being offline.

        The session is created if it is not there. Entering takes a generation up that an earlier process left, with
        `written_chunks`; it raises Finished if its end was told. Adjacent deltas are merged as they leave the spool,
        for what waited long is much; `merging="never"` leaves the chunks alone. `txid` names the opening, as there.

        Raises RuntimeError if the producer has no spool, ValueError as `generation`.
        """
        opening = Opening(
            session_id=session_id,
            generation_id=generation_id,
            message_id=generation_id if message_id is None else message_id,
            lane=lane,
            format=format,
            role=role,
            actor_id=actor_id,
            lease_ms=lease_ms,
            txid=txid,
        )
        return SpooledGeneration(self.outbox, opening, self._limits, Merging(merging))

    @property
    def outbox(self) -> Outbox:
        """What the spool holds, and its delivery. Raises RuntimeError if the producer has no spool."""
        if self._outbox is None:
            raise RuntimeError("this producer was made without a spool")
        return self._outbox

    def _make_outbox(self, path: Path, settle: Settle | None) -> Outbox:
        return Outbox(path, self._transport, self._limits, self._counted, self._mode, settle)

    def _end_all(self) -> None:
        """End what was left open: its writer is still inside, and learns it from its next call."""
        for pipeline in self._pipelines:
            pipeline.abort()

    def _start_generation(self, opening: Opening, sender: Sender) -> None:
        if not sender.over.is_set():
            self._start(sender)
        if self._settlements is not None and self._tasks is not None:
            self._tasks.start_soon(self._settle_when_over, self._settlements, opening, sender)

    async def _settle_when_over(self, settlements: Settlements, opening: Opening, sender: Sender) -> None:
        with anyio.CancelScope(shield=True):
            await sender.over.wait()
        ids = opening.session_id, opening.generation_id, opening.message_id
        ended = ended_by(*ids, told=sender.told_status, error=sender.error)
        if ended is not None:
            await settlements.settle(ended)

    def _start(self, pipeline: Pipeline[Any]) -> None:
        if self._tasks is None:
            raise RuntimeError("use the producer inside 'async with'")
        self._transport.check()
        pipeline.watch(self._health, self._counted)
        self._tasks.start_soon(self._run, pipeline)
        self._pipelines.add(pipeline)

    async def _probe(self) -> None:
        with self._probing:
            await self._transport.probe()

    async def _run(self, pipeline: Pipeline[Any]) -> None:
        try:
            await pipeline.run()
        finally:
            self._pipelines.discard(pipeline)


def _mode_for(transport: Transport | None) -> UploadMode:
    """What costs least, as `benchmarks.uploads` has it: a WebSocket where there can be one.

    At the pace of models a batch costs the client two thirds of the processor time that a request costs, and none
    overtakes another; flat out there is no difference, since batches grow.
    """
    can_stream = transport is None and websocket.is_installed
    return UploadMode.WEBSOCKET if can_stream else UploadMode.POST


def _usable(mode: UploadMode, transport: Transport | None) -> UploadMode:
    """Raises ValueError for a mode that the transport does not have, RuntimeError for one that is not installed."""
    if mode is not UploadMode.POST and transport is not None:
        raise ValueError(f"a transport of the caller's own sends requests; {mode} is no request")
    if mode is UploadMode.WEBSOCKET and not websocket.is_installed:
        raise RuntimeError("to upload over a WebSocket, install streamfold[websocket]")
    return mode


def _http(url: str, limits: Limits, headers: Values | None, params: Values | None) -> HttpTransport:
    pool = Pool(
        answer_bytes_max=limits.answer_bytes_max,
        connections_max=limits.connections_max,
        connection_idle_s=limits.connection_idle_s,
    )
    return HttpTransport(url, limits, pool, headers=headers, params=params)
