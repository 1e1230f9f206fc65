"""KF9: Kafka loses what it had confirmed. Loss is allowed here, for nobody can undo it; silence is not.

One replica falls behind, the others end, and the one that is behind is made the leader. On three nodes of Kafka that
vote for themselves this takes a trick: one of those that must not lead comes back as a voter alone.
"""

import asyncio
import re
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from broker.serve import BEGIN_ANEW_STATUS
from tests.eventually import eventually
from tests.faults.cluster.election import ElectionFailedError, elect_whoever_is_there
from tests.faults.cluster.nodes import PARTITIONS, Nodes, refusals
from tests.kafka.cluster import KafkaCluster
from tests.live import Broker

STREAMS = tuple(f"/v1/stream/s{number}" for number in range(4))
BATCHES = 10
"""Of each stream before the loss, and as many in it."""
BATCHES_AFTER = 25
"""So many that the log is longer than it ever was."""
TOLD_S_MAX = 20.0
"""From when a node can know until it says so, on a machine that has a lot to do."""


class Writers:
    """A producer for each stream: what was acknowledged, as text."""

    def __init__(self) -> None:
        self.acked = dict.fromkeys(STREAMS, "")
        self._seqs = dict.fromkeys(STREAMS, 0)

    async def write(self, name: str, batches: int, *nodes: Broker) -> None:
        """So many batches to each stream, one through each node in turn. All are acknowledged."""
        async with asyncio.TaskGroup() as group:
            for stream in STREAMS:
                group.create_task(self._write(stream, name, batches, nodes))

    async def _write(self, stream: str, name: str, batches: int, nodes: tuple[Broker, ...]) -> None:
        for number in range(batches):
            text = f"{name}/{number};"
            answer = None
            while answer is None or answer.status_code in (503, 404):
                answer = await appended(nodes[number % len(nodes)], stream, text, self._seqs[stream])
            assert answer.is_success, answer.text
            self._seqs[stream] += 1
            self.acked[stream] += text

    def forget(self, acked: dict[str, str]) -> None:
        """Go on where what is left ends."""
        self.acked = acked
        self._seqs = {stream: text.count(";") for stream, text in acked.items()}


async def appended(node: Broker, stream: str, text: str, seq: int) -> httpx.Response | None:
    """The answer to one batch; None when there is none."""
    headers = {"content-type": "text/plain", "producer-id": "p", "producer-epoch": "0", "producer-seq": str(seq)}
    async with httpx.AsyncClient(base_url=node.url, timeout=20.0) as client:
        with suppress(httpx.TransportError):
            await client.put(stream, headers={"content-type": "text/plain"})
            return await client.post(stream, headers=headers, content=text)
    return None


async def texts(node: Broker) -> dict[str, str]:
    """What a node serves."""
    async with httpx.AsyncClient(base_url=node.url, timeout=20.0) as client:
        return {stream: (await client.get(stream, params={"offset": "-1"})).text for stream in STREAMS}


async def has_stopped(node: Broker) -> bool:
    async with httpx.AsyncClient(base_url=node.url, timeout=5.0) as client:
        with suppress(httpx.TransportError):
            return (await client.get("/health")).status_code == 503
    return False


async def metrics(node: Broker) -> str:
    async with httpx.AsyncClient(base_url=node.url, timeout=5.0) as client:
        return (await client.get("/metrics")).text


async def lead_with_the_one_that_is_behind(nodes: Nodes, behind: int) -> None:
    """Kafka's others end; the one that does not run and is behind leads; then all run."""
    kafka = nodes.kafka
    kafka.kill()
    voter, *_ = others = [node for node in kafka.nodes if node != behind]
    kafka.start_as_voter(voter)
    await asyncio.to_thread(kafka.start, behind)
    for partition in range(PARTITIONS):

        async def is_elected(partition: int = partition) -> bool:
            with suppress(ElectionFailedError):  # not before those that led count as gone
                await elect_whoever_is_there(kafka.port(behind), nodes.topic, partition)
                return True
            return False

        await eventually(is_elected)
    kafka.kill(voter)
    await asyncio.to_thread(kafka.start, *others)


@pytest.mark.usefixtures("all_faults")
@pytest.mark.timeout(300)
async def test_nodes_that_have_what_kafka_lost_say_so_and_begin_anew(tmp_path: Path, three_nodes: KafkaCluster) -> None:
    """One runs while it happens, one is down, and one stands still until the log is longer than it ever was."""
    async with Nodes(tmp_path, three_nodes) as nodes:
        running, down, frozen = nodes.all
        writers = Writers()
        await writers.write("kept", BATCHES, *nodes.all)
        kept = dict(writers.acked)
        leader = await nodes.leader()
        behind = next(node for node in three_nodes.nodes if node != leader)
        three_nodes.kill(behind)
        await writers.write("lost", BATCHES, *nodes.all)
        for node in nodes.all:
            assert await texts(node) == writers.acked
        length = [replay.position for replay in await nodes.replayed()]
        await down.stop()
        async with nodes.paused(frozen):
            await lead_with_the_one_that_is_behind(nodes, behind)
            await tells_that_it_stopped(running)
            assert await running.left() == BEGIN_ANEW_STATUS
            await refusals(running)
            left = await texts(running)
            assert all(acked.startswith(left[stream]) for stream, acked in writers.acked.items())
            assert left != writers.acked, "nothing was lost: this is no test"
            assert all(text.startswith(kept[stream]) for stream, text in left.items())
            writers.forget(left)
            await writers.write("after", BATCHES_AFTER, running)
            assert all(now.position > then for now, then in zip(await nodes.replayed(), length, strict=True))
            assert "another record" in await refusals(down)
        await tells_that_it_stopped(frozen)
        assert await frozen.left() == BEGIN_ANEW_STATUS
        await refusals(frozen)
        await writers.write("in the end", 1, *nodes.all)
        for node in nodes.all:
            assert await texts(node) == writers.acked
            assert list(node.data_dir.glob("*/set-aside-*"))
        assert [*await nodes.faults(has_lost=True), *await nodes.stored_faults()] == []


async def tells_that_it_stopped(node: Broker) -> None:
    """In its health, its metrics and its log; and what is asked of it meanwhile, it does not do."""
    answers = []

    async def is_told() -> bool:
        answers.append(await appended(node, STREAMS[0], "to a node that is wrong;", 10**6))
        return await has_stopped(node)

    await eventually(is_told, TOLD_S_MAX)
    assert not any(answer is not None and answer.is_success for answer in answers)
    assert re.search(r'^streamfold_journal_events_total\{event="diverged"\} [1-9]', await metrics(node), re.MULTILINE)
    assert "DIVERGED" in node.log_text()
    assert "another node made something else" not in node.log_text(), "it did not find out by itself"
