"""Planted bugs: each breaks one rule of the broker, or of its operator, so that a check is seen to bite."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest.mock import patch

import msgspec

from broker import checkpoints, limits
from broker.core.apply import apply, keys
from broker.core.entry import ANY, Entry, Kind
from broker.core.outcome import Result
from broker.errors import Unavailable
from broker.journal.cluster import ClusterJournal
from broker.journal.cluster_opening import Opening
from broker.journal.cluster_record import decode_mark, encode_mark
from broker.journal.proposers import Proposers
from broker.partition import Partition, Waiter
from broker.snapshot.form import Facts, Name
from broker.snapshot.maker import Good, SnapshotMaker
from broker.snapshot.shelf import Shelf
from broker.store import Checkpoint, Head


def admits_late_copies() -> AbstractContextManager[Any]:
    """No rule for late copies: the aborted-write hole (a refusal is told, and a copy is accepted later)."""
    return patch.object(Proposers, "is_late", lambda *_: False)


@contextmanager
def acknowledges_before_apply() -> Iterator[None]:
    """An append is answered by what this node has applied so far, before the log has decided."""
    propose_for = Partition.propose_for

    def propose_early(self: Partition, waiter: Waiter, entry: Entry) -> None:
        propose_for(self, waiter, entry)
        held = self._rows.held
        if entry.kind == Kind.APPEND and not waiter.done() and all(key in held for key in keys(entry)):
            outcome, _ = apply(held, entry, self.applied_index + 1, self.now_ms())
            if outcome.result is not Result.REFUSED:
                waiter.set_result(outcome)

    with patch.object(Partition, "propose_for", propose_early):
        yield


@contextmanager
def takes_entries_of_another_life() -> Iterator[None]:
    """An append goes to whatever stream is at the path, not to the one that its proposer saw."""
    step = Partition._step  # noqa: SLF001 -- where it is planted

    def step_anywhere(self: Partition, entry: Entry, index: int, time_ms: int) -> Any:
        if entry.kind in (Kind.APPEND, Kind.CLOSE, Kind.DELETE):
            entry = msgspec.structs.replace(entry, incarnation=ANY)
        return step(self, entry, index, time_ms)

    with patch.object(Partition, "_step", step_anywhere):
        yield


def stores_the_head_ahead() -> AbstractContextManager[Any]:
    """A checkpoint that leaves out the newest pages, and says that it has them."""

    def short(head: Head, rows: Any, pages: Any, *others: Any) -> Checkpoint:
        return Checkpoint(head, rows, pages[:-1], *others)

    return patch.object(checkpoints, "Checkpoint", short)


@contextmanager
def lets_time_go_back() -> Iterator[None]:
    """A restart forgets what time the log has told in records without entries."""
    mark = ClusterJournal.mark

    def mark_without_time(self: ClusterJournal) -> bytes:
        return encode_mark(msgspec.structs.replace(decode_mark(mark(self)), time_ms=0))

    with patch.object(ClusterJournal, "mark", mark_without_time):
        yield


def believes_where_the_log_says_that_it_ends() -> AbstractContextManager[Any]:
    """A read is told that nothing is there once all is applied that the log is said to have."""

    async def catch_up(self: ClusterJournal) -> bool:
        try:
            async with asyncio.timeout(limits.CATCH_UP_S):
                await self._read_past(await self._log.end() - 1)
        except TimeoutError:
            raise Unavailable from None
        return True

    return patch.object(ClusterJournal, "catch_up", catch_up)


@contextmanager
def trims_behind_the_newest_only() -> Iterator[None]:
    """The log forgets what one snapshot alone has."""
    trim = SnapshotMaker._trim  # noqa: SLF001 -- where it is planted

    async def trim_all(self: SnapshotMaker, good: Good) -> None:
        await trim(self, [good[0]] * 2)

    with patch.object(SnapshotMaker, "_trim", trim_all):
        yield


@contextmanager
def trims_before_it_is_durable() -> Iterator[None]:
    """The log forgets what is about to be in a snapshot."""
    copied = SnapshotMaker._copied  # noqa: SLF001 -- where it is planted

    async def copied_and_trimmed(self: SnapshotMaker) -> Facts:
        facts = await copied(self)
        name = Name(facts.position, facts.log_uuid, 0)
        await self._trim([(name, facts), *self._shelf.good(facts.log_uuid, 1)])
        return facts

    with patch.object(SnapshotMaker, "_copied", copied_and_trimmed):
        yield


def counts_snapshots_unread() -> AbstractContextManager[Any]:
    """A snapshot that has rotted is as good as any."""

    def good(self: Shelf, log_uuid: bytes, count: int, but: Collection[Name] = ()) -> Good:
        names = [name for name in self.newest_first(log_uuid) if name not in but]
        return [(name, self.facts(name)) for name in names[:count]]

    return patch.object(Shelf, "good", good)


def begins_with_what_the_log_has_lost() -> AbstractContextManager[Any]:
    """A start takes a log that has grown again behind a loss for the one that its store was made from."""

    async def look_away(*_: object) -> None:
        pass

    return patch.object(Opening, "_look_at_newest", look_away)


def counts_snapshots_of_a_past() -> AbstractContextManager[Any]:
    """The log forgets what one usable snapshot has, and one of what the log has lost."""

    async def of_the_log(_: SnapshotMaker, good: Good) -> Good:
        return good

    return patch.object(SnapshotMaker, "_of_the_log", of_the_log)


PLANTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    plant.__name__: plant
    for plant in (
        admits_late_copies,
        acknowledges_before_apply,
        takes_entries_of_another_life,
        stores_the_head_ahead,
        lets_time_go_back,
        believes_where_the_log_says_that_it_ends,
        trims_behind_the_newest_only,
        trims_before_it_is_durable,
        counts_snapshots_unread,
        begins_with_what_the_log_has_lost,
        counts_snapshots_of_a_past,
    )
}
"""By name, for `--plant`."""
