"""What must hold at the end of a schedule: one check for each invariant, by its number.

The judge is `Replay`: the raw log read by other code than the nodes', the rule for late copies included. What can be
seen while it happens is checked there: KI5, KI9 and KI12 by `History`, KI7 by the clients, KI15 where somebody trims.

    KI1   an acknowledged write is where it was said to be         KI9   nothing comes behind a close
    KI2   no write is there more often than it was sent            KI10  lives do not mix, and none comes twice
    KI3   what was definitely refused is nowhere                   KI11  only the log's time makes a stream expire
    KI4   seqs are in order, without a gap                         KI12  all replicas, and the replay, are equal
    KI5   reads agree, at every position, for ever                 KI13  a store is all before its index, nothing more
    KI6   who follows a stream sees all of it, once                KI14  a fork begins with its source's prefix
    KI7   what was acknowledged can be read, everywhere            KI15  a snapshot and the tail are the whole
    KI8   nothing of an old epoch is accepted after a new one      KI16  what has once been visible stays
    KI17  after the last fault everything goes again
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import NamedTuple

import msgspec

from broker.core.apply import apply, keys
from broker.core.entry import ANY, AckOptions, Entry, Kind, decode as decode_entry
from broker.core.outcome import Outcome
from broker.core.page import records
from broker.core.state import Changes, Key, Row, Stream, Subscription, stream_key, subscription_key
from broker.journal.cluster_record import decode
from tests.simulator.disk import Disk
from tests.simulator.dump import Dump, dump
from tests.simulator.history import Applied, History, Life, Write, applied
from tests.simulator.log import Truth

TAG = re.compile(rb"~[^~]+~")


class Accepted(NamedTuple):
    """An entry that added records."""

    entry: Entry
    life: Life
    start: int
    records: list[bytes]


class Replay:
    """The state that the raw log of a partition makes, entry by entry."""

    def __init__(self, history: History, number: int, truth: Truth) -> None:
        self.number = number
        self.rows: dict[Key, Row | None] = {}
        self.content: dict[Life, list[bytes]] = {}
        self.begins: dict[Life, int] = {}
        self.accepted: list[Accepted] = []
        self.outcomes: dict[int, Applied] = {}
        self.ended: dict[Life, int] = {}  # and the index of the entry that ended it
        self.lineages: dict[Life, tuple[tuple[str, int, int], ...]] = {}  # of forks
        self.index = 0
        self._history = history
        self._closed: set[Life] = set()
        self._seen: dict[int, int] = {}
        self._time_ms = 0
        self._crashes: dict[int, list[tuple[str, Dump]]] = defaultdict(list)
        for name, (partition, index), left in history.crashes:
            if partition == number:
                self._crashes[index].append((name, left))
        self._hold_crashes()
        for record in truth.records:
            self._time_ms = max(self._time_ms, record.time_ms)
            self._take(record.data)

    def _take(self, data: bytes) -> None:
        envelope = decode(data)
        if envelope is None or envelope.number <= self._seen.get(envelope.boot, -1):
            return
        self._seen[envelope.boot] = envelope.number
        if envelope.retired:
            self._seen[envelope.retired] = 1 << 63
        for encoded in envelope.entries:
            self._apply(decode_entry(encoded))
        if envelope.entries:
            self._hold_crashes()

    def _apply(self, entry: Entry) -> None:
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
            if life in self._closed:
                history.violated("KI9", f"{told} was added to {life}, which is closed")
            if before is not None and overdue and incarnation == before.incarnation:
                history.violated("KI11", f"{told} was added to {life}, whose time was over")
        if entry.kind == Kind.EXPIRE and changes.ended and not overdue:
            history.violated("KI11", f"{told} ended a stream whose time was not over")
        if outcome.changed and outcome.stream is not None and outcome.stream.closed:
            self._closed.add((entry.path, outcome.stream.incarnation))

    def _look_at_wake(self, entry: Entry, outcome: Outcome) -> None:
        """KI8 of subscriptions: a wake is one worker's, who has it no more cannot end it, and no cursor goes back."""
        before, after = self.rows.get(subscription_key(entry.path)), outcome.subscription
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
        for name, left in self._crashes.pop(self.index, ()):
            if left != self.dump():
                self._history.violated("KI13", f"the store of {name} is not what entries 1 to {self.index} make")

    def dump(self) -> Dump:
        """The logical state: rows of lives that go on, and their streams' own records."""
        rows = {key: row for key, row in self.rows.items() if row is not None}
        return dump(rows, {life[1]: b",".join(found) for life, found in self.content.items()})


class Whole(NamedTuple):
    """What the logs of all partitions make together: a path is in one of them."""

    rows: dict[Key, Row | None]
    content: dict[Life, list[bytes]]
    begins: dict[Life, int]
    accepted: list[Accepted]
    lineages: dict[Life, tuple[tuple[str, int, int], ...]]


def check(history: History, truths: list[Truth], disks: list[tuple[str, int, Disk]]) -> None:
    """Hold everything that happened against the logs, by number. `disks` are (node, partition, disk)."""
    replays = [Replay(history, number, truth) for number, truth in enumerate(truths)]
    for replay in replays:
        _replicas(history, replay, [(name, disk) for name, number, disk in disks if number == replay.number])
    places = _places(history)
    for write in history.writes.values():
        _write(history, write, places.get(write.tag.encode(), []))
    whole = _together(replays)
    _lost_lives(history, whole)
    _order(history, whole)
    _groups(history)
    _claims(history)
    _reads(history, whole)
    _forks(history, whole)


def _together(replays: list[Replay]) -> Whole:
    whole = Whole({}, {}, {}, [], {})
    for replay in replays:
        whole.rows.update(replay.rows)
        whole.content.update(replay.content)
        whole.begins.update(replay.begins)
        whole.accepted.extend(replay.accepted)
        whole.lineages.update(replay.lineages)
    return whole


def _replicas(history: History, replay: Replay, disks: list[tuple[str, Disk]]) -> None:
    """KI12, KI13."""
    for (partition, index), told in history.outcomes.items():
        if partition == replay.number and replay.outcomes.get(index) != told:
            history.violated("KI12", f"nodes made {told} of entry {index}, the replay {replay.outcomes.get(index)}")
            break
    expected = replay.dump()
    for name, disk in disks:
        index, _ = disk.head()
        found = disk.dump()
        if index != replay.index:
            history.violated("KI12", f"{name} ends at entry {index}, the replay at {replay.index}")
        elif found != expected:
            different = {key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key)}
            history.violated("KI12", f"in the end {name} differs from the replay in {sorted(different)[:5]}")


def _places(history: History) -> dict[bytes, list[tuple[Life, int]]]:
    """Where each tag was ever visible."""
    places: dict[bytes, list[tuple[Life, int]]] = defaultdict(list)
    for life, shown in history.shown.items():
        for position, record in shown.items():
            for tag in set(TAG.findall(record)):
                places[tag].append((life, position))
    return places


def _write(history: History, write: Write, places: list[tuple[Life, int]]) -> None:
    """KI1, KI2, KI3."""
    if places and not write.open:
        history.violated("KI3", f"{write.tag}, refused {write.denied} times, is at {places}")
    copies = len(places)
    if write.producer is not None:
        by_life: dict[Life, int] = defaultdict(int)
        for life, _ in places:
            by_life[life] += 1
        copies = max(by_life.values(), default=0)
        if copies > 1:
            history.violated("KI2", f"{write.tag} is {copies} times in one stream: {places}")
    elif write.open and copies > write.open:
        history.violated("KI2", f"{write.tag}, sent {write.sent} times, is at {places}")
    for incarnation, next_position in write.acked:
        record = history.shown.get((write.path, incarnation), {}).get(next_position - 1, b"")
        if write.tag.encode() not in record:
            history.violated(
                "KI1", f"{write.tag} was acknowledged at {next_position} of {incarnation}; there is {record!r}"
            )


def _lost_lives(history: History, whole: Whole) -> None:
    """KI1 of whole lives: what was acknowledged is gone only if somebody may have ended it."""
    for write in history.writes.values():
        for incarnation, _ in write.acked:
            row = whole.rows.get(stream_key(write.path))
            if isinstance(row, Stream) and row.incarnation == incarnation:
                continue
            asked = any(ending.path == write.path and not ending.denied for ending in history.endings)
            if not asked and write.path not in history.mortal:
                history.violated("KI1", f"{write.tag} was acknowledged, and its stream is gone though nobody ended it")


def _order(history: History, whole: Whole) -> None:
    """KI4 and KI8, of raw producers."""
    newest: dict[tuple[Life, str], tuple[int, int]] = {}
    for accepted in whole.accepted:
        entry = accepted.entry
        if not entry.producer_id:
            continue
        key = (accepted.life, entry.producer_id)
        epoch, seq = newest.get(key, (entry.epoch, -1))
        if entry.epoch < epoch:
            history.violated("KI8", f"{entry.producer_id} was accepted at epoch {entry.epoch} behind {epoch}")
        if entry.seq != (seq + 1 if entry.epoch == epoch else 0):
            history.violated("KI4", f"{entry.producer_id} has seq {entry.seq} behind {seq} in {accepted.life}")
        newest[key] = entry.epoch, entry.seq
    for (life, producer_id), seqs in _visible_seqs(history).items():
        if seqs != sorted(seqs):
            history.violated("KI4", f"seqs of {producer_id} are visible as {seqs} in {life}")


def _visible_seqs(history: History) -> dict[tuple[Life, str], list[tuple[int, int]]]:
    """(epoch, seq) of each producer and generation, as they lie in a stream."""
    seqs: dict[tuple[Life, str], list[tuple[int, int]]] = defaultdict(list)
    for life, shown in history.shown.items():
        for position in sorted(shown):
            for tag in TAG.findall(shown[position]):
                write = history.writes.get(tag.decode())
                if write is not None and write.producer is not None:
                    seqs[life, write.producer[0]].append(write.producer[1:])
    return seqs


def _groups(history: History) -> None:
    """KI4 of clients that wait for each answer."""
    last: dict[tuple[str, int], int] = {}
    for write in history.writes.values():
        for incarnation, next_position in write.acked if write.group else ():
            if last.get((write.group, incarnation), 0) >= next_position:
                history.violated("KI4", f"{write.tag} is before what its client wrote before it")
            last[write.group, incarnation] = next_position


def _claims(history: History) -> None:
    """KI8 of workers: nobody else is told that the same wake is his."""
    holders: dict[tuple[str, int, int], str] = {}
    for claim in history.claims:
        if holders.setdefault(claim[:3], claim.worker) != claim.worker:
            history.violated("KI8", f"{claim.worker} was told what {holders[claim[:3]]} had been told: {claim}")


def _reads(history: History, whole: Whole) -> None:
    """KI5, KI6, KI16: whatever any node ever answered is what the life holds in the end."""
    held = {life: _records(whole, life) for life in {read.life for read in history.reads}}
    for read in history.reads:
        if held[read.life][read.start : read.start + len(read.records)] != read.records:
            history.violated("KI5", f"{read.node} answered {read.records} at {read.start} of {read.life}")
    for (reader, life), seen in history.tails.items():
        if seen and _records(whole, life)[: len(seen)] != seen:
            history.violated("KI6", f"{reader} followed {life} and saw {seen}")
    for life, shown in history.shown.items():
        content, begin = whole.content.get(life, []), whole.begins.get(life, 0)
        if [shown[position] for position in sorted(shown)] != content or (shown and min(shown) != begin):
            history.violated("KI16", f"what was visible of {life} is not what the log has of it")


def _records(whole: Whole, life: Life) -> list[bytes]:
    """All records of a life, those that a fork inherits included."""
    inherited: list[bytes] = []
    for path, incarnation, end in whole.lineages.get(life, ()):
        part = (path, incarnation)
        begin = whole.begins.get(part, len(inherited))
        inherited += whole.content.get(part, [])[: max(0, end - begin)]
    return inherited + whole.content.get(life, [])


def _forks(history: History, whole: Whole) -> None:
    """KI14."""
    for child, source, position in history.forks:
        inherited, prefix = _records(whole, child)[:position], _records(whole, source)[:position]
        if inherited != prefix or len(prefix) != position:
            history.violated("KI14", f"{child} begins with {inherited}, its source {source} with {prefix}")
