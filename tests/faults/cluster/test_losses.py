"""A log that is not what it was, and a store that is in use twice: told, never served as if nothing had been."""

import asyncio
import shutil
from functools import partial
from pathlib import Path

import httpx
import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

from broker.partitions import place_of
from broker.serve import BEGIN_ANEW_STATUS
from tests.eventually import eventually
from tests.faults.cluster.nodes import PARTITIONS, Nodes, refusals
from tests.faults.cluster.replicas import stored
from tests.kafka.cluster import KafkaCluster
from tests.live import Broker, BrokerFailedError

TEXT = {"content-type": "text/plain"}
STREAM = "/v1/stream/s"


async def text(node: Broker) -> str:
    """What it serves of the stream."""
    async with httpx.AsyncClient(base_url=node.url, timeout=30.0) as client:
        return (await client.get(STREAM, params={"offset": "-1"})).text


async def has_stopped(node: Broker) -> bool:
    async with httpx.AsyncClient(base_url=node.url, timeout=30.0) as client:
        return (await client.get("/health")).status_code == 503


async def status(method: str, node: Broker, content: str = "") -> int:
    async with httpx.AsyncClient(base_url=node.url, timeout=30.0) as client:
        return (await client.request(method, STREAM, headers=TEXT, content=content)).status_code


async def test_node_whose_topic_was_made_anew_says_so_and_begins_anew(tmp_path: Path, kafka: KafkaCluster) -> None:
    """KF10. What it had is set aside, not deleted."""
    async with Nodes(tmp_path, kafka, count=2) as nodes:
        assert await status("PUT", nodes.all[0], "of the old topic") == 201
        await asyncio.gather(*(node.stop() for node in nodes.all))
        admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap)
        await admin.start()
        await admin.delete_topics([nodes.topic])
        await admin.close()
        for node in nodes.all:
            told = await refusals(node)
            assert "the log" in told
            assert list(node.data_dir.glob("*/set-aside-*"))
        assert await status("PUT", nodes.all[1], "of the new topic") == 201
        assert await nodes.faults() == []


@pytest.mark.timeout(180)  # they say so for a while before they end
async def test_nodes_whose_topic_is_made_anew_while_they_run_stop_and_say_so(
    tmp_path: Path, kafka: KafkaCluster
) -> None:
    """KF10. What they have is of another log: they neither show it nor mix it with what the new one gets."""
    async with Nodes(tmp_path, kafka, count=2) as nodes:
        assert await status("PUT", nodes.all[0], "of the old topic") == 201
        assert await status("GET", nodes.all[1]) == 200
        admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap)
        await admin.start()
        await admin.delete_topics([nodes.topic])
        await admin.close()
        async with Broker(tmp_path / "new", engine="kafka", env=nodes.env) as new:
            assert await status("PUT", new, "of the new topic") == 201
            for _ in range(10):  # more than the old one had: there are records where the others read on
                assert await status("POST", new, "!") == 204
            for node in nodes.all:
                assert await status("POST", node, "to the old topic") == 503
                await eventually(partial(has_stopped, node))
                assert await status("GET", node) == 503
                assert "the log" in node.log_text()
            for node in nodes.all:
                assert await node.left() == BEGIN_ANEW_STATUS
                assert "hint: start it again" in node.log_text()
                await refusals(node)
                assert list(node.data_dir.glob("*/set-aside-*"))
            nodes.all.append(new)
            assert await nodes.faults() == []
            assert await text(nodes.all[0]) == "of the new topic" + 10 * "!"


async def test_node_whose_place_in_the_log_was_trimmed_says_what_is_missing(
    tmp_path: Path, kafka: KafkaCluster
) -> None:
    """KF10. Where there is no snapshot either, it does not start, and keeps what it has."""
    async with Nodes(tmp_path, kafka, count=2) as nodes:
        late, other = nodes.all
        assert await status("PUT", late, "1") == 201
        await late.stop()
        for _ in range(3):
            assert await status("POST", other, "2") == 204
        await trimmed(nodes)
        with pytest.raises(BrokerFailedError, match=r"the log begins at position \d+, the store ends at position \d+"):
            await late.start()
        assert not list(late.data_dir.glob("*/set-aside-*"))
        assert await status("POST", other, "2") == 204
        shutil.rmtree(late.data_dir)
        await other.stop()
        shutil.copytree(other.data_dir, late.data_dir)  # as the hint says
        await asyncio.gather(late.start(), other.start())
        assert await text(late) == await text(other) == "12222"


async def trimmed(nodes: Nodes) -> None:
    """Drop all that the log has of the partition that holds the stream."""
    place = TopicPartition(nodes.topic, place_of("s", PARTITIONS))
    admin = AIOKafkaAdminClient(bootstrap_servers=nodes.kafka.bootstrap)
    await admin.start()
    try:
        await admin.delete_records({place: RecordsToDelete(-1)})
    finally:
        await admin.close()


async def test_node_whose_store_was_copied_while_it_ran_stops_and_both_can_go_on(
    tmp_path: Path, kafka: KafkaCluster
) -> None:
    """KF13. The copy takes the node for its own earlier life."""
    async with Nodes(tmp_path, kafka, count=1) as nodes:
        (node,) = nodes.all
        assert await status("PUT", node, "1") == 201

        async def has_stored() -> bool:
            return any(stored(node.data_dir, partition) for partition in range(2))

        await eventually(has_stored)
        async with nodes.paused(node):
            shutil.copytree(node.data_dir, tmp_path / "copy")
        copy = Broker(tmp_path / "copy", engine="kafka", env=nodes.env)
        async with copy:
            assert await status("POST", node, "2") in (204, 503)

            async def notices() -> bool:
                await status("POST", node, "2")
                return await has_stopped(node)

            await eventually(notices)
            assert await status("POST", copy, "3") == 204
            await node.restart()
            assert await status("POST", node, "4") == 204
            nodes.all.append(copy)
            assert await nodes.faults() == []


async def test_second_node_on_the_same_folder_does_not_start(tmp_path: Path, kafka: KafkaCluster) -> None:
    """KF13. The first one does not notice."""
    async with Nodes(tmp_path, kafka, count=1) as nodes:
        second = Broker(nodes.all[0].data_dir, engine="kafka", env=nodes.env)
        told = await second_refusal(second)
        assert "another process has the data folder" in told
        assert await status("PUT", nodes.all[0], "1") == 201


async def second_refusal(second: Broker) -> str:
    try:
        await second.start()
    except BrokerFailedError as error:
        return str(error)
    await second.kill()
    raise AssertionError("it started")
