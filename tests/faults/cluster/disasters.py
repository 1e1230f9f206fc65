"""What may happen to three nodes on three nodes of Kafka, while everybody writes. Each leaves all of them running."""

import asyncio
import random
from collections.abc import Awaitable, Callable

from tests.faults.cluster.nodes import Nodes

Disaster = Callable[[Nodes, random.Random], Awaitable[None]]


async def node_killed(nodes: Nodes, chance: random.Random) -> None:
    """One of ours ends at some moment: between writing and reading, too, or while it starts."""
    node = chance.choice(nodes.all)
    await asyncio.sleep(0.5 * chance.random() ** 2)
    await node.restart()


async def node_paused(nodes: Nodes, chance: random.Random) -> None:
    """One of ours stands still, and goes on with what it knew then."""
    await _node_paused(nodes, chance, 3.0)


async def node_paused_long(nodes: Nodes, chance: random.Random) -> None:
    """For longer than anybody waits for its answers, and Kafka for its requests."""
    await _node_paused(nodes, chance, 20.0)


async def _node_paused(nodes: Nodes, chance: random.Random, pause_s: float) -> None:
    async with nodes.paused(chance.choice(nodes.all)):
        await asyncio.sleep(pause_s)


async def leader_killed(nodes: Nodes, _chance: random.Random) -> None:
    """What Kafka's node had confirmed lives on with the others; what it had not, nobody knows."""
    leader = await nodes.leader()
    nodes.kafka.kill(leader)
    await asyncio.sleep(4.0)  # its session is over
    await asyncio.to_thread(nodes.kafka.start, leader)


async def leader_paused(nodes: Nodes, _chance: random.Random) -> None:
    """Requests that it has in hand come late: others lead by then."""
    await _leader_paused(nodes, 6.0)


async def leader_paused_long(nodes: Nodes, _chance: random.Random) -> None:
    """Longer than every timeout between us and Kafka."""
    await _leader_paused(nodes, 20.0)


async def _leader_paused(nodes: Nodes, pause_s: float) -> None:
    with nodes.kafka.paused(await nodes.leader()):
        await asyncio.sleep(pause_s)


async def majority_killed(nodes: Nodes, chance: random.Random) -> None:
    """Nothing can be confirmed until one is back."""
    two = chance.sample(list(nodes.kafka.nodes), 2)
    nodes.kafka.kill(*two)
    await asyncio.sleep(8.0)
    await asyncio.to_thread(nodes.kafka.start, *two)


async def all_killed(nodes: Nodes, _chance: random.Random) -> None:
    """Kafka as a whole ends, and comes back."""
    nodes.kafka.kill()
    await asyncio.sleep(2.0)
    await asyncio.to_thread(nodes.kafka.start)


SHORT: dict[str, tuple[Disaster, ...]] = {
    "everything once": (node_killed, node_paused, leader_killed),
}
"""What one run is made of, by name."""
LONG: dict[str, tuple[Disaster, ...]] = {
    "KF1 leader killed": (leader_killed,) * 3,
    "KF2 leader paused": (leader_paused, leader_paused_long),
    "KF3 node paused": (node_paused, node_paused_long),
    "KF4 node killed": (node_killed,) * 12,
    "KF8 majority killed": (majority_killed, all_killed),
    "several at once": (node_killed, leader_killed, node_killed, leader_paused, node_paused, node_killed),
}
