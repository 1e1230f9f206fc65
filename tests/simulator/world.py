"""A schedule: nodes over one log, clients, and all that goes wrong, drawn from a seed.

In one of eight the log loses records that it had confirmed: see `losses`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any, NamedTuple
from unittest.mock import patch

from broker import limits
from broker.errors import BrokerError, EngineStopped, StartError
from broker.partitions import Partitioned
from tests.broker.core import entries
from tests.simulator.checks import check
from tests.simulator.clients import Clients
from tests.simulator.disk import Disk, Platter, Tray
from tests.simulator.history import History
from tests.simulator.log import COPY_S_MAX, Truth
from tests.simulator.loop import Loop, Process
from tests.simulator.losses import Losses, loses
from tests.simulator.node import Node, Replica, Shared
from tests.simulator.place import SharedPlace
from tests.simulator.workers import Workers, forgotten

HEAL_S = 30.0
"""KI17: after the last fault everything goes again within this."""

PARTITIONS = (1, 1, 1, 1, 2)
SUBSCRIBED = 0.2
"""How many schedules have subscriptions."""
PLATTERS = 0.125
"""How many schedules have SQLite on their nodes' disks: see `disk`."""
SCRATCH = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 -- memory, for files of a moment
Told = tuple[float, tuple[object, ...]]
"""When, and what: see `World.say`."""

SNAPSHOT_PACE = {
    "SNAPSHOT_LOOK_S": 0.5,
    "SNAPSHOT_ANNOUNCE_S": 1.0,
    "SNAPSHOT_PATIENCE_S": 0.5,
    "SNAPSHOT_RETRY_S": 0.5,
}


class Run(NamedTuple):
    """What became of a schedule."""

    seed: int
    violations: list[str]
    told: list[Told]

    @property
    def trace(self) -> list[str]:
        """What happened, line by line."""
        return [f"{at_s:10.4f} {' '.join(map(str, facts))}" for at_s, facts in self.told]


def run(seed: int) -> Run:
    """Run the schedule of a seed. The same seed makes the same trace, in any process, on any machine."""
    loop = Loop()  # type: ignore[abstract]  # nobody here asks for sockets, signals and processes
    with tempfile.TemporaryDirectory(dir=SCRATCH) as scratch, _chance(seed, loop):
        world = World(seed, loop, Path(scratch))
        try:
            loop.run(world.main())
        except Exception as error:  # noqa: BLE001 -- whatever it is, this seed is the one to look at
            world.history.violated("KI17", f"the schedule ends with {error!r}")
        finally:
            loop.bury(world.processes)
        for uncaught in loop.errors:
            world.history.violated("KI17", f"nobody caught {uncaught}")
        world.drop()
        return Run(seed, world.history.violations, world.told)


@contextmanager
def _chance(seed: int, loop: Loop) -> Iterator[None]:
    """All chance from the seed, what the broker draws for itself too; time is the loop's."""
    drawn, state = Random(f"broker {seed}"), random.getstate()
    random.seed(seed)
    logging.disable(logging.CRITICAL)
    try:
        # Nodes look after what is overdue once a second: at their usual pace idle time would cost more than the rest.
        # And snapshots are made as often as a schedule of some seconds can have them.
        with (
            patch.object(os, "urandom", drawn.randbytes),
            patch.object(random, "Random", lambda: Random(drawn.getrandbits(64))),
            patch.object(os, "fsync", lambda _: None),  # nobody here loses power
            patch.object(asyncio, "sleep", loop.sleep),
            patch.object(asyncio, "get_running_loop", lambda: loop),  # asyncio's own asks the system for the process
            patch("broker.sweeper.TICK_S", 1.0),
            patch("broker.journal.cluster.TICK_S", 0.5),
            patch("broker.waker.TICK_S", 1.0),
            patch.dict(vars(limits), SNAPSHOT_PACE),
        ):
            yield
    finally:
        logging.disable(logging.NOTSET)
        random.setstate(state)


class World:
    """See the module."""

    def __init__(self, seed: int, loop: Loop, scratch: Path) -> None:
        self.rng = Random(seed)
        self.told: list[Told] = []
        self.loop = loop
        self.history = History(self.say)
        self.logs = [self._log(number) for number in range(self.rng.choice(PARTITIONS))]
        self._new_disk: Callable[[], Disk] = Platter if self.rng.random() < PLATTERS else Tray
        self.nodes = [self._node(f"n{i}", scratch / f"n{i}") for i in range(self.rng.choice((2, 2, 3, 3, 4)))]
        self.clients = Clients(self.nodes, self.history, self.rng, self.say)
        self.losses = Losses(seed, self.nodes, self.logs, self.history) if loses(seed) else None
        self.workers = Workers(self.clients) if self.rng.random() < SUBSCRIBED else None
        for node in self.nodes:
            node.deliver = self.workers.deliver if self.workers is not None else None
        self.processes: list[Process] = []
        self._disks: list[Disk] = []
        self._busy: set[str] = set()  # nodes that are being started or stopped
        self._background: list[asyncio.Task[None]] = []

    def _log(self, number: int) -> Shared:
        truth = Truth(self.loop, self.rng, self.say)
        place = SharedPlace(self.loop, self.rng, self.rng.choice((1_000, 4_000, 16_000)))
        shared = Shared(number, truth, place, {})
        place.parted = lambda boot: shared.boots[boot].parts_at
        truth.trimmed = lambda position: self._trimmed(shared, position)
        return shared

    def _node(self, name: str, scratch: Path) -> Node:
        replicas = [
            Replica(shared, self.rng, self._new_disk(), scratch.with_name(f"{name}-{shared.number}"))
            for shared in self.logs
        ]
        return Node(name, self.loop, self.history, self.rng, replicas)

    def say(self, *facts: object) -> None:
        """A line of the trace."""
        self.told.append((self.loop.time(), facts))

    def drop(self) -> None:
        """Let go of all disks."""
        for disk in (*self._disks, *(replica.disk for node in self.nodes for replica in node.replicas)):
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
        disks = [(node.name, replica.shared.number, replica.disk) for node in self.nodes for replica in node.replicas]
        check(self.history, [shared.truth.branches for shared in self.logs], disks)

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
        if self.workers is not None:
            drawn += map(self.workers.subscribe, self.workers.names)
            drawn += [self.workers.work(rng.choice(self.workers.names)) for _ in range(rng.randint(1, 3))]
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
        for _ in self.logs:
            self._faults(rng.choice(self.nodes))
        if self.losses is not None:
            self._background.append(asyncio.create_task(self.losses.run()))
        while self.loop.time() < until and not all(task.done() for task in working):
            await asyncio.sleep(rng.random() * 1.5)
            node = rng.choice(self.nodes)
            if troubles and node.name not in self._busy:
                rng.choice(troubles)(node)
            self._look_after_nodes()

    def _faults(self, _: Node) -> None:
        shared = self.rng.choice(self.logs)
        shared.truth.faulty = self.rng.choice((0.0, 0.1, 0.3, 0.6))
        self.say("faults", shared.number, shared.truth.faulty)

    def _lag(self, node: Node) -> None:
        replica = self.rng.choice(node.replicas)
        replica.road.lag_s = self.rng.choice((0.0, 0.2, 2.0))
        self.say("lag", node.name, replica.shared.number, replica.road.lag_s)

    def _depose(self, node: Node) -> None:
        """The server that a node reads from was frozen, and does not know for a while that it leads no more."""
        replica = self.rng.choice(node.replicas)
        road, end = replica.road, replica.shared.truth.end
        road.depose(self.rng.choice((None, end, max(0, end - 5))))
        road.lag_s = 0.0 if road.old_end is None else 2.0
        self.say("old end", node.name, replica.shared.number, road.old_end)

    def _clock(self, _: Node) -> None:
        shared = self.rng.choice(self.logs)
        shared.truth.clock_ms += self.rng.choice((-20_000, -3_000, -10, 2_500, 15_000))
        self.say("clock", shared.number, shared.truth.now_ms)

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
        shared = self.rng.choice(self.logs)
        self.say("damage", shared.number, shared.place.damage())

    def _place(self, _: Node) -> None:
        place = self.rng.choice(self.logs).place
        place.fails = True
        self.say("place fails")
        self._background.append(asyncio.create_task(self._after(self.rng.random() * 4, self._place_answers(place))))

    async def _place_answers(self, place: SharedPlace) -> None:
        place.fails = False
        self.say("place answers")

    def _trimmed(self, shared: Shared, position: int) -> None:
        """KI15. Whoever trims, and whatever it believes: two snapshots were read that have what the log forgets."""
        proven = shared.place.proven_positions(within_s=2 * COPY_S_MAX)  # a trim may be late, as anything else
        if len(proven) < 2 or position > proven[1]:
            self.history.violated("KI15", f"the log begins at {position}, and whole snapshots end at {proven}")

    def _look_after_nodes(self) -> None:
        """Whoever runs nodes starts one again whose engine has stopped."""
        for node in self.nodes:
            stopped = node.partition is not None and node.has_failed(node.partition)
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
        self._note_crash(node)
        if loses_disk:
            for replica in node.replicas:
                self._replace_disk(replica)
        await asyncio.sleep(self.rng.random() * 3)
        await self._boot(node)

    def _note_crash(self, node: Node) -> None:
        for replica in node.replicas:
            index, _ = replica.disk.head()
            self.history.crashes.append((node.name, (replica.shared.number, index), replica.disk.dump()))

    async def _stop_and_boot(self, node: Node) -> None:
        self.say("stop", node.name)
        await node.stop()
        self._note_crash(node)
        await self._boot(node)

    async def _freeze_and_thaw(self, node: Node) -> None:
        self.say("freeze", node.name)
        node.process.frozen = True
        await asyncio.sleep(self.rng.random() * self.rng.choice((1.0, 6.0)))
        self.say("thaw", node.name)
        self.loop.thaw(node.process)

    async def _boot(self, node: Node) -> None:
        for _ in range(20):
            self._set_aside(node)
            starting = node.start()
            self.processes.append(node.process)
            try:
                await starting
            except (StartError, EngineStopped) as error:
                self.say("cannot start", node.name, error)
                node.kill()
                await asyncio.sleep(0.5)
            else:
                self.say("up", node.name, [replica.disk.head() for replica in node.replicas])
                return
        is_trimmed = any(shared.truth.first for shared in self.logs)
        self.history.violated("KI15" if is_trimmed else "KI17", f"{node.name} does not start any more")

    def _set_aside(self, node: Node) -> None:
        for replica in node.replicas:
            if replica.is_quarantined:
                self._replace_disk(replica)

    def _replace_disk(self, replica: Replica) -> None:
        self._disks.append(replica.replace(self._new_disk()))

    # -- the end of it -----------------------------------------------------------------------------------------------

    async def _heal(self) -> None:
        self.say("heal")
        self.clients.patience = 0.1
        if self.losses is not None:
            self.losses.are_over = True
        for shared in self.logs:
            shared.truth.faulty = 0.0
        for node in self.nodes:
            node.store_delay_s = 0.0
            for replica in node.replicas:
                replica.road.lag_s, replica.road.old_end = 0.0, None
        for task in self._background:
            await task
        for shared in self.logs:
            await shared.truth.all_arrived.wait()

    async def _settle(self) -> None:
        """KI17: every node takes writes and has applied all that there is."""
        until = self.loop.time() + HEAL_S
        while not await self._all_agree():
            if self.loop.time() > until:
                stand = [(node.name, node.partition and _standing(node.partition)) for node in self.nodes]
                self.history.violated("KI17", f"the nodes do not come to rest: {stand}")
                return
            self._look_after_nodes()
            await asyncio.sleep(0.5)

    async def _all_agree(self) -> bool:
        try:
            for node in self.nodes:
                await node.call(lambda partition: partition.propose(entries.noop()))
            if self.workers is not None and not await _all_are_woken(self.nodes[0]):
                return False
            for node in self.nodes:
                node.rest()
            for node in self.nodes:
                await node.call(lambda partition: partition.catch_up())
        except BrokerError as error:
            self.say("not yet", error)
            return False
        standing = {_standing(node.partition) for node in self.nodes if node.partition}
        return len(standing) == 1 and next(iter(standing))[1] == 0


async def _all_are_woken(node: Node) -> bool:
    await node.call(lambda partition: partition.catch_up())
    return not await node.call(lambda partition: forgotten(node, partition))


def _standing(partition: Partitioned) -> tuple[tuple[int, ...], int]:
    return tuple(partition.applied_indexes), partition.in_flight


__all__ = ["Run", "run"]
