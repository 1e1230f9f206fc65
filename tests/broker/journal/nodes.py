"""Journals of a cluster over one log, each with a partition that applies what it is handed at once."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from broker.core.entry import Entry
from broker.core.outcome import Outcome, Result
from broker.journal import Commit, Refused
from broker.journal.cluster import ClusterJournal
from broker.journal.cluster_record import decode
from tests.broker.journal.bench import Heard
from tests.broker.journal.memory_log import MemoryLog, Records


class Node:
    """A journal, its end of the log, and a partition that applies what it is handed at once."""

    def __init__(self, records: Records, wait_s: float = 10, audit_s: float = 60) -> None:
        self.log = MemoryLog(records)
        self.heard = Heard()
        self.quarantined: list[str] = []
        self.journal = ClusterJournal(
            self.log, quarantine=lambda reason, _: self.quarantined.append(reason), wait_s=wait_s, audit_s=audit_s
        )
        self.mark = b""
        self.index = 0
        self.makes = Outcome(Result.ACCEPTED)

    def deliver(self, told: Commit | Refused) -> None:
        if isinstance(told, Commit):
            self.apply(told)
        self.heard.deliver(told)

    def apply(self, commit: Commit) -> None:
        self.journal.applied(commit, [self.makes] * len(commit.entries))
        self.index = commit.first_index + len(commit.entries) - 1
        self.mark = self.journal.mark()

    async def start(self, index: int = 0, mark: bytes = b"") -> None:
        self.index = index
        await self.journal.open(index, 0, mark)
        async for commit in self.journal.replay():
            self.heard.deliver(commit)
            self.apply(commit)
        self.journal.start(self.deliver, self.heard.stop)

    async def write(self, *entries: Entry) -> None:
        """Propose them one by one, and return when all were handed back."""
        await self.heard.write(self.journal, *entries)

    @property
    def proposals(self) -> list[int]:
        """Numbers of what was handed back, in order."""
        return [entry.proposal for _, entry in self.heard.entries]


@asynccontextmanager
async def nodes(
    count: int, records: Records | None = None, *, wait_s: float = 10, audit_s: float = 60
) -> AsyncIterator[list[Node]]:
    """So many journals over one log."""
    records = records or Records()
    started = [Node(records, wait_s, audit_s) for _ in range(count)]
    try:
        for node in started:
            await node.start()
        yield started
    finally:
        for node in started:
            await node.journal.aclose()


async def until_stopped(node: Node) -> None:
    await node.heard.until(lambda: node.heard.stopped)


async def settled(node: Node) -> None:
    """Wait until nothing of this node is under way."""
    await asyncio.wait_for(node.journal._writer.idle(), 10)  # noqa: SLF001 -- nothing tells a caller that nothing happens


def entries_of(records: Records) -> list[bytes]:
    """The bytes of all entries in the log."""
    found = (decode(record.data) for record in records.records)
    return [data for envelope in found if envelope is not None for data in envelope.entries]
