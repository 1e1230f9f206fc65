"""A session as one entry finds and leaves it."""

from __future__ import annotations

import msgspec

from broker.core.entry import ANY, Entry
from broker.core.events import generation_record
from broker.core.outcome import Outcome, refused
from broker.core.page import json_page
from broker.core.state import (
    Changes,
    Generation,
    Lane,
    Message,
    Session,
    Stream,
    generation_key,
    message_key,
    session_key,
    stream_key,
)
from broker.core.stream import live
from consumer.wire import Code, Status

_replace = msgspec.structs.replace


class Work:
    """Rows, and the records to add; `settle` puts them all."""

    __slots__ = ("changes", "entry", "index", "now_ms", "records", "session", "stream")

    def __init__(
        self, changes: Changes, entry: Entry, index: int, now_ms: int, session: Session, stream: Stream
    ) -> None:
        self.changes = changes
        self.entry = entry
        self.index = index
        self.now_ms = now_ms
        self.session = session
        self.stream = stream
        self.records: list[bytes] = []

    # -- looking -------------------------------------------------------------------------------------------------

    def generation(self, generation_id: str) -> Generation | None:
        """The generation, open or ended, also one of before a reset."""
        for generation in self.session.open:
            if generation.generation_id == generation_id:
                return generation
        row = self.changes.get(generation_key(self.entry.path, generation_id))
        return row if isinstance(row, Generation) and row.birth == self.session.birth else None

    def message(self, message_id: str) -> Message | None:
        """What has taken the message id, in this life of the stream."""
        row = self.changes.get(message_key(self.entry.path, message_id))
        if not isinstance(row, Message) or row.birth != self.session.birth:
            return None
        return row if row.incarnation == self.stream.incarnation else None

    def running(self, lane: str) -> Generation | None:
        """The generation that is open in the lane."""
        return next((generation for generation in self.session.open if generation.lane == lane), None)

    def lane(self, name: str) -> Lane | None:
        """The lane, if it has had a generation and was not forgotten since."""
        return next((known for known in self.session.lanes if known.name == name), None)

    def epoch(self, lane: str) -> int:
        """The lane's fence; 0 before its first generation."""
        known = self.lane(lane)
        return self.session.lane_floor if known is None else known.epoch

    def next_position(self) -> int:
        """Where the stream stands after the records added so far."""
        return self.stream.tail + len(self.records)

    # -- changing ------------------------------------------------------------------------------------------------

    def put_open(self, generation: Generation) -> None:
        """Set an open generation."""
        others = [known for known in self.session.open if known.generation_id != generation.generation_id]
        self.session = _replace(self.session, open=(*others, generation), active_ms=self.now_ms)

    def raise_fence(self, lane: str) -> int:
        """Fence off every generation that the lane has had; returns the new epoch."""
        epoch = self.epoch(lane) + 1
        others = (known for known in self.session.lanes if known.name != lane)
        self.session = _replace(self.session, lanes=(*others, Lane(lane, epoch)))
        return epoch

    def idle_lane(self) -> Lane | None:
        """The lane without an open generation whose newest one began first."""
        return next((lane for lane in self.session.lanes if self.running(lane.name) is None), None)

    def forget_lane(self, lane: Lane) -> None:
        """Make room for another lane. The session remembers how high its fence was, should it come back."""
        lanes = tuple(known for known in self.session.lanes if known.name != lane.name)
        floor = max(self.session.lane_floor, lane.epoch)
        self.session = _replace(self.session, lanes=lanes, lane_floor=floor)

    def end(self, generation: Generation, status: Status, reason: str) -> Generation:
        """Write the one canonical end of a generation, and file it among the ended."""
        ended = self.file(generation, status, reason)
        self.records.append(generation_record(ended, b"update", self.entry.txid))
        return ended

    def file(self, generation: Generation, status: Status, reason: str) -> Generation:
        """End a generation without a record."""
        ended = _replace(generation, status=status.value, reason=reason, ended_ms=self.now_ms)
        remaining = tuple(g for g in self.session.open if g.generation_id != ended.generation_id)
        self.session = _replace(self.session, open=remaining)
        self.put_ended(ended)
        return ended

    def put_ended(self, generation: Generation) -> None:
        """Set an ended generation."""
        self.changes.put(generation_key(self.entry.path, generation.generation_id), generation)

    def take_message(self, message_id: str, taken: Message) -> None:
        """Set what has taken a message id."""
        self.changes.put(message_key(self.entry.path, message_id), taken)

    def settle(self) -> None:
        """Put the rows and records."""
        if self.records:
            page = json_page(self.records, self.stream.tail)
            self.changes.append(self.entry.path, self.stream.incarnation, page)
            self.stream = _replace(self.stream, tail=page.end, active_ms=self.now_ms)
            self.changes.put(stream_key(self.entry.path), self.stream)
        if self.session.active_ms != self.now_ms:
            self.session = _replace(self.session, active_ms=self.now_ms)
        self.changes.put(session_key(self.entry.path), self.session)


def opened(changes: Changes, entry: Entry, index: int, now_ms: int) -> Work | None:
    """The session that the entry names, in the life that its proposer saw, where that was told; else None."""
    stream = live(changes, entry.path, now_ms)
    session = changes.get(session_key(entry.path))
    if stream is None or stream.deleted or not isinstance(session, Session):
        return None
    if entry.incarnation not in (ANY, stream.incarnation):
        return None
    return Work(changes, entry, index, now_ms, session, stream)


def found(
    changes: Changes, entry: Entry, index: int, now_ms: int, generation_id: str
) -> tuple[Work, Generation] | Outcome:
    """The session, and a generation of it; the refusal where there is none."""
    work = opened(changes, entry, index, now_ms)
    if work is None:
        return refused(Code.SESSION_NOT_FOUND)
    generation = work.generation(generation_id)
    if generation is None:
        return refused(Code.GENERATION_NOT_FOUND, stream=work.stream)
    return work, generation


def message_exists(work: Work, message_id: str) -> Outcome:
    """The refusal of a message whose id something else has taken."""
    return refused(Code.MESSAGE_EXISTS, f"message {message_id} has other content", stream=work.stream)
