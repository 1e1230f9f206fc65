"""Nodes of a cluster that keep snapshots: the broker's own parts over a log in memory and folders of the test."""

from pathlib import Path
from types import TracebackType
from typing import Self

from broker.data_dir import DataDir
from broker.journal.cluster import ClusterJournal
from broker.partition import Partition
from broker.snapshot.folder import Folder
from broker.snapshot.maker import SnapshotMaker
from broker.snapshot.restore import Restorer
from broker.snapshot.shelf import Shelf
from broker.store.sqlite import SqliteStore
from tests.broker.core import entries
from tests.broker.core.entries import PATH
from tests.broker.journal.memory_log import MemoryLog, Records

LOG_BYTES = 2_000
BATCH = b'"%s"' % (b"x" * 1_000)


class Node:
    """One life of a node. Entering starts it, leaving stops it; what it leaves in its folder the next one finds."""

    def __init__(self, records: Records, data: Path, place: Path, log_bytes: int = LOG_BYTES) -> None:
        self.data_dir = DataDir(data)
        self.log = MemoryLog(records)
        self.shelf = Shelf(Folder(place))
        self.journal = ClusterJournal(self.log, quarantine=self.data_dir.quarantine, audit_s=60)
        restore = Restorer(
            self.log,
            self.shelf,
            self.data_dir.snapshot_path,
            distrusted=self.data_dir.distrusted_snapshots,
            note=self.data_dir.begin_with,
        )
        self.store = SqliteStore(self.data_dir, restore=restore)
        self.partition = Partition(self.journal, self.store)
        self.maker = SnapshotMaker(
            self.partition,
            self.store,
            self.journal,
            self.log,
            self.shelf,
            self.data_dir.snapshot_path,
            log_bytes=log_bytes,
            log_share=0,
        )

    async def __aenter__(self) -> Self:
        try:
            await self.partition.open()
        except BaseException:
            await self.partition.aclose()
            raise
        return self

    async def __aexit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.partition.aclose()

    async def create(self) -> None:
        await self.partition.propose(entries.create())

    async def write(self, count: int = 3) -> None:
        """So many batches; as many make a snapshot due."""
        for _ in range(count):
            await self.partition.propose(entries.append(BATCH))

    async def snapshot(self, *others: "Node") -> None:
        """Make one that is due: announce it, have that read, and make it."""
        made = self.maker.counts.made
        for _ in range(100):
            await self.maker.look()
            if self.maker.counts.made > made:
                return
            for node in (self, *others):
                await node.partition.catch_up()
        raise AssertionError("no snapshot was made")

    async def tail(self) -> int:
        await self.partition.catch_up()
        stream = await self.partition.stream(PATH)
        return 0 if stream is None else stream.tail
