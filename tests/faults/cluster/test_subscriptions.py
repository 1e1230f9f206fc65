"""Subscriptions while nodes are killed: whichever node lives hands out all the work, to one worker at a time."""

import asyncio
import random
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.eventually import eventually
from tests.faults.cluster.nodes import Nodes
from tests.faults.writers import producer_headers
from tests.kafka.cluster import KafkaCluster
from tests.receiver import Receiver

SEED = 20261121
STREAMS = tuple(f"events/{number}" for number in range(4))
SUBSCRIPTIONS = "/v1/stream/__ds/subscriptions"
PULL, HOOK = "pull", "hook"
LEASE_MS = 1_500
KILLS = 3
PAUSE_S = 0.05
PATIENCE_S = 5.0
LEFT_BEHIND = 0.2
"""Of leases: their workers are never heard of again."""


class Pool:
    """One who writes, workers who claim what was written, and what each of them was told. Each asks any node."""

    def __init__(self, nodes: Nodes, client: httpx.AsyncClient) -> None:
        self.written: dict[str, list[str]] = defaultdict(list)
        """Acknowledged, by stream."""
        self.worked: dict[str, set[str]] = defaultdict(set)
        """What a worker read that had the lease."""
        self.holders: dict[int, set[str]] = defaultdict(set)
        """By generation: who was told to have it."""
        self.left_behind = 0
        self._nodes = nodes
        self._client = client
        self._chance = random.Random(SEED)

    async def ask(self, method: str, target: str, **more: Any) -> httpx.Response:
        """The first answer that says what was done, or why not."""
        while True:
            url = self._chance.choice(self._nodes.all).url
            with suppress(httpx.TransportError):
                answer = await self._client.request(method, url + target, **more)
                if answer.status_code < 500:
                    return answer
            await asyncio.sleep(PAUSE_S)

    async def write(self) -> None:
        """Until cancelled."""
        while True:
            path = self._chance.choice(STREAMS)
            event = f"{path}/{len(self.written[path])}"
            headers = producer_headers("writer", 0, len(self.written[path]))
            answer = await self.ask("POST", f"/v1/stream/{path}", json=[event], headers=headers)
            assert answer.is_success, answer.text
            self.written[path].append(event)
            await asyncio.sleep(PAUSE_S)

    async def work(self, worker: str) -> None:
        """Until cancelled."""
        while True:
            claimed = await self.ask("POST", f"{SUBSCRIPTIONS}/{PULL}/claim", json={"worker": worker})
            if claimed.status_code == 200:
                await self._work_on(worker, claimed.json())
            await asyncio.sleep(PAUSE_S)

    async def _work_on(self, worker: str, lease: Any) -> None:
        self.holders[lease["generation"]].add(worker)
        acks = []
        for stream in lease["streams"]:
            if stream["has_pending"]:
                page = await self.ask("GET", f"/v1/stream/{stream['path']}", params={"offset": stream["acked_offset"]})
                assert page.status_code == 200, page.text
                self.worked[stream["path"]].update(page.json())
                acks.append({"stream": stream["path"], "offset": page.headers["stream-next-offset"]})
        if self._chance.random() < LEFT_BEHIND:
            self.left_behind += 1
            return
        said = {"wake_id": lease["wake_id"], "generation": lease["generation"], "acks": acks, "done": True}
        bearer = {"authorization": f"Bearer {lease['token']}"}
        done = await self.ask("POST", f"{SUBSCRIPTIONS}/{PULL}/ack", json=said, headers=bearer)
        assert done.status_code in (200, 409), done.text  # it may have taken longer than the lease, or be told twice


@pytest.mark.timeout(180)  # it may be the first to need Kafka
async def test_everything_acknowledged_is_worked_on_by_one_at_a_time_while_nodes_are_killed(
    tmp_path: Path, kafka: KafkaCluster
) -> None:
    env = {"STREAMFOLD_SIGNING_KEY": str(tmp_path / "signing-key.pem")}
    chance = random.Random(SEED)
    async with (
        Receiver() as receiver,
        httpx.AsyncClient(timeout=PATIENCE_S) as client,
        Nodes(tmp_path, kafka, env=env) as nodes,
    ):
        receiver.answer(200, b'{"done": true}')
        pool = Pool(nodes, client)
        for path in (*STREAMS, "wake/pool"):
            assert (await pool.ask("PUT", f"/v1/stream/{path}", json=[])).is_success
        wanted = {"pattern": "events/*", "lease_ttl_ms": LEASE_MS}
        pull = {**wanted, "type": "pull-wake", "wake_stream": "wake/pool"}
        hook = {**wanted, "type": "webhook", "webhook": {"url": receiver.url}}
        for name, body in ((PULL, pull), (HOOK, hook)):
            assert (await pool.ask("PUT", f"{SUBSCRIPTIONS}/{name}", json=body)).is_success
        writing = asyncio.create_task(pool.write())
        working = [asyncio.create_task(pool.work(f"worker {number}")) for number in range(3)]
        for _ in range(KILLS):
            await asyncio.sleep(chance.random())
            await chance.choice(nodes.all).restart()
        writing.cancel()
        await nodes.until_ready()

        async def is_all_acked() -> bool:
            streams = [
                stream
                for node in nodes.all
                for name in (PULL, HOOK)
                for stream in (await client.get(f"{node.url}{SUBSCRIPTIONS}/{name}")).json()["streams"]
            ]
            tails = {
                path: (await client.head(f"{nodes.all[0].url}/v1/stream/{path}")).headers["stream-next-offset"]
                for path in STREAMS
            }
            acked = [stream["acked_offset"] == tails[stream["path"]] for stream in streams]
            return len(acked) == 2 * len(nodes.all) * len(STREAMS) and all(acked)

        await eventually(is_all_acked)
        for task in (writing, *working):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        for path in STREAMS:
            assert set(pool.written[path]) <= pool.worked[path]
        assert all(len(holders) == 1 for holders in pool.holders.values()), pool.holders
        assert pool.left_behind
        wakes = [received.json for received in _all_of(receiver)]
        assert len({wake["wake_id"] for wake in wakes}) == len({wake["generation"] for wake in wakes}) > KILLS
        assert await nodes.faults() == []


def _all_of(receiver: Receiver) -> list[Any]:
    return [receiver.requests.get_nowait() for _ in range(receiver.requests.qsize())]
