"""Nodes: several brokers over one topic of one Kafka, and what can be done to them."""

import asyncio
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
from aiokafka.admin import AIOKafkaAdminClient

from tests.eventually import eventually
from tests.faults.cluster.network import Network
from tests.faults.cluster.raw_log import Replay, replayed
from tests.faults.cluster.replicas import differences, dumped, paths_in, stored, unlike_the_chain, unlike_the_log
from tests.kafka.cluster import KafkaCluster
from tests.live import Broker, BrokerFailedError

PARTITIONS = 2
HEAL_S_MAX = 30.0
START_WAIT_S_MAX = 60.0
"""Six processes start and end on one machine, and Kafka may be at odds with itself meanwhile."""


class Nodes:
    """Brokers with a data folder and a port each. Entering starts them, leaving kills what still runs.

    With a network, each is at a site of its own, in their order.
    """

    def __init__(
        self,
        path: Path,
        kafka: KafkaCluster,
        count: int = 3,
        env: Mapping[str, str] | None = None,
        network: Network | None = None,
    ) -> None:
        self.kafka = kafka
        self._network = network
        self.env = {**kafka.env(partitions=PARTITIONS), **(env or {})}
        self.topic = self.env["STREAMFOLD_KAFKA_TOPIC"]
        self.all = [
            Broker(path / f"node-{site + 1}", engine="kafka", env=self._env_at(site), start_wait_s_max=START_WAIT_S_MAX)
            for site in range(count)
        ]
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        try:
            await asyncio.gather(*(self._stack.enter_async_context(node) for node in self.all))
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.__aexit__(error_type, error, traceback)

    def _env_at(self, site: int) -> dict[str, str]:
        if self._network is None:
            return self.env
        return {**self.env, "STREAMFOLD_KAFKA_BOOTSTRAP": self._network.bootstrap(site)}

    @property
    def network(self) -> Network:
        """What lies between these and Kafka. Raises RuntimeError where nothing does."""
        if self._network is None:
            raise RuntimeError("these nodes are beside Kafka")
        return self._network

    @property
    def ports(self) -> list[int]:
        return [node.port for node in self.all]

    async def are_ready(self) -> bool:
        """Whether each of them welcomes requests."""
        async with httpx.AsyncClient(timeout=5.0) as client:
            with suppress(httpx.TransportError):
                return all([(await client.get(f"{node.url}/ready")).is_success for node in self.all])
        return False

    async def until_ready(self) -> None:
        """Raises TimeoutError when some node still does not serve long after all should."""
        await eventually(self.are_ready, HEAL_S_MAX)

    @asynccontextmanager
    async def paused(self, node: Broker) -> AsyncIterator[None]:
        """Freeze a node: its connections stay, answers do not come."""
        process = node.pid
        node.send(signal.SIGSTOP)
        try:
            yield
        finally:
            if node.is_running and node.pid == process:
                node.send(signal.SIGCONT)

    async def leader(self, partition: int = 0) -> int:
        """The node of Kafka that leads a partition."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self.kafka.bootstrap)
        await admin.start()
        try:
            (described,) = await admin.describe_topics([self.topic])
            (leader,) = [part["leader"] for part in described["partitions"] if part["partition"] == partition]
            return int(leader)
        finally:
            await admin.close()

    # -- the audit ---------------------------------------------------------------------------------------------------

    async def replayed(self) -> list[Replay]:
        """The log, replayed."""
        return await replayed(self.kafka.bootstrap, self.topic, PARTITIONS)

    async def faults(self, *, has_lost: bool = False) -> list[str]:
        """What is wrong with what these nodes serve, when nobody writes any more: each of them, and all together.

        `has_lost`: whether Kafka was made to lose what it had confirmed.
        """
        replays = await self.replayed()
        losses = [] if has_lost else [loss for replay in replays for loss in replay.losses]
        paths = paths_in(replays)
        dumps = {node.data_dir.name: await dumped(node.url, paths) for node in self.all}
        unlike = [f"{name}: {one}" for name, dump in dumps.items() for one in unlike_the_log(replays, dump)]
        return [*differences(dumps), *unlike, *losses]

    async def stored_faults(self) -> list[str]:
        """What is wrong with what these nodes have stored; stops them."""
        left = await asyncio.gather(*(node.stop() for node in self.all))
        found = [f"{node.data_dir.name} left with {it}" for node, it in zip(self.all, left, strict=True) if it]
        for partition, replay in enumerate(await self.replayed()):
            for node in self.all:
                store = stored(node.data_dir, partition)
                wrong = [] if store is None else unlike_the_chain(replay, store)
                found += [f"{node.data_dir.name}, partition {partition}: {one}" for one in wrong]
        return found


async def refusals(node: Broker) -> str:
    """Start it until it starts, and what it says before: each partition may refuse to go on with its store."""
    told = ""
    for _ in range(PARTITIONS + 1):
        try:
            await node.start()
        except BrokerFailedError as error:
            told += str(error)
        else:
            return told
    raise AssertionError(told)
