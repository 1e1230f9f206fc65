"""KF8 at its barest: there is no Kafka for a while. Nodes say so at once, and serve again soon after it is back."""

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
STREAM = "/v1/stream/s"
BACK_S_MAX = 12.0
"""From Kafka's being back to the first write that is acknowledged: clients that are made anew have that long."""


@pytest.mark.timeout(120)  # a Kafka of its own starts twice
async def test_nodes_serve_again_soon_after_kafka_was_away_and_work_little_meanwhile(tmp_path: Path) -> None:
    folder = tmp_path / "kafka"
    folder.mkdir()
    with KafkaCluster(folder) as kafka:
        async with Nodes(tmp_path, kafka, count=2) as nodes, httpx.AsyncClient(timeout=30.0) as client:
            one = nodes.all[0]
            assert (await client.put(f"{one.url}{STREAM}", headers=TEXT, content="before;")).status_code == 201
            kafka.kill()
            asked_s, worked_s = monotonic(), sum(map(processor_s, nodes.all))
            meanwhile = asyncio.create_task(client.post(f"{one.url}{STREAM}", headers=TEXT, content="meanwhile;"))

            async def are_told() -> bool:
                return all([(await client.get(f"{node.url}/ready")).status_code == 503 for node in nodes.all])

            await eventually(are_told)
            assert sum(map(processor_s, nodes.all)) - worked_s < 0.3 * (monotonic() - asked_s)
            await asyncio.to_thread(kafka.start)
            async with asyncio.timeout(BACK_S_MAX):
                await nodes.until_ready()
                for node in nodes.all:
                    again = await client.post(f"{node.url}{STREAM}", headers=TEXT, content="after;")
                    assert again.status_code == 204
            assert (await meanwhile).status_code in (204, 503)
            assert await nodes.faults() == []


def processor_s(node: Broker) -> float:
    """What its process has used."""
    user, system = Path(f"/proc/{node.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
