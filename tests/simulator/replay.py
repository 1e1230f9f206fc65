"""The judge of a schedule: a partition's raw log read by other code than the nodes', rule for late copies included."""

from __future__ import annotations

import hashlib
import struct
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from broker.core.apply import apply, keys
from broker.core.entry import ANY, AckOptions, Entry, Kind, decode as decode_entry
from broker.core.outcome import Outcome
from broker.core.page import records
from broker.core.state import Changes, Key, Row, Stream, Subscription, stream_key, subscription_key
from broker.journal.cluster_record import decode
from broker.journal.shared_log import LogRecord
from tests.simulator.dump import Dump, dump
from tests.simulator.history import Applied, Claim, History, Life, applied


class Accepted(NamedTuple):
    """An entry that added records."""

    entry: Entry
    life: Life
    start: int
    records: list[bytes]


class Replay:
    """The state that the raw log of partition `number` makes, entry by entry."""

    def __init__(self, history: History, number: int, log: Sequence[LogRecord]) -> None:
        self.number = number
        self.rows: dict[Key, Row | None] = {}
        self.content: dict[Life, list[bytes]] = {}
        self.begins: dict[Life, int] = {}
        self.accepted: list[Accepted] = []
        self.outcomes: dict[int, Applied] = {}
        self.ended: dict[Life, int] = {}  # and the index of the entry that ended it
        self.lineages: dict[Life, tuple[tuple[str, int, int], ...]] = {}  # of forks
        self.closed: dict[Life, int] = {}  # and where it ends
        self.claims: set[Claim] = set()
        self.chains: dict[int, bytes] = {}  # by position: of hashes, over all outcomes before it
        self.stores_held: set[int] = set()  # which of the history's crashes left what this log makes
        self.log = log
        self.index = 0
        self._history = history
        self._seen: dict[int, int] = {}
        self._time_ms = 0
        self._chain = b""
        self._crashes: dict[int, list[tuple[int, Dump]]] = defaultdict(list)
        for crash, (_, (partition, index), left) in enumerate(history.crashes):
            if partition == number:
                self._crashes[index].append((crash, left))
        self._hold_crashes()
        for record in log:
            self._time_ms = max(self._time_ms, record.time_ms)
            self._take(record)
            self.chains[record.position + 1] = self._chain

    def _take(self, record: LogRecord) -> None:
        envelope = decode(record.data)
        if envelope is None or envelope.number <= self._seen.get(envelope.boot, -1):
            return
        self._seen[envelope.boot] = envelope.number
        if envelope.retired:
            self._seen[envelope.retired] = 1 << 63
        if envelope.entries:
            self._link(record.position, [self._apply(decode_entry(encoded)) for encoded in envelope.entries])
            self._hold_crashes()

    def _link(self, position: int, outcomes: list[Outcome]) -> None:
        link = hashlib.blake2b(self._chain, digest_size=16)
        link.update(struct.pack("<QQ", position, self._time_ms))
        for it in outcomes:
            link.update(msgspec.msgpack.encode((it.result, it.code, it.next_position, it.epoch, it.seq)))
        self._chain = link.digest()

    def _apply(self, entry: Entry) -> Outcome:
        self.index += 1
        before = self.rows.get(stream_key(entry.path))
        outcome, changes = apply({key: self.rows.get(key) for key in keys(entry)}, entry, self.index, self._time_ms)
        self.outcomes[self.index] = applied(entry.kind, entry.path, (entry.boot, entry.proposal), outcome)
        if outcome.subscription is not None:
            self._look_at_wake(entry, outcome)
        self._look(entry, before if isinstance(before, Stream) else None, outcome, changes)
        self.rows.update(changes.puts)
        row = self.rows.get(stream_key(entry.path))
        if isinstance(row, Stream) and row.lineage:
            parts = tuple((segment.path, segment.incarnation, segment.end) for segment in row.lineage)
            self.lineages[entry.path, row.incarnation] = parts
        for path, incarnation, page in changes.appended:
            found = records(page)
            self.begins.setdefault((path, incarnation), page.start)
            self.content.setdefault((path, incarnation), []).extend(found)
            self.accepted.append(Accepted(entry, (path, incarnation), page.start, found))
        for life in changes.ended:
            self.ended[life] = self.index
        return outcome

    def _look(self, entry: Entry, before: Stream | None, outcome: Outcome, changes: Changes) -> None:
        history, told = self._history, f"entry {self.index} ({Kind(entry.kind).name} {entry.path})"
        deadline_ms = before.deadline_ms if before is not None else None
        overdue = deadline_ms is not None and deadline_ms <= self._time_ms
        for path, incarnation, _ in changes.appended:
            life = (path, incarnation)
            if life in self.ended:
                history.violated("KI10", f"{told} was added to {life}, which is over")
            if entry.kind in (Kind.APPEND, Kind.CLOSE) and entry.incarnation not in (ANY, incarnation):
                history.violated("KI10", f"{told} is for the life {entry.incarnation}, and went to {life}")
            if life in self.closed:
                history.violated("KI9", f"{told} was added to {life}, which is closed")
            if before is not None and overdue and incarnation == before.incarnation:
                history.violated("KI11", f"{told} was added to {life}, whose time was over")
        if entry.kind == Kind.EXPIRE and changes.ended and not overdue:
            history.violated("KI11", f"{told} ended a stream whose time was not over")
        if outcome.changed and outcome.stream is not None and outcome.stream.closed:
            self.closed[entry.path, outcome.stream.incarnation] = outcome.stream.tail

    def _look_at_wake(self, entry: Entry, outcome: Outcome) -> None:
        """KI8 of subscriptions: a wake is one worker's, who has it no more cannot end it, and no cursor goes back."""
        before, after = self.rows.get(subscription_key(entry.path)), outcome.subscription
        if entry.kind == Kind.SUBSCRIPTION_CLAIM and after is not None and after.wake is not None:
            self.claims.add(Claim(after.subscription_id, after.birth, after.generation, after.wake.holder))
        if not isinstance(before, Subscription) or after is None or not outcome.changed:
            return
        told = f"entry {self.index} ({Kind(entry.kind).name} {entry.path})"
        wake = before.wake
        if entry.kind == Kind.SUBSCRIPTION_CLAIM and wake is not None and wake.holder:
            self._history.violated("KI8", f"{told} took a wake from {wake.holder}")
        if entry.kind == Kind.SUBSCRIPTION_ACK:
            options = msgspec.msgpack.decode(entry.options, type=AckOptions)
            if wake is None or (options.generation, options.wake_id) != (before.generation, wake.wake_id):
                self._history.violated("KI8", f"{told} is for generation {options.generation}, behind {before}")
        cursors = {(link.path, link.incarnation): link.acked for link in after.links}
        for link in before.links:
            if cursors.get((link.path, link.incarnation), link.acked) < link.acked:
                self._history.violated("KI8", f"{told} moves the cursor of {link.path} back from {link.acked}")

    def _hold_crashes(self) -> None:
        for crash, left in self._crashes.pop(self.index, ()):
            if left == self.dump():
                self.stores_held.add(crash)

    def dump(self) -> Dump:
        """The logical state: rows of lives that go on, and their streams' own records."""
        rows = {key: row for key, row in self.rows.items() if row is not None}
        return dump(rows, {life[1]: b",".join(found) for life, found in self.content.items()})


class Whole(NamedTuple):
    """What the logs of all partitions make together: a path is in one of them."""

    replays: list[Replay]

    rows: dict[Key, Row | None]
    content: dict[Life, list[bytes]]
    begins: dict[Life, int]
    accepted: list[Accepted]
    lineages: dict[Life, tuple[tuple[str, int, int], ...]]

    def own(self, life: Life, position: int) -> bytes | None:
        """The record at a position of a life that it does not inherit; None where there is none."""
        content, at = self.content.get(life, []), position - self.begins.get(life, 0)
        return content[at] if 0 <= at < len(content) else None

    def records(self, life: Life) -> list[bytes]:
        """All records of a life, those that a fork inherits included."""
        inherited: list[bytes] = []
        for path, incarnation, end in self.lineages.get(life, ()):
            part = (path, incarnation)
            begin = self.begins.get(part, len(inherited))
            inherited += self.content.get(part, [])[: max(0, end - begin)]
        return inherited + self.content.get(life, [])


def together(replays: Sequence[Replay]) -> Whole:
    """See `Whole`."""
    whole = Whole([*replays], {}, {}, {}, [], {})
    for replay in replays:
        whole.rows.update(replay.rows)
        whole.content.update(replay.content)
        whole.begins.update(replay.begins)
        whole.accepted.extend(replay.accepted)
        whole.lineages.update(replay.lineages)
    return whole
