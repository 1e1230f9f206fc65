"""Generations that survive their process: written to a spool first, delivered from there, for as long as it takes."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import anyio
import anyio.abc
import anyio.to_thread

from consumer.errors import Finished, SpoolError, SpoolFull, Unavailable
from producer.coalesce import Merging
from producer.control import Control
from producer.ending import Finish
from producer.forwarder import Forwarder, Network
from producer.guard import GuardedTransport
from producer.limits import Limits
from producer.metrics import Metrics
from producer.opening import Opening
from producer.pace import Pace
from producer.settlement import KeptSettlements, Settle, Settlements
from producer.signal import Signal
from producer.spool import Kept, Spool, State
from producer.uploads import UploadMode

__all__ = ["Outbox"]

T = TypeVar("T")

_LIVE: Final = (State.OPEN, State.ENDED)


class _Change:
    """One of those that are committed together."""

    __slots__ = ("done", "error", "make", "result")

    def __init__(self, make: Callable[[Spool], Any]) -> None:
        self.make = make
        self.done = anyio.Event()
        self.result: Any = None
        self.error: SpoolError | None = None


class Outbox:
    """The generations in one spool, and their delivery; `Producer.outbox`, if the producer was given a spool.

    What an earlier process left is delivered without being asked for, a few generations at a time and within
    `catch_up_bytes_per_s`. What an application had not ended stays open: it is taken up by `Producer.spooled` with the
    same ids, or ended by `end`.
    """

    def __init__(
        self,
        path: Path,
        transport: GuardedTransport,
        limits: Limits,
        metrics: Metrics,
        mode: UploadMode,
        settle: Settle | None,
    ) -> None:
        self._path = path
        self._limits = limits
        patient = replace(limits, deadline_s=None, buffer_bytes_max=_buffer_bytes(limits))
        self._moved = Signal()
        """Rings when a delivery has got on, or is over."""
        self._network = Network(
            transport,
            Control(transport.compressing, patient),
            patient,
            Pace(limits.catch_up_bytes_per_s, limits.catch_up_bytes_per_s),
            anyio.CapacityLimiter(limits.catch_up_generations_max),
            metrics,
            self._moved,
            mode,
            settle is not None,
        )
        self._settling: KeptSettlements | None = None
        if settle is not None:
            settlements = Settlements(settle, self._network.control, patient, metrics)
            self._settling = KeptSettlements(self.change, settlements, limits, self._moved)
        self._spool: Spool | None = None
        self._tasks: anyio.abc.TaskGroup | None = None
        self._changes: list[_Change] = []
        self._asked = Signal()
        """Rings when a change was asked for, and when it closes."""
        self._closing = False
        self._forwarders: dict[int, Forwarder] = {}
        self._settling_scope = anyio.CancelScope(shield=True)

    # -- its life ----------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def opened(self) -> AsyncGenerator[None, None]:
        """Open the spool, and deliver from it until the context is left. Raises SpoolError and its kinds."""
        self._spool = await anyio.to_thread.run_sync(partial(Spool, self._path, bytes_max=self._limits.spool_bytes_max))
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                tasks.start_soon(self._commit)
                try:
                    for kept in await self.change(lambda spool: spool.all_in(*_LIVE)):
                        self._forwarder_of(kept)
                    tasks.start_soon(self._settle)
                    yield
                finally:
                    await self._close()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(self._spool.close)

    async def _close(self) -> None:
        """Deliver what can be delivered in time; the rest is for the next process."""
        with anyio.CancelScope(shield=True):
            with anyio.move_on_after(self._limits.finish_timeout_s):
                await self.drained()
                while not self._has_settled:
                    await self._moved.wait()
            self._settling_scope.cancel()
            for forwarder in self._forwarders.values():
                forwarder.stop()
            for forwarder in [*self._forwarders.values()]:
                await forwarder.over.wait()
            self._closing = True
            self._asked.ring()

    @property
    def _has_settled(self) -> bool:
        """Whether all that is over is settled."""
        if self._settling is None:
            return True
        return self._settling.is_idle and not any(one.is_concluding for one in self._forwarders.values())

    async def _settle(self) -> None:
        with self._settling_scope:
            if self._settling is not None:
                await self._settling.run()

    # -- the spool, from its thread ----------------------------------------------------------------------------------

    async def change(self, make: Callable[[Spool], T]) -> T:
        """What this change of the spool returns, when it is durable. Others are committed with it.

        Cancelled, it is made all the same. Raises SpoolError and its kinds; nothing was changed then.
        """
        change = _Change(make)
        self._changes.append(change)
        self._asked.ring()
        await change.done.wait()
        if change.error is not None:
            raise change.error
        result: T = change.result
        return result

    async def _commit(self) -> None:
        with anyio.CancelScope(shield=True):
            while self._changes or not self._closing:
                if not self._changes:
                    await self._asked.wait()
                    continue
                together, self._changes = self._changes, []
                await anyio.to_thread.run_sync(self._commit_together, together)
                for change in together:
                    change.done.set()

    def _commit_together(self, changes: list[_Change]) -> None:
        assert self._spool is not None
        try:
            results = self._spool.transact([change.make for change in changes])
        except SpoolError as error:
            for change in changes:
                change.error = error
        else:
            for change, result in zip(changes, results, strict=True):
                change.result = result

    # -- what is written ---------------------------------------------------------------------------------------------

    async def begin(self, opening: Opening, merging: Merging) -> tuple[Kept, Forwarder]:
        """Take a generation up, or begin it. Raises Finished if it is over, or its end was told."""
        given = {**asdict(opening), "merging": merging}
        kept = await self.change(lambda spool: spool.begin(opening.session_id, opening.generation_id, given))
        if kept.state != State.OPEN:
            raise Finished(f"the spool has generation {kept.generation_id} as {kept.state}")
        forwarder = self._forwarder_of(kept, attended=True)
        return kept, forwarder

    async def add(self, kept_id: int, encoded: bytes) -> None:
        """Returns when the chunk is in the spool. Raises SpoolFull."""
        assert self._spool is not None
        if self._spool.bytes + len(encoded) > self._spool.bytes_max:
            raise SpoolFull(f"the spool holds {self._spool.bytes} bytes; {self._spool.bytes_max} are allowed")
        await self.change(lambda spool: spool.add(kept_id, encoded))

    async def tell_end(self, kept_id: int, finish: Finish) -> None:
        """Returns when the end is in the spool."""
        await self.change(lambda spool: spool.end(kept_id, finish.body))

    # -- delivery ----------------------------------------------------------------------------------------------------

    def _forwarder_of(self, kept: Kept, *, attended: bool = False) -> Forwarder:
        assert self._tasks is not None
        forwarder = self._forwarders.get(kept.id)
        if forwarder is None:
            forwarder = self._forwarders[kept.id] = Forwarder(kept.id, self.change, self._network)
            self._tasks.start_soon(self._run, forwarder)
        if attended:
            forwarder.attended.set()
        return forwarder

    async def _run(self, forwarder: Forwarder) -> None:
        await forwarder.run()
        del self._forwarders[forwarder.kept_id]
        if self._settling is not None:
            self._settling.look()
        self._moved.ring()

    async def drained(self, within_s: float = math.inf) -> None:
        """Wait until the broker has everything that is in the spool, what it refused excepted.

        Raises Unavailable if that took longer than `within_s`; the delivery goes on.
        """
        with anyio.move_on_after(within_s):
            while not all(forwarder.is_idle for forwarder in self._forwarders.values()):
                await self._moved.wait()
            return
        raise Unavailable(f"not everything was delivered within {within_s:g} s")

    async def delivered(self, forwarder: Forwarder, within_s: float) -> None:
        """As `drained`, for one generation: its end included, if that was told. Raises its error."""
        with anyio.move_on_after(within_s):
            # With its end it is over only when the spool knows, or the next process would deliver it once more.
            while not forwarder.over.is_set() and (forwarder.is_concluding or not forwarder.is_idle):
                await self._moved.wait()
            if forwarder.error is not None:
                raise forwarder.error
            return
        raise Unavailable(f"not delivered within {within_s:g} s; the spool keeps it") from forwarder.trouble

    # -- what is left ------------------------------------------------------------------------------------------------

    async def unfinished(self) -> list[Kept]:
        """The generations whose end was not told: those of a process that was killed, and those being written."""
        return await self.change(lambda spool: spool.all_in(State.OPEN))

    async def refused(self) -> list[Kept]:
        """The generations that the broker will not take, with the reason; what is left of them is kept."""
        return await self.change(lambda spool: spool.all_in(State.REFUSED))

    async def discard(self, kept: Kept) -> None:
        """Forget a refused generation with all that is left of it."""
        await self.change(lambda spool: spool.discard(kept.id))


def _buffer_bytes(limits: Limits) -> int:
    """What waits in memory for its turn; the rest waits in the spool."""
    return 2 * max(limits.batch_bytes_max, limits.chunk_bytes_max)
