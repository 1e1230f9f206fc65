"""Nodes that keep snapshots: the topic is trimmed behind them, and a node without a store begins with one."""

import asyncio
import random
import shutil
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

import httpx
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from tests.eventually import eventually
from tests.faults.cluster.nodes import PARTITIONS, Nodes
from tests.faults.cluster.replicas import differences, dumped, stored
from tests.kafka.cluster import KafkaCluster
from tests.live import Broker, BrokerFailedError
from tests.simulator.dump import store_dump

TEXT = {"content-type": "text/plain"}
PATHS = [f"s{number}" for number in range(8)]
"""Some in each partition."""
BATCH_BYTES = 32 * 1024
TRIM_S_MAX = 60.0
PAUSE_S = 0.05
"""Between two batches of a path: some MiB a second in all, so that each snapshot takes a while to be due."""


class Writer:
    """Appends to all PATHS, through any node that answers, until it is cancelled."""

    def __init__(self, nodes: Nodes) -> None:
        self.acknowledged = dict.fromkeys(PATHS, 0)
        """How many batches, by path."""
        self._nodes = nodes
        self._chance = random.Random(20261121)

    async def create(self) -> None:
        async with httpx.AsyncClient(timeout=30.0) as client:
            for path in PATHS:
                made = await client.put(f"{self._nodes.all[0].url}/v1/stream/{path}", headers=TEXT)
                assert made.status_code == 201, made.text

    async def run(self) -> None:
        async with httpx.AsyncClient(timeout=5.0) as client, asyncio.TaskGroup() as writing:
            for path in PATHS:
                writing.create_task(self._append(client, path))

    async def _append(self, client: httpx.AsyncClient, path: str) -> None:
        while True:
            seq = self.acknowledged[path]
            headers = {**TEXT, "producer-id": "p", "producer-epoch": "0", "producer-seq": str(seq)}
            node = self._chance.choice(self._nodes.all)
            with suppress(httpx.TransportError):
                sent = await client.post(f"{node.url}/v1/stream/{path}", headers=headers, content=batch(path, seq))
                if sent.status_code in (200, 204):
                    self.acknowledged[path] += 1
            await asyncio.sleep(PAUSE_S)


def batch(path: str, seq: int) -> bytes:
    """Different for each, and nothing that could be compressed much."""
    return random.Random(f"{path} {seq}").randbytes(BATCH_BYTES // 2).hex().encode()


def keeping_snapshots(tmp_path: Path, kafka: KafkaCluster, count: int) -> Nodes:
    env = {"STREAMFOLD_SNAPSHOT_DIR": str(tmp_path / "snapshots"), "STREAMFOLD_SNAPSHOT_LOG_MIB": "1"}
    return Nodes(tmp_path, kafka, count=count, env=env)


async def log_begins(nodes: Nodes) -> list[int]:
    """The position that each partition's log begins at."""
    places = [TopicPartition(nodes.topic, partition) for partition in range(PARTITIONS)]
    consumer = AIOKafkaConsumer(bootstrap_servers=nodes.kafka.bootstrap, group_id=None)
    try:
        await consumer.start()
        begins = await consumer.beginning_offsets(places)
    finally:
        await consumer.stop()
    return [begins[place] for place in places]


async def until_trimmed(nodes: Nodes) -> None:
    """Return once each partition's log begins later than it does now."""
    before, told = await log_begins(nodes), trims_told(nodes)

    async def trimmed() -> bool:
        nonlocal told
        if trims_told(nodes) == told:
            return False
        told = trims_told(nodes)
        return all(now > then for now, then in zip(await log_begins(nodes), before, strict=True))

    await eventually(trimmed, TRIM_S_MAX)


def trims_told(nodes: Nodes) -> int:
    return sum(node.log_path.read_bytes().count(b"the log begins at position") for node in nodes.all)


async def assert_equal(nodes: Nodes, writer: Writer) -> None:
    """All nodes serve what was acknowledged, and have stored the same, with the same chain. Stops them."""
    await nodes.until_ready()
    dumps = {node.data_dir.name: await dumped(node.url, PATHS) for node in nodes.all}
    assert differences(dumps) == []
    for path, count in writer.acknowledged.items():
        served = dumps["node-1"][path].content
        assert served.startswith(b"".join(batch(path, seq) for seq in range(count))), path
        assert len(served) <= (count + 1) * BATCH_BYTES  # one whose answer the writer did not wait for

    assert await asyncio.gather(*(node.stop() for node in nodes.all)) == [0] * len(nodes.all)
    for partition in range(PARTITIONS):
        heads, states = set(), []
        for node in nodes.all:
            store = stored(node.data_dir, partition)
            assert store is not None
            heads.add((store.applied_index, store.mark.chain, store.mark.meta.log_uuid))
            with closing(sqlite3.connect(node.data_dir / f"partition-{partition}" / "store.sqlite")) as connection:
                states.append(store_dump(connection))
        assert len(heads) == 1
        assert all(state == states[0] for state in states)


@pytest.mark.timeout(180)  # so many starts and fsyncs take a busy machine long
async def test_node_that_lost_its_folder_comes_back_from_a_snapshot_and_the_tail(
    tmp_path: Path, kafka: KafkaCluster
) -> None:
    """KI15, KF10. The log no longer has what it lost."""
    async with keeping_snapshots(tmp_path, kafka, count=3) as nodes:
        writer, lost = Writer(nodes), nodes.all[2]
        await writer.create()
        writing = asyncio.create_task(writer.run())
        await until_trimmed(nodes)
        await lost.kill()
        shutil.rmtree(lost.data_dir)
        await lost.start()
        assert lost.log_path.read_text().count("this node begins with the snapshot") == PARTITIONS
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        await assert_equal(nodes, writer)
        kept = [path.name for path in (tmp_path / "snapshots").rglob("*.*")]
        assert len([name for name in kept if name.endswith(".snapshot")]) <= 3 * PARTITIONS  # one may be new


@pytest.mark.timeout(180)  # so many starts and fsyncs take a busy machine long
async def test_nodes_killed_while_they_make_and_begin_with_snapshots_lose_nothing(
    tmp_path: Path, kafka: KafkaCluster
) -> None:
    """KI13, KI15. Whatever a dead node leaves lying about is not taken for a snapshot, or for a store."""
    async with keeping_snapshots(tmp_path, kafka, count=2) as nodes:
        writer = Writer(nodes)
        await writer.create()
        writing = asyncio.create_task(writer.run())
        for _ in range(2):
            maker = (await eventually(lambda: that_make(nodes)))[0]
            await maker.kill()
            await maker.start()
        await until_trimmed(nodes)
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)

        lost = nodes.all[1]
        await lost.kill()
        shutil.rmtree(lost.data_dir)
        for what in ("snapshot.sqlite", "store.sqlite"):
            starting = asyncio.create_task(lost.start())
            await eventually(lambda what=what: has(lost, what))  # type: ignore[misc]  # the name of this round
            await lost.kill()
            with suppress(BrokerFailedError):
                await starting
        await lost.start()
        await assert_equal(nodes, writer)


async def that_make(nodes: Nodes) -> list[Broker]:
    return [node for node in nodes.all if await has(node, "snapshot.sqlite")]


async def has(node: Broker, name: str) -> bool:
    return any(node.data_dir.glob(f"partition-*/{name}"))
