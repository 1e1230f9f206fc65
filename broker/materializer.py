"""The materializer: follows the logs of live sessions and keeps the messages that they fold to.

What it has at position X is fold(log[0..X]), by the very fold that clients run. It reads what was applied, so it never
shows what is not durable; and it only remembers, so whatever it drops it can fold again: from the snapshot that rode in
a checkpoint, or from the start of the log.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import msgspec

from broker import limits
from broker.core.page import before, records
from broker.core.state import Stream
from broker.errors import BrokerError, Overloaded, Unavailable
from broker.folded import Due, Folded, Item
from broker.partitions import Partitioned
from broker.store import Snapshot
from consumer.session import BadSessionState, Forgotten
from consumer.wire import SESSION_PATH_PREFIX

log = logging.getLogger("streamfold.materializer")

ROUND_S = 0.1
"""Pause between two rounds over the sessions that moved: chunks that came meanwhile are folded in one go. Whoever asks
for a session has what is missing folded at once."""
SLICE_RECORDS = 500
"""Records of one session folded before others get a turn: about a millisecond."""
TURN_SESSIONS = 32
"""Sessions of a round before others get a turn: with some chunks each about a millisecond."""


class Messages(msgspec.Struct, frozen=True):
    """The messages of a session and where in its stream they stand. `folded` has their texts."""

    stream: Stream
    position: int
    items: list[Item]
    folded: Folded


class _Live:
    """One session in memory, and whose turn it is to fold it. `counted_bytes` is its part in the sum of all.

    All its messages stay here until `whole_until_s` of the loop's clock, then those that the store has may go.
    """

    def __init__(self, folded: Folded) -> None:
        self.folded = folded
        self.counted_bytes = 0
        self.whole_until_s = 0.0
        self.lock = asyncio.Lock()


class Materializer:
    """Runs beside a partition; `run` until cancelled."""

    def __init__(
        self,
        partition: Partitioned,
        sessions_max: int = limits.LIVE_SESSIONS_MAX,
        bytes_max: int = limits.LIVE_SESSION_BYTES_MAX,
        whole_s: float = limits.WHOLE_SESSION_S,
    ) -> None:
        self.records_folded = 0
        self.size_bytes = 0
        """About what the sessions in memory hold there."""
        self._partition = partition
        self._sessions_max = sessions_max
        self._bytes_max = bytes_max
        self._whole_s = whole_s
        self._live: OrderedDict[str, _Live] = OrderedDict()  # least recently used first
        self._past: OrderedDict[str, Folded] = OrderedDict()  # as they were once, where somebody asked; the same order
        self._going_back = 0  # those who have one of the places, and those who wait for one
        self._places = asyncio.Semaphore(limits.PAST_FOLDS_MAX)
        self._snapshotting = asyncio.Lock()  # a later view of a session is not to be stored before an earlier one
        self._moved: set[str] = set()
        self._cue = asyncio.Event()
        partition.observe = self._observe
        partition.snapshots = self.snapshots
        partition.snapshots_stored = self.trim

    @property
    def sessions(self) -> int:
        """Sessions in memory."""
        return len(self._live)

    async def run(self) -> None:
        """Keep up with the sessions that move, until cancelled."""
        while True:
            await self._cue.wait()
            self._cue.clear()
            moved, self._moved = self._moved, set()
            for number, path in enumerate(moved, 1):
                try:
                    await self.follow(path)
                except BrokerError as error:
                    log.warning("session %s is folded later: %s", path, error)
                if number % TURN_SESSIONS == 0:
                    await asyncio.sleep(0)
            await asyncio.sleep(ROUND_S)

    async def messages(self, path: str) -> Messages | None:
        """All messages of the session whose stream is at `path`, folded up to its tail; None when there is none.

        Raises Unavailable when what is stored cannot be read.
        """
        stream = await self._session_stream(path)
        if stream is None:
            return None
        live = await self._caught_up(path, stream, whole=True)
        if live.folded.position < stream.tail:
            await self._require_over(path)
            return None
        return _told(stream, live.folded)

    async def messages_at(self, path: str, stream: Stream, position: int) -> Messages | None:
        """The messages as they stood at `position` of `stream`, not above its tail; None once that life is over.

        Costs at most the records from where the oldest message began that was not done at `position`. Raises Overloaded
        when too many go back already, Unavailable when what is stored cannot be read.
        """
        live = await self._caught_up(path, stream, whole=True)
        if live.folded.position == position and live.folded.incarnation == stream.incarnation:
            return _told(stream, live.folded)
        async with self._one_going_back():
            live = await self._caught_up(path, stream, whole=True)  # nothing waits between this and the next line
            past = self._past_of(path, live.folded, position)
            await self._fold_up_to(path, past, stream, position)
        if past.position < position:
            await self._require_over(path)
            return None
        self._past[path] = past
        while len(self._past) > limits.PAST_FOLDS_KEPT_MAX:
            self._past.popitem(last=False)
        return _told(stream, past)

    @asynccontextmanager
    async def _one_going_back(self) -> AsyncIterator[None]:
        """One of the few who may go back at once. Raises Overloaded when as many again wait."""
        if self._going_back >= 2 * limits.PAST_FOLDS_MAX:
            raise Overloaded("too many go back in their sessions")
        self._going_back += 1
        try:
            async with self._places:
                yield
        finally:
            self._going_back -= 1

    def _past_of(self, path: str, now: Folded, position: int) -> Folded:
        """Where to begin: at what is kept from the last time, or at what the newest state still knows."""
        kept, begin = self._past.pop(path, None), now.earlier(position)
        if kept is None or kept.incarnation != now.incarnation or not begin.position <= kept.position <= position:
            return begin
        return kept

    async def _require_over(self, path: str) -> None:
        """A session was not read to where it should: raise Unavailable unless it is over."""
        if await self._session_stream(path) is not None:
            raise Unavailable("the session could not be read to its end just now")

    # -- following ---------------------------------------------------------------------------------------------------

    def _observe(self, path: str) -> None:
        if path.startswith(SESSION_PATH_PREFIX):
            self._moved.add(path)
            if not self._cue.is_set():
                self._cue.set()

    async def follow(self, path: str) -> None:
        """Fold what is new of a session, if there is room for it, before anybody asks. Raises BrokerError."""
        stream = await self._session_stream(path)
        if stream is None:
            self.forget(path)
        elif path in self._live or self._has_room():
            await self._caught_up(path, stream)

    def _has_room(self) -> bool:
        """Whether one more session can be followed before anybody asks for it.

        Not in the place of one that still moves: with more of these than memory holds, each would be dropped and folded
        again, from its snapshot on, whenever it moves.
        """
        if len(self._live) < self._sessions_max and self.size_bytes < self._bytes_max:
            return True
        oldest = next(iter(self._live.values())).folded
        return not oldest.changed and not oldest.fold.is_running

    async def _session_stream(self, path: str) -> Stream | None:
        """The stream of a session; None once that is deleted, also while forks keep the records."""
        stream = await self._partition.stream(path)
        return None if stream is None or stream.deleted else stream

    async def _caught_up(self, path: str, stream: Stream, *, whole: bool = False) -> _Live:
        """The session with everything folded that was applied when this was called, or more; `whole`: all messages."""
        live = self._live.get(path)
        if live is None or live.folded.incarnation != stream.incarnation:
            self.forget(path)
            live = self._live[path] = _Live(Folded(stream.incarnation))
        self._live.move_to_end(path)
        if whole:
            live.whole_until_s = asyncio.get_running_loop().time() + self._whole_s
        async with live.lock:
            if live.folded.position == 0:
                await self._restore(path, live)
            try:
                await self._fold_live(path, live, stream, whole=whole)
            except BadSessionState as error:
                log.warning("what was stored of %s is folded anew: %s", path, error)
                live.folded = Folded(stream.incarnation)
                await self._fold_live(path, live, stream, whole=whole)
        self._count(path, live)
        self._shrink(path)
        return live

    async def _fold_live(self, path: str, live: _Live, stream: Stream, *, whole: bool) -> None:
        """Fold what is new, and have what was let go when that is needed. Raises BadSessionState."""
        while True:
            try:
                await self._fold_up_to(path, live.folded, stream, stream.tail)
            except Forgotten:
                await self._recall(path, live.folded)
                continue
            if not whole or not live.folded.is_trimmed:
                return
            await self._recall(path, live.folded)

    async def _recall(self, path: str, folded: Folded) -> None:
        snapshot = await self._partition.stored_snapshot(path, folded.incarnation)
        if snapshot is None:
            raise BadSessionState("its snapshot is gone")
        folded.recall(await asyncio.to_thread(Folded.restored, snapshot))

    def trim(self, stored: Sequence[Snapshot]) -> None:
        """Let go of messages that have ended, now that these snapshots are durable, where nobody has asked lately.

        So a session takes as much memory as what happens in it, however long it has become.
        """
        now_s = asyncio.get_running_loop().time()
        for snapshot in stored:
            live = self._live.get(snapshot.path)
            if live is None or live.folded.incarnation != snapshot.incarnation or now_s < live.whole_until_s:
                continue
            live.folded.trim(snapshot.position)
            self._count(snapshot.path, live)

    def _count(self, path: str, live: _Live) -> None:
        if self._live.get(path) is live:
            self.size_bytes += live.folded.size_bytes - live.counted_bytes
            live.counted_bytes = live.folded.size_bytes

    def _shrink(self, used: str) -> None:
        """Forget sessions that nobody has used for longest. The one just used stays, however large it is."""
        while len(self._live) > self._sessions_max or (self.size_bytes > self._bytes_max and len(self._live) > 1):
            oldest = next(iter(self._live))
            if oldest == used:
                self._live.move_to_end(oldest)
                continue
            self.forget(oldest)

    def forget(self, path: str) -> None:
        """Drop what is in memory of a session; whoever asks for it next has it folded again."""
        live = self._live.pop(path, None)
        self._past.pop(path, None)
        if live is not None:
            self.size_bytes -= live.counted_bytes
            live.counted_bytes = 0

    async def _restore(self, path: str, live: _Live) -> None:
        """Begin at the stored snapshot, if there is a usable one."""
        snapshot = await self._partition.stored_snapshot(path, live.folded.incarnation)
        if snapshot is None:
            return
        try:
            # Nobody else has it yet, so another thread may decode it.
            live.folded = await asyncio.to_thread(Folded.restored, snapshot)
        except BadSessionState as error:
            log.warning("snapshot of %s is folded anew: %s", path, error)

    async def _fold_up_to(self, path: str, folded: Folded, stream: Stream, position: int) -> None:
        while folded.position < position:
            page = await self._partition.read(path, stream, folded.position, limits.READ_BYTES_MAX)
            if page is None:  # the stream ended meanwhile, or a checkpoint moved what was looked for
                return
            found = records(before(page, position))
            for start in range(0, len(found), SLICE_RECORDS):
                part = found[start : start + SLICE_RECORDS]
                folded.add(part)
                self.records_folded += len(part)
                if start + SLICE_RECORDS < len(found):
                    await asyncio.sleep(0)

    # -- snapshots ---------------------------------------------------------------------------------------------------

    async def snapshots(self) -> list[Snapshot]:
        """What the checkpoint that is about to be frozen should carry: snapshots of sessions that are due.

        Not all when there is much: the rest is due next time. Each is one view of its session, taken in one go; what
        takes long, encoding it, is done in another thread while the session is folded on. Never raises: without its
        snapshots the log is as good as with them.
        """
        async with self._snapshotting:
            return await self._snapshots()

    async def _snapshots(self) -> list[Snapshot]:
        made: list[Due] = []
        is_done = False
        try:
            await self._encode_due(made)
            is_done = True
        except Exception:  # a checkpoint without them is whole: the log has it all
            log.exception("snapshots are made later")
        finally:
            if not is_done:
                for due in made:
                    due.folded.unsaved(due.message_ids)
        if not is_done:
            return []
        for due in made:
            due.folded.saved(due.snapshot())
        for path, live in self._live.items():
            self._count(path, live)
        return [due.snapshot() for due in made]

    async def _encode_due(self, made: list[Due]) -> None:
        encoded, taken_bytes = 0, 0
        for path, live in list(self._live.items()):
            if not live.folded.is_due:
                continue
            stream = await self._session_stream(path)
            if stream is None or stream.incarnation != live.folded.incarnation:
                live.folded.changed.clear()  # that life may be swept already: its snapshot would stay for ever
                continue
            made.append(live.folded.due(path))
            taken_bytes += made[-1].size_bytes
            if sum(due.size_bytes for due in made[encoded:]) >= limits.SNAPSHOT_STEP_BYTES:
                await asyncio.to_thread(_encode, made[encoded:])
                encoded = len(made)
            if taken_bytes >= limits.SNAPSHOT_ROUND_BYTES:
                break
        await asyncio.to_thread(_encode, made[encoded:])


def _told(stream: Stream, folded: Folded) -> Messages:
    return Messages(stream, folded.position, folded.items(), folded)


def _encode(dues: Sequence[Due]) -> None:
    for due in dues:
        due.encode()
