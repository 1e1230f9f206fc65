"""What may happen to three nodes on three nodes of Kafka, while everybody writes. Each leaves all of them running."""

import asyncio
import random
from collections.abc import Awaitable, Callable

from tests.faults.cluster.network import BAD
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
    await _leader_killed(nodes, 4.0)  # its session is over


async def leader_killed_long(nodes: Nodes, _chance: random.Random) -> None:
    """It comes back with what it had not confirmed, and far behind."""
    await _leader_killed(nodes, 15.0)


async def _leader_killed(nodes: Nodes, away_s: float) -> None:
    leader = await nodes.leader()
    nodes.kafka.kill(leader)
    await asyncio.sleep(away_s)
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


async def cut_off(nodes: Nodes, chance: random.Random) -> None:
    """One of ours hears nothing of Kafka, and is not heard: for less than anybody waits, and for longer."""
    for cut_s in (3.0, 12.0):
        async with nodes.network.cut(chance.randrange(len(nodes.all))):
            await asyncio.sleep(cut_s)


async def answers_held(nodes: Nodes, chance: random.Random) -> None:
    """What one of ours writes is there, and it does not hear so."""
    async with nodes.network.cut(chance.randrange(len(nodes.all)), to_kafka=False):
        await asyncio.sleep(8.0)


async def requests_held(nodes: Nodes, chance: random.Random) -> None:
    """What one of ours writes comes later than it waits for it, and after what it wrote since."""
    async with nodes.network.cut(chance.randrange(len(nodes.all)), from_kafka=False):
        await asyncio.sleep(8.0)


async def connections_reset(nodes: Nodes, chance: random.Random) -> None:
    """All at once, again and again: nobody knows what has arrived."""
    for _ in range(6):
        nodes.network.reset()
        await asyncio.sleep(chance.uniform(0.2, 1.5))


async def bad_weather(nodes: Nodes, _chance: random.Random) -> None:
    """Everything takes 50 to 500 ms, each way, and a twentieth of it much longer."""
    async with nodes.network.weather(BAD):
        await asyncio.sleep(25.0)


async def leader_killed_in_bad_weather(nodes: Nodes, chance: random.Random) -> None:
    """And all that has to be learnt anew is learnt slowly."""
    async with nodes.network.weather(BAD):
        await leader_killed(nodes, chance)
        await asyncio.sleep(8.0)


async def cut_off_in_bad_weather(nodes: Nodes, chance: random.Random) -> None:
    """Requests of long ago arrive among those of now."""
    async with nodes.network.weather(BAD):
        await requests_held(nodes, chance)
        await answers_held(nodes, chance)


SHORT: dict[str, tuple[Disaster, ...]] = {
    "everything once": (node_killed, node_paused, leader_killed),
}
"""What one run is made of, by name."""
LONG: dict[str, tuple[Disaster, ...]] = {
    "KF1 leader killed": (leader_killed, leader_killed_long, leader_killed),
    "KF2 leader paused": (leader_paused, leader_paused_long),
    "KF3 node paused": (node_paused, node_paused_long),
    "KF4 node killed": (node_killed,) * 12,
    "KF8 majority killed": (majority_killed, all_killed),
    "several at once": (node_killed, leader_killed, node_killed, leader_paused, node_paused, node_killed),
}
FAR: dict[str, tuple[Disaster, ...]] = {
    "KF5 nodes cut off": (cut_off, answers_held, requests_held, connections_reset),
    "KF6 bad weather": (bad_weather, leader_killed_in_bad_weather, cut_off_in_bad_weather),
}
"""And these with a network between."""
