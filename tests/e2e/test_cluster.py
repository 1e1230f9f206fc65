"""Several brokers over one Kafka: any of them takes a write, all of them serve it, none of them is needed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from consumer import Reader
from producer import Producer
from tests.eventually import eventually
from tests.kafka.cluster import KafkaCluster
from tests.live import Broker
from tests.nginx import Balancer

TEXT = {"content-type": "text/plain"}
PATIENCE_S = 30.0


class Nodes(NamedTuple):
    """Two brokers on one topic, and a client of each."""

    one: Broker
    two: Broker
    to_one: httpx.AsyncClient
    to_two: httpx.AsyncClient


@pytest.fixture
async def nodes(tmp_path: Path, kafka: KafkaCluster) -> AsyncIterator[Nodes]:
    env = kafka.env()
    async with AsyncExitStack() as stack:
        one, two = (Broker(tmp_path / name, engine="kafka", env=env) for name in ("one", "two"))
        await asyncio.gather(stack.enter_async_context(one), stack.enter_async_context(two))
        clients = [
            await stack.enter_async_context(httpx.AsyncClient(base_url=node.url, timeout=PATIENCE_S))
            for node in (one, two)
        ]
        yield Nodes(one, two, *clients)


def batch(seq: int) -> dict[str, str]:
    return {**TEXT, "producer-id": "p", "producer-epoch": "0", "producer-seq": str(seq)}


async def text(client: httpx.AsyncClient, path: str) -> str:
    return (await client.get(path)).raise_for_status().text


async def test_what_one_node_acknowledges_the_other_serves_at_once(nodes: Nodes) -> None:
    """Right behind the answer: a node that has not seen it yet finds out before it says that nothing is there."""
    for number in range(20):
        path = f"/v1/stream/s{number}"
        assert (await nodes.to_one.put(path, headers=TEXT, content="a")).status_code == 201
        assert (await nodes.to_two.post(path, headers=TEXT, content="b")).status_code == 204
        offset = (await nodes.to_one.post(path, headers=TEXT, content="c")).headers["stream-next-offset"]
        assert (await nodes.to_two.get(path, params={"offset": offset})).status_code == 200
        assert await text(nodes.to_two, path) == "abc"
        assert (await nodes.to_two.delete(path)).status_code == 204
        assert (await nodes.to_one.head(path)).status_code == 404


async def test_session_made_at_one_node_is_forked_at_the_other_at_once(nodes: Nodes) -> None:
    """A fork is made of what its node sees of the source, which is in another partition as well."""
    for number in range(10):
        await nodes.to_one.put(f"/v1/sessions/s{number}")
        await nodes.to_one.post(f"/v1/sessions/s{number}/messages", json={"id": "m", "role": "user"})
        forked = await nodes.to_two.post(f"/v1/sessions/s{number}/fork", json={"sessionId": f"f{number}"})
        assert forked.status_code == 201, forked.text
        inherited = (await nodes.to_one.get(f"/v1/sessions/f{number}/messages")).raise_for_status().json()
        assert [item["id"] for item in inherited["messages"]] == ["m"]


async def test_reader_at_one_node_follows_a_writer_at_the_other(nodes: Nodes) -> None:
    await nodes.to_one.put("/v1/stream/s", headers=TEXT)
    reading = asyncio.create_task(nodes.to_two.get("/v1/stream/s", params={"offset": "now", "live": "long-poll"}))
    await asyncio.sleep(0.2)
    await nodes.to_one.post("/v1/stream/s", headers=TEXT, content="hello")
    assert (await reading).text == "hello"


async def test_idempotent_producer_goes_on_through_the_other_node_when_one_is_killed(nodes: Nodes) -> None:
    """What it does not know the fate of it sends again, elsewhere: each batch counts once, in order."""
    await nodes.to_one.put("/v1/stream/s", headers=TEXT)
    for seq in range(20):
        (await nodes.to_one.post("/v1/stream/s", headers=batch(seq), content=f"{seq} ")).raise_for_status()
    under_way = [
        asyncio.create_task(nodes.to_one.post("/v1/stream/s", headers=batch(seq), content=f"{seq} "))
        for seq in range(20, 24)
    ]
    await asyncio.sleep(0.002)
    await nodes.one.kill()
    await asyncio.gather(*under_way, return_exceptions=True)
    for seq in range(20, 40):
        (await nodes.to_two.post("/v1/stream/s", headers=batch(seq), content=f"{seq} ")).raise_for_status()
    expected = "".join(f"{seq} " for seq in range(40))
    assert await text(nodes.to_two, "/v1/stream/s") == expected

    await nodes.one.start()
    assert await text(nodes.to_one, "/v1/stream/s") == expected


async def test_answer_of_a_killed_node_goes_on_and_a_dead_one_ends_at_the_other(nodes: Nodes) -> None:
    """CORE 6: leases are watched by nodes, and decided by entries."""
    await nodes.to_one.put("/v1/sessions/s")
    chunks = "/v1/sessions/s/generations/g/chunks?leaseMs=1500"
    assert (await nodes.to_one.post(chunks, headers={"producer-seq": "0"}, json=[{"a": 1}])).is_success
    await nodes.one.kill()
    assert (await nodes.to_two.post(chunks, headers={"producer-seq": "1"}, json=[{"a": 2}])).is_success

    async def ended() -> bool:
        generation = await nodes.to_two.get("/v1/sessions/s/generations/g")
        return str(generation.raise_for_status().json()["status"]) == "failed"

    assert await eventually(ended)


async def test_answer_outlives_every_node_behind_the_balancer_that_is_shipped(nodes: Nodes, tmp_path: Path) -> None:
    """The producer and the reader know one address; behind it first one node is killed, then the other."""
    async with Balancer([nodes.one, nodes.two], tmp_path / "nginx") as balancer, Producer(balancer.url) as producer:
        await producer.create_session("s")
        async with producer.generation("s", "g", format="text") as generation:
            for number in range(90):
                if number == 30:
                    await nodes.one.kill()
                if number == 60:
                    await nodes.one.start()
                    await nodes.two.kill()
                await generation.write(f"{number} ")
                await asyncio.sleep(0.01)
        async with Reader(balancer.url) as reader:
            (message,) = (await reader.messages("s")).messages
    text_of_all = "".join(f"{number} " for number in range(90))
    assert (message["status"], message["message"]["parts"]) == ("complete", [{"type": "text", "text": text_of_all}])


async def test_node_without_a_store_makes_it_from_the_log(nodes: Nodes, tmp_path: Path) -> None:
    await nodes.to_one.put("/v1/stream/s", headers=TEXT, content="kept")
    await nodes.to_one.put("/v1/stream/gone", headers=TEXT, content="gone")
    await nodes.to_two.delete("/v1/stream/gone")
    async with (
        Broker(tmp_path / "three", engine="kafka", env=nodes.one.env) as three,
        httpx.AsyncClient(base_url=three.url) as to_three,
    ):
        assert await text(to_three, "/v1/stream/s") == "kept"
        assert (await to_three.get("/v1/stream/gone")).status_code == 404


@pytest.mark.timeout(180)  # it may be the first to need three nodes of Kafka, and starts one of them again
async def test_appends_go_on_when_the_leader_in_kafka_is_killed(tmp_path: Path, three_nodes: KafkaCluster) -> None:
    async with (
        Broker(tmp_path / "data", engine="kafka", env=three_nodes.env()) as broker,
        httpx.AsyncClient(base_url=broker.url, timeout=PATIENCE_S) as client,
    ):
        await client.put("/v1/stream/s", headers=TEXT)
        acknowledged = ""
        try:
            for seq in range(60):
                if seq == 20:
                    three_nodes.kill(1)
                sent = await client.post("/v1/stream/s", headers=batch(seq), content=f"{seq} ")
                while sent.status_code == 503:
                    sent = await client.post("/v1/stream/s", headers=batch(seq), content=f"{seq} ")
                sent.raise_for_status()
                acknowledged += f"{seq} "
        finally:
            await asyncio.to_thread(three_nodes.start, 1)
        assert await text(client, "/v1/stream/s") == acknowledged
