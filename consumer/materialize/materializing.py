"""Follows the sessions of a broker, and keeps a database at what they fold to."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Final

import anyio
import stamina

from consumer.errors import Gone, NotFound, Unavailable
from consumer.materialize.moves import Moves
from consumer.materialize.queue import Queue
from consumer.materialize.rows import Change, message_row
from consumer.materialize.sink import Sink, SinkUnavailable, Stored
from consumer.reader import Reader, Texts
from consumer.session import BadSessionState, SessionFold
from consumer.session_list import SessionSummary
from consumer.wire import OFFSET_START, SESSION_PATH_PREFIX, Code, Status

__all__ = ["Materializing"]

log = logging.getLogger("streamfold.materialize")

HANDS: Final = 4
"""Sessions that are brought up to date at the same time."""
FOLDS_KEPT_MAX: Final = 256
BYTES_KEPT_MAX: Final = 64 * 1024 * 1024
"""Sessions whose folds stay in memory for when they move again, by number and by about what they take; others are
loaded from the database. Besides, there are those in hand: one page of the log and the messages of each."""
VANISHED_PAGE_SESSIONS: Final = 1_000
BACKOFF_S_INITIAL: Final = 0.1
BACKOFF_S_MAX: Final = 5.0
BACKOFF_S_JITTER: Final = 0.5


class _Folded:
    """A session as it was last written, and as it is folded on.

    `written_offset` is where the database has it. `is_anew` says that it is another life than the one there, so that
    the next write replaces that.
    """

    def __init__(self, stored: Stored) -> None:
        self.written_offset = self.offset = stored.next_offset
        self.fold = SessionFold()
        self.is_anew = False
        self.size_bytes = sum(len(state) for _, _, state in stored.states)
        for position, message_id, state in stored.states:
            self.fold.load(position, message_id, state)

    def begin_anew(self) -> None:
        self.fold, self.offset, self.is_anew, self.size_bytes = SessionFold(), OFFSET_START, True, 0

    def add(self, page: Texts, session: SessionSummary) -> Change:
        """Fold a page; what is to be written of it."""
        changed = dict.fromkeys(filter(None, map(self.fold.add, page.records)))
        rows = [message_row(session.session_id, self.fold, message_id) for message_id in changed]
        self.size_bytes += sum(map(len, page.records))
        self.offset = page.next_offset
        status = Status.STREAMING.value if self.fold.is_running else "idle"
        return Change(session, status, self.written_offset, self.offset, rows, self.is_anew)

    def written(self) -> None:
        self.written_offset, self.is_anew = self.offset, False


class Materializing:
    """Keeps `sink`, which is open, at what the sessions of a broker fold to: all of them, or those that are named.

    `run` returns when `once` has brought all to where they were when it began; else it goes on until it is cancelled.
    Outages of the broker and of the database are waited out. Raises SinkError (Fenced, SinkRefused), and of
    `consumer.errors` all but Unavailable.
    """

    def __init__(
        self, reader: Reader, sink: Sink, *, session_ids: Sequence[str] | None = None, once: bool = False
    ) -> None:
        self.transactions = 0
        """Writes of a session so far."""
        self.outages = 0
        """Attempts so far that ended because the broker or the database was not there."""
        self._reader = reader
        self._sink = sink
        self._wanted = None if session_ids is None else frozenset(session_ids)
        self._once = once
        self._moves = Moves(reader.client)
        self._queue = Queue()
        self._kept: OrderedDict[str, _Folded] = OrderedDict()  # those not in hand; who moved last is last
        self._kept_bytes = 0

    @property
    def kept(self) -> int:
        """Sessions whose folds are in memory, beside those in hand."""
        return len(self._kept)

    async def run(self) -> None:
        """See the class."""
        failures: list[Exception] = []
        async with anyio.create_task_group() as tasks:

            async def guard(work: Callable[[], Awaitable[None]]) -> None:
                try:
                    await work()
                except Exception as error:  # noqa: BLE001  raised again outside of the group, which would wrap it
                    failures.append(error)
                    tasks.cancel_scope.cancel()

            for _ in range(HANDS):
                tasks.start_soon(guard, self._work)
            await guard(self._find)
            tasks.cancel_scope.cancel()
        if failures:
            raise failures[0]

    # -- finding what has moved ------------------------------------------------------------------------------------

    async def _find(self) -> None:
        while True:
            await self._persist(self._list, "the list of sessions")
            if self._once:
                return await self._queue.until_empty()
            async with aclosing(self._moves.changed()) as changed:
                async for moved in changed:
                    await self._note(moved)

    async def _note(self, moved: SessionSummary | str) -> None:
        """What is gone is asked for once more when it is its turn: there may be another session of its name by then."""
        session_id, session = (moved, None) if isinstance(moved, str) else (moved.session_id, moved)
        if self._wanted is None or session_id in self._wanted:
            await self._queue.put(session_id, session)

    async def _list(self) -> None:
        if self._wanted is not None:
            await self._moves.begin()
            for session_id in sorted(self._wanted):
                await self._queue.put(session_id, None)
            return
        listed: set[str] = set()  # about 100 bytes for each session there is, until the list has been read
        async with aclosing(self._moves.listed()) as pages:
            async for page in pages:
                listed.update(session.session_id for session in page)
                await self._put_moved(page)
        await self._put_vanished(listed)

    async def _put_moved(self, page: list[SessionSummary]) -> None:
        known = await self._sink.offsets([session.session_id for session in page])
        for session in page:
            if known.get(session.session_id) != session.offset:
                await self._queue.put(session.session_id, session)

    async def _put_vanished(self, listed: set[str]) -> None:
        """Sessions of the database that the list does not have: deleted while nobody looked, or newer than the list."""
        after = ""
        while found := await self._sink.session_ids(after, VANISHED_PAGE_SESSIONS):
            for session_id in found:
                if session_id not in listed:
                    await self._queue.put(session_id, None)
            after = found[-1]

    # -- bringing it up to date --------------------------------------------------------------------------------------

    async def _work(self) -> None:
        while True:
            session_id, told = await self._queue.take()

            async def work(session_id: str = session_id, told: SessionSummary | None = told) -> None:
                await self._bring_up_to_date(session_id, told)

            await self._persist(work, f"session {session_id}")
            await self._queue.done(session_id)

    async def _bring_up_to_date(self, session_id: str, told: SessionSummary | None) -> None:
        """Read, fold and write to the present end of the session. What fails on the way is loaded again."""
        folded = self._taken(session_id)
        try:
            session = told or await self._moves.session(session_id)
            folded = folded or await self._claimed(session_id)
            if folded.written_offset != session.offset:
                await self._write_all(session, folded)
        except NotFound:
            await self._sink.delete(session_id)
            return
        except Gone as error:
            if error.code != Code.STREAM_GONE:
                raise
            await self._sink.delete(session_id)
            return
        self._keep(session_id, folded)

    async def _write_all(self, session: SessionSummary, folded: _Folded) -> None:
        """Raises NotFound and Gone (`STREAM_GONE`) when the session is not there any more."""
        try:
            await self._write_pages(session, folded)
        except Gone as error:  # the offset is of a life that a reset or a deletion has ended
            if error.code == Code.STREAM_GONE:
                raise
            folded.begin_anew()
            await self._write_pages(await self._moves.session(session.session_id), folded)

    async def _write_pages(self, session: SessionSummary, folded: _Folded) -> None:
        stream = SESSION_PATH_PREFIX + session.session_id
        async with aclosing(self._reader.texts(stream, folded.offset)) as pages:
            async for page in pages:
                await self._write(folded.add(page, session))
                folded.written()

    async def _write(self, change: Change) -> None:
        if change.offset == change.next_offset and not change.messages and not change.replaces:
            return
        await self._sink.write(change)
        self.transactions += 1

    async def _claimed(self, session_id: str) -> _Folded:
        stored = await self._sink.claim(session_id)
        try:
            return _Folded(stored)
        except BadSessionState as error:
            log.warning("session %s is folded anew: what is stored of it cannot be gone on with: %s", session_id, error)
            folded = _Folded(Stored(stored.next_offset, []))
            folded.begin_anew()
            return folded

    # -- what stays in memory ------------------------------------------------------------------------------------------

    def _taken(self, session_id: str) -> _Folded | None:
        folded = self._kept.pop(session_id, None)
        if folded is not None:
            self._kept_bytes -= folded.size_bytes
        return folded

    def _keep(self, session_id: str, folded: _Folded) -> None:
        self._kept[session_id] = folded
        self._kept_bytes += folded.size_bytes
        while self._kept and (len(self._kept) > FOLDS_KEPT_MAX or self._kept_bytes > BYTES_KEPT_MAX):
            self._taken(next(iter(self._kept)))

    # -- outages -----------------------------------------------------------------------------------------------------

    async def _persist(self, work: Callable[[], Awaitable[None]], what: str) -> None:
        """Work that may be repeated, until neither the broker nor the database is away."""
        async for attempt in stamina.retry_context(
            on=(SinkUnavailable, Unavailable),
            attempts=None,
            timeout=None,
            wait_initial=BACKOFF_S_INITIAL,
            wait_max=BACKOFF_S_MAX,
            wait_jitter=BACKOFF_S_JITTER,
        ):
            with attempt:
                try:
                    await work()
                except (SinkUnavailable, Unavailable) as error:
                    self.outages += 1
                    log.warning("%s: attempt %d: %s", what, attempt.num, error)
                    raise
