"""Checkpoints: what was applied moves into the store, now and then and when there is much of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

from broker import limits
from broker.applied import Applied
from broker.core.page import Page
from broker.errors import Unavailable
from broker.journal import Journal
from broker.store import Checkpoint, Head, Snapshot, Store

log = logging.getLogger("streamfold.partition")


class Checkpoints:
    """Those of one partition: one at a time.

    `snapshots` gives what is to ride in the one that is about to be taken in hand; `written` is told of it once it is
    durable, and must be quick. `failed` is told when it is not known whether one is.
    """

    def __init__(
        self,
        applied: Applied,
        journal: Journal,
        store: Store,
        *,
        interval_s: float,
        snapshots: Callable[[], Awaitable[list[Snapshot]]],
        written: Callable[[list[Snapshot]], None],
        failed: Callable[[Exception], None],
    ) -> None:
        self._applied, self._journal, self._store = applied, journal, store
        self._interval_s = interval_s
        self._snapshots, self._written, self._failed = snapshots, written, failed
        self._stored_index = 0  # of the newest entry that the store has; never above that of the newest applied one
        self._late_snapshots: list[Snapshot] = []  # of a checkpoint that could not be written
        self._due = asyncio.Event()
        self._closing = asyncio.Event()
        self._writing = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._under_way: set[asyncio.Task[None]] = set()  # being written, or waiting for its turn

    def begin(self, stored_index: int) -> None:
        """The store has what was applied up to there."""
        self._stored_index = stored_index

    def start(self) -> None:
        """Write one after each interval from now on."""
        self._task = asyncio.create_task(self._run(), name="checkpoint")

    def hurry(self) -> None:
        """Write one now."""
        self._due.set()

    def end(self) -> None:
        """Write no more, but for the one in hand."""
        self._closing.set()
        self._due.set()

    async def aclose(self) -> None:
        """`end`, and wait for the one in hand. Idempotent."""
        self.end()
        if self._task is not None:
            await asyncio.wait((self._task,))
            self._task = None
        if self._under_way:
            await asyncio.wait(self._under_way)

    async def write(self) -> None:
        """Write what changed to the store and let the journal forget it.

        Raises Unavailable when it was definitely not written: everything stays in memory, to be written next time.
        """
        # Not in the caller's task, which may be cancelled: the store finishes what it has begun to write, and the next
        # checkpoint must not repeat it.
        writing = asyncio.create_task(self._write_in_turn(), name="checkpoint: write")
        self._under_way.add(writing)
        writing.add_done_callback(self._under_way.discard)
        await asyncio.shield(writing)

    async def _write_in_turn(self) -> None:
        async with self._writing:
            await self._write()

    async def _run(self) -> None:
        while not self._closing.is_set():
            await self._pause(self._due)
            self._due.clear()
            if self._closing.is_set():
                return
            try:
                await self._write_in_turn()
            except Unavailable as error:
                self._applied.counts.checkpoint_failures += 1
                log.warning("checkpoint not written, tried again later: %s", error)
                await self._pause(self._closing)
            except Exception as error:  # noqa: BLE001 -- the store's state is unknown: acknowledge nothing more
                self._failed(error)
                return

    async def _pause(self, event: asyncio.Event) -> None:
        """For the interval between two checkpoints, or until the event."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._interval_s):
                await event.wait()

    async def _write(self) -> None:
        snapshots = [*self._late_snapshots, *await self._snapshots()]
        # By the index, not by changed rows: refusals change none, and the journal must let go of them too.
        if self._applied.applied_index == self._stored_index and not snapshots:
            return
        pages = await self._move(snapshots)
        self._journal.trim(self._stored_index)
        self._written(snapshots)
        while pages:  # in steps: to free some thousand at once holds up the event loop for milliseconds
            del pages[-limits.LET_GO_PAGES :]
            await asyncio.sleep(0)

    async def _move(self, snapshots: list[Snapshot]) -> list[Page]:
        """What was applied, into the store. The pages that it has now, of which nobody needs to know any more."""
        applied = self._applied
        frozen = applied.freeze()
        pages = [(tail.incarnation, fresh) for _, tail, fresh in frozen.tails]
        head = Head(frozen.index, frozen.time_ms, self._journal.mark())
        try:
            await self._store.write(Checkpoint(head, frozen.rows, pages, frozen.ended, snapshots))
        except BaseException:
            applied.thaw(frozen)
            self._late_snapshots = snapshots
            raise
        applied.stored(frozen)
        self._late_snapshots = []
        self._stored_index = head.applied_index
        applied.counts.checkpoints += 1
        return [page for _, fresh in pages for page in fresh]
