"""Sessions that nobody uses: created, or opened ahead for an answer that never came, and left so for long.

Found here, ended by an entry, which holds only while the session is as it was seen. The search goes by last activity,
oldest first, once over all sessions in a life of this process, then over those that have become old enough since: what
is left of a session that was used stays used until something happens to it, and then it is active again.
"""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec

from broker import limits
from broker.core.entry import Entry, Kind, SessionExpireOptions, encode_options
from broker.core.page import records
from broker.core.state import Session, Stream
from broker.partitions import Partitioned
from consumer.wire import RecordType

BATCH: Final = 256
"""Sessions looked at before others get a turn; their ends share a commit."""
RECORDS_MAX: Final = 16
"""A longer log has been used: an attempt at an answer without a chunk is two or three records."""
STORED_MS: Final = 60_000
"""Sessions are looked at for so long after they have become old enough: the row of one may not be stored yet."""

_OF_AN_ATTEMPT: Final = frozenset({RecordType.GENERATION.value, RecordType.STOP.value})


class _Record(msgspec.Struct):
    type: str


_record: Final = msgspec.json.Decoder(_Record).decode


class UnusedSessions:
    """Ends those that nobody has used for `unused_s` since they were last active."""

    def __init__(self, partition: Partitioned, unused_s: float) -> None:
        self._partition = partition
        self._unused_ms = int(unused_s * 1000)
        self._seen = (0, "")  # (time of activity, path): up to here all have been looked at

    async def expire(self) -> None:
        """Look at all that have become old enough. Raises BrokerError; then the rest is looked at the next time."""
        partition = self._partition
        if not partition.healthy:
            return
        before_ms = partition.now_ms() - self._unused_ms
        after = self._seen
        while found := await partition.idle_sessions(after, before_ms, BATCH):
            unused = [(path, stream) for path, session, stream in found if await self._is_unused(path, session, stream)]
            await asyncio.gather(*(partition.propose(self._end(path, stream)) for path, stream in unused if stream))
            after = found[-1][1].active_ms, found[-1][0]
            self._seen = min(after, (before_ms - STORED_MS, ""))

    async def _is_unused(self, path: str, session: Session, stream: Stream | None) -> bool:
        if stream is None or stream.deleted or stream.is_needed or session.open or session.reset_ms:
            return False
        if stream.tail > RECORDS_MAX or (stream.tail and not session.lanes):
            return False
        position = 0
        while position < stream.tail:
            page = await self._partition.read(path, stream, position, limits.READ_BYTES_MAX)
            if page is None or any(_record(record).type not in _OF_AN_ATTEMPT for record in records(page)):
                return False
            position = page.end
        return True

    def _end(self, path: str, stream: Stream) -> Entry:
        options = encode_options(SessionExpireOptions(stream.tail, self._unused_ms))
        return Entry(Kind.SESSION_EXPIRE, path, incarnation=stream.incarnation, options=options)
