"""KF4, at the one moment that matters: Kafka has the record, and the node that wrote it does not know."""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tests.eventually import eventually
from tests.faults.cluster.network import Network
from tests.faults.cluster.nodes import Nodes
from tests.faults.writers import producer_headers
from tests.kafka.cluster import KafkaCluster
from tests.live import Broker

STREAM = "/v1/stream/s"
TEXT = {"content-type": "text/plain"}
PRODUCER = producer_headers("p", 0, 0)


async def asked(
    method: str, node: Broker, content: str = "", headers: Mapping[str, str] = TEXT
) -> httpx.Response | None:
    """The answer; None when the node is gone before it gives one."""
    async with httpx.AsyncClient(base_url=node.url, timeout=30.0) as client:
        with suppress(httpx.TransportError):
            return await client.request(method, STREAM, headers=headers, content=content)
    return None


async def text(node: Broker) -> str:
    answer = await asked("GET", node)
    return "" if answer is None else answer.text


@pytest.mark.timeout(180)  # it may be the first to need Kafka
@pytest.mark.parametrize("producer", [PRODUCER, {}], ids=["by a producer", "by nobody"])
async def test_node_killed_after_kafka_took_its_record_and_before_it_knew_finds_it_done_once(
    producer: Mapping[str, str], tmp_path: Path, kafka: KafkaCluster
) -> None:
    headers = {**TEXT, **producer}
    async with (
        Network(kafka, "one way", sites=1) as network,
        Nodes(tmp_path, kafka, count=1, network=network) as nodes,
        Broker(tmp_path / "other", engine="kafka", env=nodes.env) as other,
    ):
        (node,) = nodes.all
        nodes.all.append(other)
        assert await asked("PUT", node)
        async with network.cut(0, to_kafka=False):
            asking = asyncio.create_task(asked("POST", node, "once", headers))

            async def is_taken() -> bool:
                return await text(other) == "once"

            await eventually(is_taken)
            assert not asking.done()
            await node.kill()
            assert await asking is None
        await node.start()
        for one in nodes.all if producer else ():
            again = await asked("POST", one, "once", headers)
            assert again is not None
            assert again.status_code == 204, "a duplicate"
        assert [await text(one) for one in nodes.all] == ["once", "once"]
        assert await nodes.faults() == []
