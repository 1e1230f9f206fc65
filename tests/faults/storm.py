"""The storm: a broker that is killed at random moments, and what everybody in it shares."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass, field

import anyio

from tests.faults.client import Client
from tests.faults.history import History
from tests.live import Broker

TRAFFIC_S_MAX = 0.3
"""How long the broker is left alone, usually. Squared chance makes most lives a lot shorter."""
LONG_TRAFFIC_S_MAX = 1.2
"""And now and then: long enough for a checkpoint by the clock, and for the sweeper to look around."""
STARTUP_S_MAX = 0.8
PAUSE_S_MAX = 0.03
SETTLE_S_MAX = 30.0


@dataclass
class Storm:
    """Shared by the killer, writers and readers. Every decision comes from `seed` and the name of who decides."""

    client: Client
    history: History
    seed: str
    over: asyncio.Event = field(default_factory=asyncio.Event)
    """Set after the last kill: writers settle what they have begun, and begin nothing more."""
    kills_in_startup: int = 0

    def chance(self, name: str) -> random.Random:
        return random.Random(f"{self.seed}/{name}")

    async def pause(self, chance: random.Random) -> None:
        """Before an attempt is repeated: short, so that a restarted broker is met by everybody at once."""
        await asyncio.sleep(chance.uniform(0.002, PAUSE_S_MAX))

    async def until(self, done: Callable[[], Awaitable[bool]], what: str, wait_s_max: float = SETTLE_S_MAX) -> bool:
        """Ask until it is so; a complaint and False if it never is."""
        with anyio.move_on_after(wait_s_max):
            while not await done():  # noqa: ASYNC110 -- the broker's state is asked for, no event tells it
                await asyncio.sleep(PAUSE_S_MAX)
            return True
        self.history.complain(f"{what}: not within {wait_s_max} s")
        return False


async def weather(
    storm: Storm, disaster: Coroutine[None, None, None], writing: Iterable[Coroutine[None, None, None]]
) -> None:
    """Let it happen while all these write, and wait for them; a complaint if some have no answer long after."""
    try:
        async with asyncio.timeout(None) as patience, asyncio.TaskGroup() as group:
            for one in writing:
                group.create_task(one)
            await disaster
            storm.over.set()
            patience.reschedule(asyncio.get_running_loop().time() + SETTLE_S_MAX)
    except TimeoutError:
        storm.history.complain(f"there are writers without an answer {SETTLE_S_MAX} s after the last fault")


async def kill_again_and_again(storm: Storm, broker: Broker, kills: int) -> None:
    """Kill the broker `kills` times: under traffic, and while it starts; leave it running."""
    chance = storm.chance("killer")
    killed = 0
    storm.client.up.set()
    while killed < kills:
        traffic_s_max = LONG_TRAFFIC_S_MAX if chance.random() < 0.15 else TRAFFIC_S_MAX
        await asyncio.sleep(traffic_s_max * chance.random() ** 2)
        storm.client.up.clear()
        await broker.kill()
        killed += 1
        while killed < kills and chance.random() < 0.2:
            killed += await killed_while_it_starts(broker, STARTUP_S_MAX * chance.random())
            storm.kills_in_startup += 1
        if not broker.is_running:
            await broker.start()
        storm.client.up.set()


async def killed_while_it_starts(broker: Broker, after_s: float) -> int:
    """Start it, and kill it after this time unless it is healthy by then."""
    if broker.is_running:
        await broker.kill()
    with anyio.move_on_after(after_s):
        await broker.start()
    await broker.kill()
    return 1
