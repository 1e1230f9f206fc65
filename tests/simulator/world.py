"""A schedule: nodes over one log, clients, and all that goes wrong, drawn from a seed."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import tempfile
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any, NamedTuple
from unittest.mock import patch

from broker import limits
from broker.errors import BrokerError, EngineStopped, StartError
from tests.broker.core import entries
from tests.simulator.checks import check, disk_dump
from tests.simulator.clients import Clients
from tests.simulator.history import History
from tests.simulator.log import COPY_S_MAX, Truth
from tests.simulator.loop import Loop, Process, Stuck
from tests.simulator.node import Disk, Node
from tests.simulator.place import SharedPlace

HEAL_S = 30.0
"""KI17: after the last fault everything goes again within this."""

SNAPSHOT_PACE = {
    "SNAPSHOT_LOOK_S": 0.25,
    "SNAPSHOT_ANNOUNCE_S": 1.0,
    "SNAPSHOT_PATIENCE_S": 0.5,
    "SNAPSHOT_RETRY_S": 0.5,
}


class Run(NamedTuple):
    """What became of a schedule."""

    seed: int
    violations: list[str]
    trace: list[str]


def run(seed: int) -> Run:
    """Run the schedule of a seed. The same seed makes the same trace, in any process, on any machine."""
    with tempfile.TemporaryDirectory() as scratch, _chance(seed):
        world = World(seed, Path(scratch))
        try:
            world.loop.run(world.main())
        except Stuck as error:
            world.history.violated("KI17", str(error))
        finally:
            world.loop.bury(world.processes)
        for uncaught in world.loop.errors:
            world.history.violated("KI17", f"nobody caught {uncaught}")
        world.drop()
        return Run(seed, world.history.violations, world.trace)


@contextmanager
def _chance(seed: int) -> Iterator[None]:
    """All chance from the seed: what the broker draws for itself, too."""
    drawn, state = Random(f"broker {seed}"), random.getstate()
    random.seed(seed)
    logging.disable(logging.CRITICAL)
    try:
        # Nodes look after what is overdue once a second: at their usual pace idle time would cost more than the rest.
        # And snapshots are made as often as a schedule of some seconds can have them.
        with (
            patch.object(os, "urandom", drawn.randbytes),
            patch("broker.sweeper.TICK_S", 1.0),
            patch.dict(vars(limits), SNAPSHOT_PACE),
        ):
            yield
    finally:
        logging.disable(logging.NOTSET)
        random.setstate(state)


class World:
    """See the module."""

    def __init__(self, seed: int, scratch: Path) -> None:
        self.rng = Random(seed)
        self.trace: list[str] = []
        self.loop = Loop()  # type: ignore[abstract]  # nobody here asks for sockets, signals and processes
        self.history = History(self.say)
        self.truth = Truth(self.loop, self.rng, self.say)
        self.truth.trimmed = self._trimmed
        self.place = SharedPlace(self.loop, self.rng, self.rng.choice((1_000, 4_000, 16_000)))
        count = self.rng.choice((2, 2, 3, 3, 4))
        facts = self.loop, self.truth, self.history, self.rng, self.place
        self.nodes = [Node(f"n{i}", *facts, scratch / f"n{i}") for i in range(count)]
        self.clients = Clients(self.nodes, self.history, self.rng, self.say)
        self.processes: list[Process] = []
        self._disks: list[Disk] = []
        self._busy: set[str] = set()  # nodes that are being started or stopped
        self._background: list[asyncio.Task[None]] = []

    def say(self, *facts: object) -> None:
        """A line of the trace."""
        self.trace.append(f"{self.loop.time():10.4f} " + " ".join(map(str, facts)))

    def drop(self) -> None:
        """Let go of all disks."""
        for disk in (*self._disks, *(node.disk for node in self.nodes)):
            disk.drop()

    async def main(self) -> None:
        for node in self.nodes:
            await self._boot(node)
        working = [asyncio.create_task(client) for client in self._drawn_clients()]
        await self._trouble(working)
        await self._heal()
        for task in working:
            await task
        await self._settle()
        await asyncio.gather(*(node.stop() for node in self.nodes))
        check(self.history, self.truth, [(node.name, node.disk) for node in self.nodes])

    def _drawn_clients(self) -> list[Coroutine[Any, Any, None]]:
        clients, rng = self.clients, self.rng
        drawn: list[Coroutine[Any, Any, None]] = [clients.live_and_die(rng.choice(clients.paths))]
        drawn += [clients.create(path) for path in clients.paths]
        for _ in range(rng.randint(2, 5)):
            path, kind = rng.choice(clients.paths), rng.random()
            if kind < 0.5:
                producer_id = clients.name("p")
                drawn.append(clients.produce(path, producer_id, 0))
                if rng.random() < 0.3:
                    drawn.append(self._after(rng.random() * 4, clients.produce(path, producer_id, 1)))
            elif kind < 0.65:
                drawn.append(clients.append_plainly(path))
            elif kind < 0.75:
                drawn.append(self._after(rng.random() * 3, clients.fork(path)))
            else:
                drawn.append(clients.talk("sessions/s"))
        drawn += [clients.follow(rng.choice([*clients.paths, "sessions/s"])) for _ in range(rng.randint(0, 2))]
        return drawn

    async def _after(self, delay_s: float, client: Coroutine[Any, Any, None]) -> None:
        await asyncio.sleep(delay_s)
        await client

    # -- trouble -----------------------------------------------------------------------------------------------------

    async def _trouble(self, working: list[asyncio.Task[None]]) -> None:
        rng, until = self.rng, self.loop.time() + self.rng.choice((4.0, 10.0, 20.0))
        troubles = [self._faults, self._faults, self._lag, self._clock, self._kill, self._freeze, self._slow_store]
        troubles += [self._restart, self._damage, self._place, self._lose_disk, self._depose]
        troubles = [trouble for trouble in troubles if rng.random() < 0.7]
        self._faults(rng.choice(self.nodes))
        while self.loop.time() < until and not all(task.done() for task in working):
            await asyncio.sleep(rng.random() * 1.5)
            node = rng.choice(self.nodes)
            if troubles and node.name not in self._busy:
                rng.choice(troubles)(node)
            self._look_after_nodes()

    def _faults(self, _: Node) -> None:
        self.truth.faulty = self.rng.choice((0.0, 0.1, 0.3, 0.6))
        self.say("faults", self.truth.faulty)

    def _lag(self, node: Node) -> None:
        node.road.lag_s = self.rng.choice((0.0, 0.2, 2.0))
        self.say("lag", node.name, node.road.lag_s)

    def _depose(self, node: Node) -> None:
        """The server that a node reads from was frozen, and does not know for a while that it leads no more."""
        node.road.old_end = self.rng.choice((None, self.truth.end, max(0, self.truth.end - 5)))
        node.road.lag_s = 0.0 if node.road.old_end is None else 2.0
        self.say("old end", node.name, node.road.old_end)

    def _clock(self, _: Node) -> None:
        self.truth.clock_ms += self.rng.choice((-20_000, -3_000, -10, 2_500, 15_000))
        self.say("clock", self.truth.now_ms)

    def _slow_store(self, node: Node) -> None:
        node.store_delay_s = self.rng.choice((0.0, 0.1, 1.0))

    def _kill(self, node: Node) -> None:
        self._later(node, self._kill_and_boot(node))

    def _restart(self, node: Node) -> None:
        self._later(node, self._stop_and_boot(node))

    def _freeze(self, node: Node) -> None:
        self._later(node, self._freeze_and_thaw(node))

    def _lose_disk(self, node: Node) -> None:
        if self.rng.random() < 0.5:
            self._later(node, self._kill_and_boot(node, loses_disk=True))

    def _damage(self, _: Node) -> None:
        self.say("damage", self.place.damage())

    def _place(self, _: Node) -> None:
        self.place.fails = True
        self.say("place fails")
        self._background.append(asyncio.create_task(self._after(self.rng.random() * 4, self._place_answers())))

    async def _place_answers(self) -> None:
        self.place.fails = False
        self.say("place answers")

    def _trimmed(self, position: int) -> None:
        """KI15. Whoever trims, and whatever it believes: two snapshots were read that have what the log forgets."""
        proven = self.place.proven_positions(within_s=2 * COPY_S_MAX)  # a trim may be late, as anything else
        if len(proven) < 2 or position > proven[1]:
            self.history.violated("KI15", f"the log begins at {position}, and whole snapshots end at {proven}")

    def _look_after_nodes(self) -> None:
        """Whoever runs nodes starts one again whose engine has stopped."""
        for node in self.nodes:
            stopped = node.partition is not None and node.partition.failure is not None
            if stopped and node.name not in self._busy:
                self._later(node, self._kill_and_boot(node))

    def _later(self, node: Node, work: Coroutine[Any, Any, None]) -> None:
        self._busy.add(node.name)

        async def do() -> None:
            try:
                await work
            finally:
                self._busy.discard(node.name)

        self._background.append(asyncio.create_task(do()))

    async def _kill_and_boot(self, node: Node, *, loses_disk: bool = False) -> None:
        self.say("kill", node.name, "and its disk" if loses_disk else "")
        node.kill()
        self.history.crashes.append((node.name, *disk_dump(node.disk)))
        if loses_disk:
            self._replace_disk(node)
        await asyncio.sleep(self.rng.random() * 3)
        await self._boot(node)

    async def _stop_and_boot(self, node: Node) -> None:
        self.say("stop", node.name)
        await node.stop()
        self.history.crashes.append((node.name, *disk_dump(node.disk)))
        await self._boot(node)

    async def _freeze_and_thaw(self, node: Node) -> None:
        self.say("freeze", node.name)
        node.process.frozen = True
        await asyncio.sleep(self.rng.random() * self.rng.choice((1.0, 6.0)))
        self.say("thaw", node.name)
        self.loop.thaw(node.process)

    async def _boot(self, node: Node) -> None:
        for _ in range(20):
            starting = node.start()
            self.processes.append(node.process)
            try:
                await starting
            except (StartError, EngineStopped) as error:
                self.say("cannot start", node.name, error)
                node.kill()
                if node.quarantined:
                    node.quarantined = False
                    self._replace_disk(node)
                await asyncio.sleep(0.5)
            else:
                self.say("up", node.name, node.disk.head())
                return
        self.history.violated("KI15" if self.truth.first else "KI17", f"{node.name} does not start any more")

    def _replace_disk(self, node: Node) -> None:
        self._disks.append(node.disk)
        node.disk = Disk()

    # -- the end of it -----------------------------------------------------------------------------------------------

    async def _heal(self) -> None:
        self.say("heal")
        self.truth.faulty = 0.0
        for node in self.nodes:
            node.road.lag_s = node.store_delay_s = 0.0
            node.road.old_end = None
        for task in self._background:
            await task
        await asyncio.sleep(COPY_S_MAX)  # whatever was on the road has come

    async def _settle(self) -> None:
        """KI17: every node takes writes and has applied all that there is."""
        until = self.loop.time() + HEAL_S
        while not await self._all_agree():
            if self.loop.time() > until:
                stand = [
                    (n.name, n.partition and (n.partition.applied_index, n.partition.in_flight)) for n in self.nodes
                ]
                self.history.violated("KI17", f"the nodes do not come to rest: {stand}")
                return
            self._look_after_nodes()
            await asyncio.sleep(0.5)

    async def _all_agree(self) -> bool:
        try:
            for node in self.nodes:
                await node.call(lambda partition: partition.propose(entries.noop()))
            for node in self.nodes:
                node.sweeping.cancel()
                node.making.cancel()
            for node in self.nodes:
                await node.call(lambda partition: partition.catch_up())
        except BrokerError as error:
            self.say("not yet", error)
            return False
        standing = {(node.partition.applied_index, node.partition.in_flight) for node in self.nodes if node.partition}
        return len(standing) == 1 and next(iter(standing))[1] == 0


__all__ = ["Run", "run"]
