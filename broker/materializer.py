"""The materializer: follows the logs of live sessions and keeps the messages that they fold to.

What it has at position X is fold(log[0..X]), by the very fold that clients run. It reads what was applied, so it never
shows what is not durable; and it only remembers, so whatever it drops it can fold again: from the snapshot that rode in
a checkpoint, or from the start of the log.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict

import msgspec

from broker import limits
from broker.core.page import records
from broker.core.state import Stream
from broker.errors import BrokerError, Unavailable
from broker.partition import Partition
from broker.store import Snapshot
from consumer.plain import JSONObject
from consumer.session import BadSessionState, SessionFold
from consumer.wire import SESSION_PATH_PREFIX

log = logging.getLogger("streamfold.materializer")

ROUND_S = 0.02
"""Pause between two rounds over the sessions that moved: chunks that came meanwhile are folded in one go."""
SLICE_RECORDS = 500
"""Records folded before others get a turn: about a millisecond."""
SNAPSHOT_RECORDS = 512
"""A running session is snapshotted when it is at least this many records beyond its last snapshot …"""
SNAPSHOT_BYTES_PER_RECORD = 64
"""… plus one for each so many bytes of that snapshot: writing snapshots stays linear in the length of an answer."""


class Messages(msgspec.Struct, frozen=True):
    """The messages of a session and where in its stream they stand."""

    stream: Stream
    position: int
    items: list[JSONObject]


class _Live:
    """One session in memory: everything below `position` of `incarnation` is folded.

    `changed` are the messages that the last snapshot, at `saved_position`, does not have as they are now.
    """

    def __init__(self, incarnation: int) -> None:
        self.incarnation = incarnation
        self.position = 0
        self.fold = SessionFold()
        self.changed: set[str] = set()
        self.saved_position = 0
        self.saved_bytes = 0
        self.lock = asyncio.Lock()

    def is_due(self) -> bool:
        """Whether the next checkpoint should carry a snapshot."""
        if not self.changed:
            return False
        behind = self.position - self.saved_position
        return behind >= SNAPSHOT_RECORDS + self.saved_bytes // SNAPSHOT_BYTES_PER_RECORD or not self.fold.is_running


class Materializer:
    """Runs beside a partition; `run` until cancelled."""

    def __init__(self, partition: Partition, sessions_max: int = limits.LIVE_SESSIONS_MAX) -> None:
        self.records_folded = 0
        self._partition = partition
        self._sessions_max = sessions_max
        self._live: OrderedDict[str, _Live] = OrderedDict()  # least recently used first
        self._moved: set[str] = set()
        self._cue = asyncio.Event()
        partition.observe = self._observe
        partition.snapshots = self.snapshots

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
            for path in moved:
                try:
                    await self._follow(path)
                except BrokerError as error:
                    log.warning("session %s is folded later: %s", path, error)
            await asyncio.sleep(ROUND_S)

    async def messages(self, path: str) -> Messages | None:
        """All messages of the session whose stream is at `path`, folded up to its tail; None when there is none.

        Raises Unavailable when what is stored cannot be read.
        """
        stream = await self._session_stream(path)
        if stream is None:
            return None
        live = await self._caught_up(path, stream)
        if live.position < stream.tail:
            if await self._session_stream(path) is None:
                return None
            raise Unavailable("the session could not be read to its end just now")
        return Messages(stream, live.position, live.fold.items())

    def snapshots(self) -> list[Snapshot]:
        """What the checkpoint that is being frozen should carry."""
        return [self._snapshot(path, live) for path, live in self._live.items() if live.is_due()]

    def _observe(self, path: str) -> None:
        if path.startswith(SESSION_PATH_PREFIX):
            self._moved.add(path)
            if not self._cue.is_set():
                self._cue.set()

    async def _follow(self, path: str) -> None:
        stream = await self._session_stream(path)
        if stream is None:
            self._live.pop(path, None)
        elif path in self._live or self._has_room():
            await self._caught_up(path, stream)

    def _has_room(self) -> bool:
        """Whether one more session can be followed before anybody asks for it.

        Not in the place of one that still moves: with more of these than memory holds, each would be dropped and folded
        again, from its snapshot on, whenever it moves.
        """
        if len(self._live) < self._sessions_max:
            return True
        oldest = next(iter(self._live.values()))
        return not oldest.changed and not oldest.fold.is_running

    async def _session_stream(self, path: str) -> Stream | None:
        """The stream of a session; None once that is deleted, also while forks keep the records."""
        stream = await self._partition.stream(path)
        return None if stream is None or stream.deleted else stream

    async def _caught_up(self, path: str, stream: Stream) -> _Live:
        """The session with everything folded that was applied when this was called, or more."""
        live = self._live.get(path)
        if live is None or live.incarnation != stream.incarnation:
            live = self._live[path] = _Live(stream.incarnation)
        self._live.move_to_end(path)
        async with live.lock:
            if live.position == 0:
                await self._restore(path, live)
            await self._fold_up_to(path, live, stream)
            now = await self._session_stream(path)
            if now is None or now.incarnation != live.incarnation:  # a snapshot of it would stay for ever
                live.changed.clear()
        while len(self._live) > self._sessions_max:
            self._live.popitem(last=False)
        return live

    async def _restore(self, path: str, live: _Live) -> None:
        """Begin at the stored snapshot, if there is a usable one."""
        snapshot = await self._partition.stored_snapshot(path, live.incarnation)
        if snapshot is None:
            return
        fold = SessionFold()
        try:
            for ordinal, message_id, stored in snapshot.messages:
                fold.load(ordinal, message_id, stored)
        except BadSessionState as error:
            log.warning("snapshot of %s is folded anew: %s", path, error)
            return
        live.fold, live.position, live.saved_position = fold, snapshot.position, snapshot.position
        live.saved_bytes = sum(len(stored) for _, _, stored in snapshot.messages)

    async def _fold_up_to(self, path: str, live: _Live, stream: Stream) -> None:
        while live.position < stream.tail:
            page = await self._partition.read(path, stream, live.position, limits.READ_BYTES_MAX)
            if page is None:  # the stream ended meanwhile, or a checkpoint moved what was looked for
                return
            found = records(page)
            for start in range(0, len(found), SLICE_RECORDS):
                part = found[start : start + SLICE_RECORDS]
                for record in part:
                    message_id = live.fold.add(record)
                    if message_id is not None:
                        live.changed.add(message_id)
                live.position += len(part)
                self.records_folded += len(part)
                if start + SLICE_RECORDS < len(found):
                    await asyncio.sleep(0)

    def _snapshot(self, path: str, live: _Live) -> Snapshot:
        fold = live.fold
        messages = [(fold.ordinal(message_id), message_id, fold.dump(message_id)) for message_id in live.changed]
        live.changed = set()
        live.saved_position = live.position
        live.saved_bytes = sum(len(stored) for _, _, stored in messages)
        return Snapshot(path, live.incarnation, live.position, messages)
