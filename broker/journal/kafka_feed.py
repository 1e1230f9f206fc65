"""What was read of a partition and is not taken yet; and whether it follows what was read before.

Kafka may lose what it has confirmed, when a replica must lead that was behind (an unclean election), and the client
does not notice (it does not speak KIP-320). So after everything that might have been one, a feed looks back: it is sent
to the last record again, and what it is fed there must be the same.

A record of this process need not be read before it counts: see `Feed.confirm`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from broker import limits
from broker.journal.shared_log import LogLost, LogRecord, LogTruncated


class Feed:
    """Of one partition. The connection feeds it, a log takes from it."""

    def __init__(self, partition: int) -> None:
        self.partition = partition
        self.next_position = 0
        """Of the next record to be fed."""
        self._known_end = 0  # Kafka has records before this position
        self._records: deque[LogRecord] = deque()  # fed, and not yet taken
        self._size_bytes = 0
        self._last: LogRecord | None = None  # that was fed
        self._doubts = False
        self._is_looking_back = False  # the consumer was sent to `_last`, which is to be fed next
        self._unread: deque[LogRecord] = deque()  # fed as Kafka confirmed them, and still to be read back
        self._unread_bytes = 0
        self._came = asyncio.Event()
        self._lost: LogLost | None = None
        self.was_overtaken = False
        """Whether others wrote just before the newest record of this process."""
        self.is_awaited = False
        """Whether somebody waits for what comes next."""
        self.is_watched: Callable[[], bool] = lambda: True
        """Whether somebody would be told of it."""

    # -- for the log -------------------------------------------------------------------------------------------------

    def begin(self, position: int, last: LogRecord | None = None) -> None:
        """Forget what lies here, and go on from there, behind `last` if that is given."""
        self.next_position = position
        if last is not None or self._last is None or self._last.position != position - 1:
            self._last = last
        self._is_looking_back = False
        self._forget_unread()
        self._records.clear()
        self._size_bytes = 0

    def note_end(self, end: int) -> None:
        """Kafka has said that it has records before this position."""
        self._known_end = max(self._known_end, end)

    async def some(self) -> None:
        """Return once there is something to take. Raises LogLost."""
        while not self._records:
            if self._lost is not None:
                raise self._lost
            self._came.clear()
            await self._came.wait()

    def take(self) -> Sequence[LogRecord]:
        """All that is here."""
        records, self._records, self._size_bytes = self._records, deque(), 0
        return tuple(records)

    # -- for the connection ------------------------------------------------------------------------------------------

    @property
    def is_full(self) -> bool:
        """Whether more should not be fed before some is taken."""
        return self._size_bytes >= limits.KAFKA_BACKLOG_BYTES

    @property
    def is_behind(self) -> bool:
        """Whether Kafka is known to have records that could have been read."""
        read_position = self._unread[0].position if self._unread else self.next_position
        return self._known_end > read_position and not self.is_full and self._lost is None

    @property
    def is_waited_for(self) -> bool:
        """Whether Kafka has, or is about to have, records that can only be had by reading."""
        return self.is_awaited or self._known_end > self.next_position

    def feed(self, records: Sequence[Any]) -> bool:
        """Records of this partition as the consumer found them; True when that was enough for now."""
        for record in records if self._lost is None else ():
            found = LogRecord(record.offset, record.timestamp, record.value or b"")
            if self._is_looking_back and not self._has_found_again(found):
                break
            if found.position < self.next_position:
                self._read_back(found)
            else:
                self._add(found)
        self._came.set()
        return self.is_full

    def confirm(self, record: LogRecord) -> None:
        """Kafka has confirmed this record of ours: if it is the next one, it is fed, and read back later.

        It is what a fetch from here on would begin with: its position says that nothing is between. What that fetch
        brings must be the same.
        """
        self.was_overtaken = record.position > self.next_position
        is_next = record.position == self.next_position and not self._is_looking_back
        has_room = not self.is_full and self._unread_bytes < limits.KAFKA_BACKLOG_BYTES
        if is_next and has_room and not self._doubts and self._lost is None:
            self._unread.append(record)
            self._unread_bytes += len(record.data)
            self._add(record)
            self._came.set()

    def _add(self, record: LogRecord) -> None:
        self._records.append(record)
        self._size_bytes += len(record.data)
        self.next_position = record.position + 1
        self._last = record

    def _read_back(self, found: LogRecord) -> None:
        """A record that was confirmed; or one from before a seek, which tells nothing."""
        if self._unread and self._unread[0].position == found.position:
            confirmed = self._unread.popleft()
            self._unread_bytes -= len(confirmed.data)
            if confirmed != found:
                self.lose(LogTruncated(f"the log has another record at position {found.position} than it confirmed"))

    def _forget_unread(self) -> None:
        self._unread.clear()
        self._unread_bytes = 0

    @property
    def is_in_doubt(self) -> bool:
        """Whether to look back."""
        return self._doubts and self._lost is None

    @property
    def could_be_misled(self) -> bool:
        """Whether what comes next does not begin with the last record, though there is one."""
        return self._last is not None and not self._is_looking_back

    def doubt(self) -> None:
        """Look back once more, to be sure."""
        self._doubts = True

    def look_ahead(self) -> int:
        """Where the consumer is to go on, without looking back."""
        self._doubts, self._is_looking_back = False, False
        self._forget_unread()
        return self.next_position

    def look_back(self) -> int:
        """Where the consumer is to go on, at the last record if there is one."""
        self._doubts = False
        self._forget_unread()
        self._is_looking_back = self._last is not None
        return self.next_position if self._last is None else self._last.position

    def _has_found_again(self, found: LogRecord) -> bool:
        """Whether this is the last record, as it was."""
        self._is_looking_back = False
        if self._last is None or found.position != self._last.position:
            self.doubt()  # of a fetch from before the seek: once more
            return False
        if found != self._last:
            self.lose(LogTruncated(f"the log has another record at position {found.position} than was read there"))
            return False
        return True

    def lose(self, lost: LogLost) -> None:
        """There is nothing more to come."""
        self._lost = lost
        self._came.set()
