"""A materializer over a partition that a test holds, and the folds that its answers have to equal."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import msgspec

from broker import limits
from broker.core.entry import Entry
from broker.core.page import Page, records
from broker.materializer import Materializer, Messages
from broker.partition import Partition
from broker.partitions import Partitioned
from broker.store import Snapshot
from consumer.plain import JSONObject, encode
from consumer.session import SessionFold
from tests.broker.core.entries import SESSION, chunks, create_session, finish, message, stop
from tests.broker.held import HeldJournal, HeldStore, opened
from tests.eventually import until

OTHER = "sessions/other"


@asynccontextmanager
async def following(
    store: HeldStore | None = None,
    sessions_max: int = 100,
    bytes_max: int = limits.LIVE_SESSION_BYTES_MAX,
    whole_s: float = limits.WHOLE_SESSION_S,
) -> AsyncIterator[tuple[Partition, Materializer]]:
    """A partition, and a materializer that answers but does not run."""
    async with opened(HeldJournal(), store) as partition:
        yield partition, Materializer(partition, sessions_max, bytes_max, whole_s)


@asynccontextmanager
async def running(materializer: Materializer) -> AsyncIterator[None]:
    task = asyncio.create_task(materializer.run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def do(partition: Partitioned, *entries: Entry) -> None:
    for entry in entries:
        outcome = await partition.propose(entry)
        assert outcome.changed, outcome


async def told(materializer: Materializer, path: str = SESSION) -> Messages:
    messages = await materializer.messages(path)
    assert messages is not None
    return messages


def listed(messages: Messages) -> list[JSONObject]:
    """The messages, each told alike decoded and as JSON."""
    assert [messages.folded.text(item) for item in messages.items] == [encode(item.facts) for item in messages.items]
    assert [item.facts["id"] for item in messages.items] == [item.message_id for item in messages.items]
    return [item.facts for item in messages.items]


async def folded(materializer: Materializer, count: int) -> None:
    """Wait until so many records are folded, and no more."""
    await until(lambda: materializer.records_folded >= count)
    assert materializer.records_folded == count


async def log_of(partition: Partitioned, path: str = SESSION) -> list[bytes]:
    """Every record of a session."""
    found: list[bytes] = []
    while True:
        stream = await partition.stream(path)
        assert stream is not None
        page = await partition.read(path, stream, len(found), limits.READ_BYTES_MAX)
        if page is None:
            return found
        found += records(page)


async def require_fold(partition: Partitioned, materializer: Materializer, path: str = SESSION) -> None:
    """snapshot(X) = fold(log[0..X]), and X is all that was applied."""
    messages, log = await told(materializer, path), await log_of(partition, path)
    fold = SessionFold()
    for record in log:
        fold.add(record)
    assert (messages.position, listed(messages)) == (len(log), fold.items())
    assert fold.malformed == 0


async def require_past(partition: Partitioned, materializer: Materializer, position: int, path: str = SESSION) -> None:
    """What is told of `position` is fold(log[0..position])."""
    stream = await partition.stream(path)
    assert stream is not None
    messages, fold = await materializer.messages_at(path, stream, position), SessionFold()
    for record in (await log_of(partition, path))[:position]:
        fold.add(record)
    assert messages is not None
    assert (messages.position, listed(messages)) == (position, fold.items())


def text(length: int) -> bytes:
    return msgspec.json.encode("x" * length)


ANSWER = (
    create_session("m", b'{"id":"m","role":"user"}'),
    chunks("g", 0, b'"a"', b'"b"'),
    message("late", b'{"id":"late","role":"user"}'),
    chunks("g", 1, b'"c"', b'"\\ud83d"', b"1"),
    chunks("g2", 0, b'"new"', lane="side"),
    chunks("g3", 0, b'"supersedes"'),
    finish("g2", 1, usage=b'{"n":1}'),
    stop("g3", requested_by="me"),
)


class CountingStore(HeldStore):
    """Counts what is read of it: bytes of pages, and of snapshots."""

    def __init__(self) -> None:
        super().__init__()
        self.page_bytes = 0
        self.snapshot_bytes = 0
        self.is_lost = False

    async def read(self, incarnation: int, position: int, bytes_max: int) -> list[Page]:
        pages = await super().read(incarnation, position, bytes_max)
        self.page_bytes += sum(len(page.data) for page in pages)
        return pages

    async def snapshot(self, path: str, incarnation: int) -> Snapshot | None:
        snapshot = None if self.is_lost else await super().snapshot(path, incarnation)
        self.snapshot_bytes += sum(len(data) for _, _, data in snapshot.messages) if snapshot else 0
        return snapshot
