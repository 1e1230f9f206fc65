"""One session as it is folded: its messages at a position of its log, in what they may go back, how they are stored.

Pure: the materializer reads the log and says when to store what.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Final

from broker.store import Snapshot
from consumer.plain import JSONObject, encode
from consumer.session import BadSessionState, SessionFold

SNAPSHOT_RECORDS: Final = 512
"""A running session is snapshotted when it is at least this many records beyond its last snapshot …"""
SNAPSHOT_BYTES_PER_RECORD: Final = 64
"""… plus one for each so many bytes of that snapshot: writing snapshots stays linear in the length of an answer."""
IDLE_RECORDS: Final = 4_096
"""Records that changed no message, as a stop or a presence, after which a snapshot says no more than where it stands:
whoever opens the session does not read them all again."""
MESSAGE_BYTES: Final = 2_000
"""What a message costs in memory besides its own data: dicts, ids and spans, as measured."""
RECENT_MESSAGES: Final = 16
"""Ended messages that stay in memory though the store has them: what a producer that comes back goes on with."""

_SPAN: Final = struct.Struct(">QQ")


class Item:
    """A message as it stood at one moment, as `GET /messages` lists it: it stays so while the session is folded on."""

    __slots__ = ("facts", "message_id", "text")

    def __init__(self, message_id: str, facts: JSONObject) -> None:
        self.message_id = message_id
        self.facts = facts
        self.text: bytes | None = None
        """The same as JSON, once that was asked for: see `Folded.text`."""


class Span:
    """Where in the log a message lies: it began with the record at `begun`, and nothing changed it from `end` on."""

    __slots__ = ("begun", "end")

    def __init__(self, begun: int, end: int) -> None:
        self.begun = begun
        self.end = end

    @property
    def ends(self) -> tuple[int, int]:
        """Both, as they are now."""
        return self.begun, self.end


class Due:
    """What a snapshot is to carry, not yet encoded: it stays as it is while the session is folded on.

    `size_bytes` is about what it will come to. `encode` may run in another thread; the rest belongs to the event loop.
    """

    def __init__(
        self, folded: Folded, path: str, states: list[tuple[int, str, tuple[int, int], JSONObject]], size_bytes: int
    ) -> None:
        self.folded = folded
        self.size_bytes = size_bytes
        self._path = path
        self._position = folded.position
        self._states = states
        self._messages: list[tuple[int, str, bytes]] = []

    @property
    def message_ids(self) -> list[str]:
        """The messages in it."""
        return [message_id for _, message_id, _, _ in self._states]

    def encode(self) -> None:
        """Take the time that it takes; other threads get a turn after each message."""
        for ordinal, message_id, span, state in self._states:
            self._messages.append((ordinal, message_id, _SPAN.pack(*span) + encode(state)))

    def snapshot(self) -> Snapshot:
        """When it is encoded."""
        return Snapshot(self._path, self.folded.incarnation, self._position, self._messages)


class Folded:
    """A session: everything below `position` of `incarnation` is folded.

    `changed` are the messages that the last snapshot, at `saved_position`, does not have as they are now.
    `size_bytes` is about what it holds in memory: the stored form of each message where that is known, plus the records
    folded into it since, plus the texts that are kept. So it is high for an answer of many small chunks, until its next
    snapshot.

    It need not hold the messages that have ended and are stored: `trim` lets them go, `recall` takes them back.
    """

    def __init__(self, incarnation: int) -> None:
        self.incarnation = incarnation
        self.position = 0
        self.fold = SessionFold()
        self.changed: set[str] = set()
        self.saved_position = 0
        self.size_bytes = 0
        self._saved_bytes = 0
        self._spans: dict[str, Span] = {}  # by message id, in the order of the messages
        self._bytes: dict[str, int] = {}
        self._items: dict[str, Item] = {}  # of messages that have ended, since somebody asked for them

    # -- folding -----------------------------------------------------------------------------------------------------

    def add(self, records: Sequence[bytes]) -> None:
        """Fold the next records. Raises Forgotten before one that needs what was let go: `recall` it, and go on."""
        for record in records:
            message_id = self.fold.add(record)
            self.position += 1
            if message_id is not None:
                self._note(message_id, len(record))

    def _note(self, message_id: str, record_bytes: int) -> None:
        self.changed.add(message_id)
        self._outdate(message_id)
        span = self._spans.get(message_id)
        if span is None:
            self._spans[message_id] = Span(self.position - 1, self.position)
            self._measure(message_id, MESSAGE_BYTES + record_bytes)
        else:
            span.end = self.position
            self._measure(message_id, self._bytes[message_id] + record_bytes)

    def _measure(self, message_id: str, size_bytes: int) -> None:
        self.size_bytes += size_bytes - self._bytes.get(message_id, 0)
        self._bytes[message_id] = size_bytes

    # -- telling -----------------------------------------------------------------------------------------------------

    def items(self) -> list[Item]:
        """All messages in their order, as they are now. Raises Forgotten unless all are here."""
        return [self._item(message_id) for message_id in self.fold.message_ids()]

    def _item(self, message_id: str) -> Item:
        item = self._items.get(message_id)
        if item is None:
            item = Item(message_id, self.fold.item(message_id) or {})
            if not self.fold.is_open(message_id):
                self._items[message_id] = item
        return item

    def text(self, item: Item) -> bytes:
        """One of `items` as JSON: encoded once, for all who ask until something changes the message."""
        if item.text is None:
            item.text = encode(item.facts)
            if self._items.get(item.message_id) is item:
                self.size_bytes += len(item.text)
        return item.text

    def _outdate(self, message_id: str) -> None:
        item = self._items.pop(message_id, None)
        if item is not None and item.text is not None:
            self.size_bytes -= len(item.text)

    # -- going back --------------------------------------------------------------------------------------------------

    def earlier(self, position: int) -> Folded:
        """A session of its own that stands at `position` or below it, to be folded on from there.

        It has the messages before the first that began before `position` and changed after it, so what is left to fold
        is at most from where that one began. What was folded and comes again changes nothing. Raises Forgotten unless
        all messages are here.
        """
        ordinal, begin = 0, position
        for span in self._spans.values():
            if span.begun >= position or span.end > position:
                begin = min(span.begun, position)
                break
            ordinal += 1
        earlier = Folded(self.incarnation)
        earlier.fold, earlier.position = self.fold.until(ordinal), begin
        return earlier

    # -- storing -----------------------------------------------------------------------------------------------------

    @property
    def is_due(self) -> bool:
        """Whether the next checkpoint should carry a snapshot."""
        behind = self.position - self.saved_position
        if not self.changed:
            return behind >= IDLE_RECORDS
        return behind >= SNAPSHOT_RECORDS + self._saved_bytes // SNAPSHOT_BYTES_PER_RECORD or not self.fold.is_running

    def due(self, path: str) -> Due:
        """What the next snapshot is to carry; from here on nothing of it has changed."""
        fold, changed = self.fold, sorted(self.changed, key=self.fold.ordinal)
        self.changed = set()
        states = [(fold.ordinal(known), known, self._spans[known].ends, fold.state(known)) for known in changed]
        self.saved_position = self.position
        return Due(self, path, states, sum(self._bytes[known] for known in changed))

    def saved(self, snapshot: Snapshot) -> None:
        """A checkpoint has it in hand: it is known now how large the messages are."""
        self._saved_bytes = sum(len(stored) for _, _, stored in snapshot.messages)
        for _, message_id, stored in snapshot.messages:
            if message_id not in self.changed:
                self._measure(message_id, MESSAGE_BYTES + len(stored))

    def unsaved(self, message_ids: Iterable[str]) -> None:
        """No checkpoint has it: it is to be stored again."""
        self.changed.update(message_ids)

    # -- holding less than all ---------------------------------------------------------------------------------------

    @property
    def is_trimmed(self) -> bool:
        """Whether it lacks messages that the store has."""
        return self.fold.forgotten > 0

    def trim(self, stored_position: int) -> None:
        """Let go of what has ended and is in the durable snapshot at `stored_position`, but for the newest.

        In steps of as many as stay, for each costs as much as they do.
        """
        if len(self._spans) < 2 * RECENT_MESSAGES or stored_position > self.position:
            return
        for message_id in [*self._spans][:-RECENT_MESSAGES]:
            is_stored = self._spans[message_id].end <= stored_position and message_id not in self.changed
            if is_stored and not self.fold.is_open(message_id):
                self.fold.forget(message_id)
                self._outdate(message_id)
                self._measure(message_id, 0)
                del self._spans[message_id], self._bytes[message_id]

    def recall(self, whole: Folded) -> None:
        """Take back what was let go from what was restored of the store, and is used up by this.

        Raises BadSessionState if it does not have all of it; this one must then not be used.
        """
        for message_id in self.fold.recall(whole.fold):
            self._spans[message_id] = whole._spans[message_id]
            self._measure(message_id, whole._bytes[message_id])
        self._spans = {known: self._spans[known] for known in sorted(self._spans, key=self.fold.ordinal)}

    @classmethod
    def restored(cls, snapshot: Snapshot) -> Folded:
        """The session whose whole snapshot this is. Raises BadSessionState if this is none, or another version's."""
        folded = cls(snapshot.incarnation)
        for ordinal, message_id, stored in snapshot.messages:
            if len(stored) < _SPAN.size:
                raise BadSessionState(f"message {message_id!r}: {len(stored)} bytes")
            folded.fold.load(ordinal, message_id, stored[_SPAN.size :])
            folded._spans[message_id] = Span(*_SPAN.unpack_from(stored))
            folded._measure(message_id, MESSAGE_BYTES + len(stored))
        folded.position = folded.saved_position = snapshot.position
        folded._saved_bytes = sum(len(stored) for _, _, stored in snapshot.messages)
        return folded
