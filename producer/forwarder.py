"""What the spool has of one generation, on its way to the broker: through sleep, restarts and lost leases."""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

import anyio

from consumer.errors import (
    AccessDenied,
    ClientError,
    Fenced,
    Gap,
    Refused,
    SpoolError,
    SpoolFull,
    Unavailable,
)
from consumer.wire import ENDED, Reason, Status
from producer.batcher import Batch
from producer.coalesce import Coalescer, Delta, Merging
from producer.control import Control, GenerationState
from producer.ending import Ended, Finish, ended_by
from producer.guard import GuardedTransport
from producer.limits import Limits
from producer.metrics import Metrics
from producer.opening import Opening
from producer.pace import Pace
from producer.sender import Sender
from producer.signal import Signal
from producer.spool import Change, Kept, Spool, State
from producer.uploads import Place, Receipt, UploadMode
from producer.window import Flight

__all__ = ["Forwarder", "Network"]

T = TypeVar("T")

PAGE_CHUNKS_MAX: Final = 500
"""Read from the spool at once. What is read waits in memory until there is room to send it."""
LANE_BUSY: Final = "LANE_BUSY"
ID_CHARS_MAX: Final = 128


@dataclass(frozen=True, slots=True)
class Network:
    """What all deliveries share."""

    transport: GuardedTransport
    control: Control
    limits: Limits
    pace: Pace
    slots: anyio.CapacityLimiter
    """For what an earlier process left: so many at once."""
    metrics: Metrics
    moved: Signal
    """Rings when one of them has got on."""
    mode: UploadMode
    settles: bool
    """What is over is to be settled."""


class _Paused(Unavailable):
    """This process delivers no more; the next one does."""


class Forwarder:
    """The delivery of one generation, from its task.

    It ends when the broker has everything and the end, when somebody else ended the generation, when the broker refuses
    it for good, or when it is stopped. Everything else passes, and is waited for.
    """

    def __init__(self, kept_id: int, change: Change, network: Network) -> None:
        self.kept_id = kept_id
        self.error: ClientError | None = None
        """Why the rest cannot be delivered."""
        self.trouble: ClientError | None = None
        """What it ran into last, and waits for to pass."""
        self.attended = anyio.Event()
        """Its application is there: chunks may come at any time, and the lease has to be renewed."""
        self.over = anyio.Event()
        self._change = change
        self._network = network
        self._scope = anyio.CancelScope()
        self._sender: _SpooledSender | None = None
        self._is_fed = False
        """Everything in the spool was handed to the sender."""
        self._news = 0
        """How often there was something new in the spool."""
        self._told = Signal()

    @property
    def is_idle(self) -> bool:
        """Whether the broker has everything that is in the spool."""
        return (
            self._is_fed and self._sender is not None and not self._sender.in_flight and not self._sender.queued_chunks
        )

    @property
    def is_concluding(self) -> bool:
        """Whether the broker has its end too, and the spool is about to be told so."""
        return self.is_idle and self._sender is not None and self._sender.closing

    def notify(self) -> None:
        """There is something new in the spool."""
        self._is_fed = False
        self._news += 1
        self._told.ring()

    def stop(self) -> None:
        """Cancel what is under way; the next process goes on from there."""
        if self._sender is not None:
            self._sender.abandon(_Paused("the producer was closed"))
        self._scope.cancel()

    async def run(self) -> None:
        """Deliver. Raises nothing; see `error`."""
        try:
            with self._scope:
                await self._run()
        except SpoolError as error:
            self.error = error
        finally:
            self._release_slot()
            self.over.set()
            self._network.moved.ring()

    async def _run(self) -> None:
        if not self.attended.is_set():
            await self._network.slots.acquire_on_behalf_of(self)
            await self._keep(_open_late, self.kept_id)
        while True:
            kept, sealed = await self._keep(_loaded, self.kept_id)
            try:
                await self._prepare(kept, sealed)
                error = await self._send(kept, sealed)
                if await self._concluded(kept, error):
                    return
            except ClientError as trouble:
                if isinstance(trouble, SpoolError):
                    raise
                if _is_final(trouble):
                    await self._refused(trouble)
                    return
                self.trouble = trouble
                self._network.moved.ring()
                await anyio.sleep(self._network.limits.probe_s)

    def _release_slot(self) -> None:
        with suppress(RuntimeError):  # it has none, or none any more
            self._network.slots.release_on_behalf_of(self)

    async def _keep(self, make: Callable[..., T], *values: Any) -> T:
        """Change the spool; a disk without room is waited for."""
        while True:
            try:
                return await self._change(lambda spool: make(spool, *values))
            except SpoolFull as error:
                self.trouble = error
                await anyio.sleep(self._network.limits.backoff_s_max)

    # -- one life ----------------------------------------------------------------------------------------------------

    async def _prepare(self, kept: Kept, sealed: list[tuple[int, Batch]]) -> None:
        """The session has to be there before its first generation."""
        if kept.next_seq == len(sealed) == 0 or (sealed and sealed[0][0] == 0):
            await self._network.control.create_session(kept.session_id, None, None)

    async def _send(self, kept: Kept, sealed: list[tuple[int, Batch]]) -> ClientError | None:
        """Until the end is acknowledged, or it can go no further in this generation; then why."""
        # Nobody is there to be told of a stop at once, and requests may be compressed.
        mode = self._network.mode if self.attended.is_set() else UploadMode.POST
        sender = self._sender = _SpooledSender(self, self._network, _place(kept, sealed), mode)
        for _, batch in sealed:
            sender.take_sealed(batch)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(sender.run)
            tasks.start_soon(self._guarded, sender, self._feed, kept)
            tasks.start_soon(self._guarded, sender, self._note_acknowledged)
            await sender.over.wait()
            tasks.cancel_scope.cancel()
        await self._keep(Spool.acknowledge, self.kept_id, sender.acked_seq)
        return sender.error

    async def _guarded(self, sender: _SpooledSender, work: Callable[..., Awaitable[None]], *values: Any) -> None:
        try:
            await work(sender, *values)
        except ClientError as error:
            sender.abandon(error)

    async def _feed(self, sender: _SpooledSender, kept: Kept) -> None:
        """Hand what is in the spool, and what comes into it, to the sender."""
        delta_of = _delta_of(kept)
        after = -1
        while not sender.closing:
            news = self._news
            chunks, kept = await self._keep(_next_page, self.kept_id, after)
            for after, encoded in chunks:  # noqa: B007  where it has got to
                await sender.put(encoded, delta_of(encoded))
            if chunks:
                continue
            if kept.end is not None:
                sender.close(Finish.decoded(kept.end))
            self._is_fed = True
            self._network.moved.ring()
            while self._news == news and not sender.closing:
                await self._told.wait()

    async def _note_acknowledged(self, sender: _SpooledSender) -> None:
        noted = -1
        while True:
            if sender.acked_seq > noted:
                noted = sender.acked_seq
                self.trouble = None
                await self._keep(Spool.acknowledge, self.kept_id, noted)
            elif self.is_idle:
                self._release_slot()
                self._network.moved.ring()
                await sender.changed.wait()
            else:
                await sender.changed.wait()

    async def seal(self, seq: int, batch: Batch) -> None:
        """Returns when the batch is in the spool under its seq."""
        await self._keep(Spool.seal, self.kept_id, seq, batch)

    # -- and what comes after it -------------------------------------------------------------------------------------

    async def _concluded(self, kept: Kept, error: ClientError | None) -> bool:
        """Whether it is over. Raises what passes, or is final."""
        if isinstance(error, _Paused):
            return True
        if error is None:
            await self._conclude(State.DELIVERED)
            return True
        if isinstance(error, Fenced):
            return await self._concluded_fenced(kept, error)
        if isinstance(error, Refused) and error.code == LANE_BUSY:
            own_lane = {**kept.opening, "lane": f"~{kept.generation_id}"[:ID_CHARS_MAX]}
            await self._keep(Spool.open_with, self.kept_id, own_lane)
            return False
        raise error

    async def _concluded_fenced(self, kept: Kept, fence: Fenced) -> bool:
        """Late is not lost: after the lease ran out, what the broker has not got goes on in a new generation."""
        state: GenerationState = await self._network.control.generation_state(kept.session_id, kept.current_id)
        await self._keep(Spool.acknowledge, self.kept_id, state.seq)
        if fence.reason != Reason.LEASE_EXPIRED:
            return await self._ended_by_another(kept, fence, state)
        life = kept.life + 1
        suffix = f"~{life}"
        new_id = kept.generation_id[: ID_CHARS_MAX - len(suffix)] + suffix
        opening = {**kept.opening, "on_conflict": None}
        await self._keep(Spool.go_on_as, self.kept_id, new_id, kept.current_id, opening)
        return False

    async def _ended_by_another(self, kept: Kept, fence: Fenced, state: GenerationState) -> bool:
        """Stopped, or superseded; or ended by ourselves, if the answer to our own finish was lost."""
        left = await self._keep(Spool.sealed, self.kept_id)
        if kept.end is not None and not left and state.status in ENDED and fence.reason == "finished":
            await self._conclude(State.DELIVERED)
            return True
        self.error = fence
        await self._conclude(State.FENCED, fence)
        return True

    async def _refused(self, refusal: ClientError) -> None:
        self.error = refusal
        await self._conclude(State.REFUSED, refusal)

    async def _conclude(self, state: str, error: ClientError | None = None) -> None:
        """It is over; whether it is to be settled goes into the same transaction."""
        await self._keep(_conclude, self.kept_id, state, error, self._network.settles)


class _SpooledSender(Sender):
    """A sender whose batches are in the spool before they leave."""

    def __init__(self, forwarder: Forwarder, network: Network, place: Place, mode: UploadMode) -> None:
        super().__init__(network.transport, place, network.limits, mode)
        self.watch(network.transport.health, network.metrics)
        self._ending_s_max = math.inf
        self._forwarder = forwarder
        self._pace = network.pace
        self._sealed_next_seq = place.next_seq
        """From here on, batches are cut by this process."""

    @property
    def acked_seq(self) -> int:
        return self._window.acked_seq

    def take_sealed(self, batch: Batch) -> None:
        """A batch that is in the spool already. Those come first, in the order of their seq."""
        self._sealed_next_seq += 1
        if batch.last:
            self.end(batch)
        else:
            self._batcher.add_batch(batch)

    async def _seal(self, flight: Flight) -> None:
        """See Pipeline. Nothing is sent that another process could not send again."""
        if flight.seq >= self._sealed_next_seq:
            try:
                await self._forwarder.seal(flight.seq, flight.batch)
            except SpoolError as error:
                self.abandon(error)

    async def _post(self, seq: int, batch: Batch) -> Receipt:
        wait_s = self._pace.take(len(batch.body), anyio.current_time())
        if wait_s:
            await anyio.sleep(wait_s)
        return await super()._post(seq, batch)

    async def _renew_lease(self) -> None:
        """See Sender. Nobody's generation is left to its lease."""
        await self._forwarder.attended.wait()
        await super()._renew_lease()

    async def _conclude_refused(self, refusal: Refused) -> None:
        if refusal.code != LANE_BUSY:  # then it is opened in another lane
            await super()._conclude_refused(refusal)


def _is_final(error: ClientError) -> bool:
    """Whether it will be the same tomorrow. Tokens are renewed, and captive portals are left behind."""
    if isinstance(error, Refused):
        return not isinstance(error, AccessDenied) and not error.code.startswith("HTTP_")
    return isinstance(error, Gap)


def _opening(kept: Kept) -> Opening:
    known = {name: value for name, value in kept.opening.items() if name != "merging"}
    return replace(Opening(**known), generation_id=kept.current_id, continues=kept.continues)


def _place(kept: Kept, sealed: list[tuple[int, Batch]]) -> Place:
    next_seq = sealed[0][0] if sealed else kept.next_seq
    return _opening(kept).place(next_seq=next_seq, chunks=0)


def _delta_of(kept: Kept) -> Callable[[bytes], Delta | None]:
    if kept.opening["merging"] != Merging.ALWAYS:
        return lambda _: None
    coalescer = Coalescer(kept.opening["format"])
    return lambda encoded: coalescer.delta(json.loads(encoded), encoded)


# -- several looks at the spool that have to be one --------------------------------------------------------------------


def _loaded(spool: Spool, kept_id: int) -> tuple[Kept, list[tuple[int, Batch]]]:
    return spool.get(kept_id), spool.sealed(kept_id)


def _next_page(spool: Spool, kept_id: int, after: int) -> tuple[list[tuple[int, bytes]], Kept]:
    return spool.page(kept_id, after, PAGE_CHUNKS_MAX), spool.get(kept_id)


def _conclude(spool: Spool, kept_id: int, state: str, error: ClientError | None, settles: bool) -> None:  # noqa: FBT001  `_keep` passes positions
    ended: Ended | None = None
    if settles:
        kept = spool.get(kept_id)
        told = Finish.decoded(kept.end).status if kept.end is not None else Status.COMPLETE
        message_id = kept.opening["message_id"]
        ended = ended_by(kept.session_id, kept.generation_id, message_id, told=told, error=error)
    spool.conclude(kept_id, state, None if error is None else str(error), settles=ended)


def _open_late(spool: Spool, kept_id: int) -> None:
    """What an earlier process left unopened must not end what runs in its lane today."""
    kept = spool.get(kept_id)
    if kept.next_seq == 0:
        spool.open_with(kept_id, {**kept.opening, "on_conflict": "reject"})
