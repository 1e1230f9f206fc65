"""KF8 at its barest: no Kafka for a while. A node says so, serves again once it is back, and stops in order without."""

import asyncio
import os
from pathlib import Path
from time import monotonic

import httpx
import pytest

from tests.eventually import eventually
from tests.faults.cluster.nodes import Nodes
from tests.kafka.cluster import KafkaCluster
from tests.live import Broker

TEXT = {"content-type": "text/plain"}
PAUSE_S = 0.5
DRAIN_S = 2.0
"""What a stop has for all that waits for Kafka, one after the other: requests, the journal, the clients."""
STOP_STEPS_S_MAX = 6.0
"""What is little more than that, on a machine that has a lot to do."""
BACK_S_MAX = 20.0
"""From Kafka's being back to the first write that is acknowledged: clients that are made anew have that long."""


@pytest.mark.timeout(120)  # a Kafka of its own starts twice
async def test_node_serves_again_soon_after_kafka_was_away_and_works_little_meanwhile(tmp_path: Path) -> None:
    folder, env = tmp_path / "kafka", {"STREAMFOLD_DRAIN_S": f"{DRAIN_S}"}
    folder.mkdir()
    with KafkaCluster(folder) as kafka:
        async with Nodes(tmp_path, kafka, count=1, env=env) as nodes, httpx.AsyncClient(timeout=30.0) as client:
            (node,) = nodes.all
            stream = f"{node.url}/v1/stream/s"
            assert (await client.put(stream, headers=TEXT, content="before;")).status_code == 201
            kafka.kill()
            began_s, worked_s = monotonic(), processor_s(node)
            meanwhile = asyncio.create_task(client.post(stream, headers=TEXT, content="meanwhile;"))

            async def is_told() -> bool:
                return (await client.get(f"{node.url}/ready")).status_code == 503

            await eventually(is_told)
            assert processor_s(node) - worked_s < 0.3 * (monotonic() - began_s)
            await asyncio.to_thread(kafka.start)
            async with asyncio.timeout(BACK_S_MAX):
                await nodes.until_ready()
                assert (await client.post(stream, headers=TEXT, content="after;")).status_code == 204
            assert (await meanwhile).status_code in (204, 503)
            assert await nodes.faults() == []
            kafka.kill()
            under_way = asyncio.create_task(client.post(stream, headers=TEXT, content="under way;"))
            await asyncio.sleep(PAUSE_S)  # until its clients have noticed: then they have more to stop
            began_s = monotonic()
            assert await node.stop() == 0
            assert monotonic() - began_s < DRAIN_S + STOP_STEPS_S_MAX
            (answer,) = await asyncio.gather(under_way, return_exceptions=True)
            assert not isinstance(answer, httpx.Response) or answer.status_code == 503


def processor_s(node: Broker) -> float:
    """What its process has used."""
    user, system = Path(f"/proc/{node.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
