"""A log that is not what it was, and a store that is in use twice: told, never served as if nothing had been."""

import asyncio
import shutil
from pathlib import Path

import httpx
from aiokafka.admin import AIOKafkaAdminClient

from tests.eventually import eventually
from tests.faults.cluster.nodes import Nodes, refusals
from tests.faults.cluster.replicas import stored
from tests.kafka.cluster import KafkaCluster
from tests.live import Broker, BrokerFailedError

TEXT = {"content-type": "text/plain"}
STREAM = "/v1/stream/s"


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

            async def has_stopped() -> bool:
                await status("POST", node, "2")
                async with httpx.AsyncClient() as client:
                    return (await client.get(f"{node.url}/health")).status_code == 503

            await eventually(has_stopped)
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
