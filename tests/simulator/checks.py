"""What must hold at the end of a schedule: one check for each invariant, by its number.

The judge is `Replay`: the raw log read by other code than the nodes', the rule for late copies included. What can be
seen while it happens is checked there: KI5, KI9 and KI12 by `History`, KI7 by the clients, KI15 where somebody trims.

Where a log has lost records, every promise about those is void, and the past that they were of explains what nodes
made of them and readers saw. Everything else holds as ever, and in the end all nodes have what is left.

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
from collections.abc import Iterator, Sequence
from itertools import product

from broker.core.state import Stream, stream_key
from broker.journal.cluster_record import decode
from broker.journal.shared_log import LogRecord
from tests.simulator.disk import Disk
from tests.simulator.history import History, Life, Write
from tests.simulator.replay import Replay, Whole, together

TAG = re.compile(rb"~[\w.]+~")
_OVER = 1 << 63
Branches = Sequence[Sequence[LogRecord]]
"""All of a log, as it was before each time that it lost records; the last one is what is left."""


class Judged:
    """What the logs make, and what they made that has been lost since: `pasts`, empty where nothing was."""

    def __init__(self, history: History, logs: Sequence[Branches]) -> None:
        self.replays = [[Replay(history, number, log) for log in branches] for number, branches in enumerate(logs)]
        """Of each partition, one for each of its branches."""
        *self.pasts, self.whole = map(together, product(*self.replays))
        self.revived = {tag for branches in logs for tag in _revived(branches)}
        """Tags of records that came again behind a loss: what had made them void, or refused them, was lost too."""

    @property
    def wholes(self) -> list[Whole]:
        return [*self.pasts, self.whole]

    def shown(self, history: History) -> dict[Life, dict[int, bytes]]:
        """What nodes made visible, but for what is of a past and has been lost."""
        if not self.pasts:
            return history.shown
        shown: dict[Life, dict[int, bytes]] = {life: {} for life in history.shown}
        for life, position, record in _all_shown(history):
            if self.whole.own(life, position) == record:
                shown[life][position] = record
            elif not any(past.own(life, position) == record for past in self.pasts):
                shown[life].setdefault(position, record)
        return shown

    def was(self, write: Write, incarnation: int, next_position: int) -> bool:
        """Whether a write was where its client was told, and is there no more: every promise about it is void."""
        life, tag = (write.path, incarnation), write.tag.encode()
        is_there = tag in (self.whole.own(life, next_position - 1) or b"")
        return not is_there and any(tag in (past.own(life, next_position - 1) or b"") for past in self.pasts)


def _all_shown(history: History) -> Iterator[tuple[Life, int, bytes]]:
    for life, shown in history.shown.items():
        for position, record in shown.items():
            yield life, position, record
    for _, life, position, record in history.shown_otherwise:
        yield life, position, record


def _revived(branches: Branches) -> Iterator[str]:
    """Tags in records of what is left that were void in a past, or refused in it, and have come once more.

    Of a lost record, nobody remembers that it was there: a late copy of one before it counts.
    """
    *pasts, left = branches
    for past in pasts:
        lost = [record for record in past if left[record.position : record.position + 1] != [record]]
        numbers: dict[int, int] = {}
        for envelope in (decode(record.data) for record in lost):
            if envelope is not None:
                numbers[envelope.boot] = max(envelope.number, numbers.get(envelope.boot, 0))
                numbers |= {envelope.retired: _OVER}
        for record in left[lost[0].position :] if lost else ():
            envelope = decode(record.data)
            if envelope is not None and envelope.number <= numbers.get(envelope.boot, -1):
                yield from (tag.decode() for tag in TAG.findall(record.data))


def check(history: History, logs: Sequence[Branches], disks: list[tuple[str, int, Disk]]) -> None:
    """Hold everything that happened against the logs, by number. `disks` are (node, partition, disk)."""
    judged = Judged(history, logs)
    for replays in judged.replays:
        _replicas(history, replays, [(name, disk) for name, number, disk in disks if number == replays[0].number])
    _stores(history, judged)
    shown = judged.shown(history)
    places = _places(shown)
    for write in history.writes.values():
        _write(history, judged, write, places.get(write.tag.encode(), []), shown)
    _unread(history, judged)
    _lost_lives(history, judged)
    for whole in judged.wholes:
        _order(history, whole)
    _visible_order(history, shown)
    _groups(history, judged)
    _claims(history, judged)
    _ends(history, judged)
    _reads(history, judged)
    _visible(history, judged, shown)
    _forks(history, judged)


def _replicas(history: History, replays: list[Replay], disks: list[tuple[str, Disk]]) -> None:
    """KI12."""
    number, replay = replays[0].number, replays[-1]
    outcomes = [*history.outcomes.items(), *((at, told) for _, at, told in history.outcomes_otherwise)]
    for (partition, index), told in outcomes:
        if partition == number and all(each.outcomes.get(index) != told for each in replays):
            history.violated("KI12", f"nodes made {told} of entry {index}, the replay {replay.outcomes.get(index)}")
            break
    chains = [*history.chains.items(), *((at, chain) for _, at, chain in history.chains_otherwise)]
    for (partition, position), chain in chains:
        if partition == number and all(each.chains.get(position) != chain for each in replays):
            history.violated("KI12", f"a node has a chain before position {position} that no replay has")
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


def _stores(history: History, judged: Judged) -> None:
    """KI13."""
    held = {crash for replays in judged.replays for replay in replays for crash in replay.stores_held}
    for crash, (name, (_, index), _) in enumerate(history.crashes):
        if crash not in held:
            history.violated("KI13", f"the store of {name} is not what entries 1 to {index} make")


def _places(visible: dict[Life, dict[int, bytes]]) -> dict[bytes, list[tuple[Life, int]]]:
    """Where each tag was ever visible."""
    places: dict[bytes, list[tuple[Life, int]]] = defaultdict(list)
    for life, shown in visible.items():
        for position, record in shown.items():
            for tag in set(TAG.findall(record)):
                places[tag].append((life, position))
    return places


def _write(
    history: History,
    judged: Judged,
    write: Write,
    places: list[tuple[Life, int]],
    shown: dict[Life, dict[int, bytes]],
) -> None:
    """KI1, KI2, KI3."""
    may_count = write.sent if write.tag in judged.revived else write.open
    if places and not may_count:
        history.violated("KI3", f"{write.tag}, refused {write.denied} times, is at {places}")
    copies = len(places)
    if write.producer is not None:
        by_life: dict[Life, int] = defaultdict(int)
        for life, _ in places:
            by_life[life] += 1
        copies = max(by_life.values(), default=0)
        if copies > 1:
            history.violated("KI2", f"{write.tag} is {copies} times in one stream: {places}")
    elif may_count and copies > may_count:
        history.violated("KI2", f"{write.tag}, sent {write.sent} times, is at {places}")
    for incarnation, next_position in write.acked:
        record = shown.get((write.path, incarnation), {}).get(next_position - 1, b"")
        if write.tag.encode() not in record and not judged.was(write, incarnation, next_position):
            history.violated(
                "KI1", f"{write.tag} was acknowledged at {next_position} of {incarnation}; there is {record!r}"
            )


def _unread(history: History, judged: Judged) -> None:
    """KI7."""
    for write, incarnation, next_position in history.unread:
        if not judged.was(write, incarnation, next_position):
            history.violated("KI7", f"{write.tag} was acknowledged at {next_position} and then could not be read")


def _lost_lives(history: History, judged: Judged) -> None:
    """KI1 of whole lives: what was acknowledged is gone only if somebody may have ended it."""
    for write in history.writes.values():
        for incarnation, next_position in write.acked:
            row = judged.whole.rows.get(stream_key(write.path))
            if isinstance(row, Stream) and row.incarnation == incarnation:
                continue
            if judged.was(write, incarnation, next_position):
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


def _visible_order(history: History, visible: dict[Life, dict[int, bytes]]) -> None:
    """KI4, of what was shown."""
    for (life, producer_id), seqs in _visible_seqs(history, visible).items():
        if seqs != sorted(seqs):
            history.violated("KI4", f"seqs of {producer_id} are visible as {seqs} in {life}")


def _visible_seqs(
    history: History, visible: dict[Life, dict[int, bytes]]
) -> dict[tuple[Life, str], list[tuple[int, int]]]:
    """(epoch, seq) of each producer and generation, as they lie in a stream."""
    seqs: dict[tuple[Life, str], list[tuple[int, int]]] = defaultdict(list)
    for life, shown in visible.items():
        for position in sorted(shown):
            for tag in TAG.findall(shown[position]):
                write = history.writes.get(tag.decode())
                if write is not None and write.producer is not None:
                    seqs[life, write.producer[0]].append(write.producer[1:])
    return seqs


def _groups(history: History, judged: Judged) -> None:
    """KI4 of clients that wait for each answer."""
    last: dict[tuple[str, int], int] = {}
    for write in history.writes.values():
        for incarnation, next_position in write.acked if write.group and write.tag not in judged.revived else ():
            if judged.was(write, incarnation, next_position):
                continue
            if last.get((write.group, incarnation), 0) >= next_position:
                history.violated("KI4", f"{write.tag} is before what its client wrote before it")
            last[write.group, incarnation] = next_position


def _claims(history: History, judged: Judged) -> None:
    """KI8 of workers: nobody else is told that the same wake is his."""
    holders: dict[tuple[str, int, int], str] = {}
    is_left = {claim for replays in judged.replays for claim in replays[-1].claims}
    is_lost = {claim for replays in judged.replays for replay in replays[:-1] for claim in replay.claims} - is_left
    for claim in history.claims:
        if claim in is_lost:
            continue
        if holders.setdefault(claim[:3], claim.worker) != claim.worker:
            history.violated("KI8", f"{claim.worker} was told what {holders[claim[:3]]} had been told: {claim}")


def _ends(history: History, judged: Judged) -> None:
    """KI9 of readers, where not all were told the same."""
    for node, life, position in history.ended_otherwise:
        for told in (position, history.ends[life]):
            if not any(replay.closed.get(life) == told for replays in judged.replays for replay in replays):
                history.violated("KI9", f"{node} ends {life} at {position}, another at {history.ends[life]}")


def _reads(history: History, judged: Judged) -> None:
    """KI5, KI6: whatever any node ever answered is what the life holds in the end, or what it has lost."""
    lives = {read.life for read in history.reads} | {life for _, life in history.tails}
    held = {life: [whole.records(life) for whole in judged.wholes] for life in lives}
    for read in history.reads:
        end = read.start + len(read.records)
        if all(records[read.start : end] != read.records for records in held[read.life]):
            history.violated("KI5", f"{read.node} answered {read.records} at {read.start} of {read.life}")
    for (reader, life), seen in history.tails.items():
        if not _is_followed(seen, held[life]):
            history.violated("KI6", f"{reader} followed {life} and saw {seen}")


def _is_followed(seen: list[bytes], branches: list[list[bytes]]) -> bool:
    """Whether a reader saw all of it, once. One that goes on behind a loss sees what has come there since."""
    return all(any(records[at : at + 1] == [record] for records in branches) for at, record in enumerate(seen))


def _visible(history: History, judged: Judged, visible: dict[Life, dict[int, bytes]]) -> None:
    """KI16."""
    whole = judged.whole
    for life, shown in visible.items():
        content, begin = whole.content.get(life, []), whole.begins.get(life, 0)
        if [shown[position] for position in sorted(shown)] != content or (shown and min(shown) != begin):
            history.violated("KI16", f"what was visible of {life} is not what the log has of it")


def _forks(history: History, judged: Judged) -> None:
    """KI14."""
    for child, source, position in history.forks:
        begins = [(whole.records(child)[:position], whole.records(source)[:position]) for whole in judged.wholes]
        if not any(inherited == prefix and len(prefix) == position for inherited, prefix in begins):
            inherited, prefix = begins[-1]
            history.violated("KI14", f"{child} begins with {inherited}, its source {source} with {prefix}")
