"""Who is woken, in the simulation: subscriptions that come and go, workers that claim, receivers of webhooks.

They die at any place of it, as workers do: what they leave is another one's once their lease has run out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import NamedTuple, TypeVar

import msgspec

from broker.core.entry import Entry, Place
from broker.core.outcome import Outcome, Result
from broker.core.state import Subscription
from broker.core.subscription import PULL_WAKE, pending_tails
from broker.errors import BrokerError
from broker.partitions import Partitioned
from broker.wakes import WebhookBody
from broker.webhooks import DeliveryFailed
from tests.broker.core import entries
from tests.simulator.clients import Clients
from tests.simulator.history import Claim
from tests.simulator.node import Node

T = TypeVar("T")
WAKE = "wake"
"""The stream that pull-wakes are told in."""
LEASES_MS = (1_000, 3_000)


class Held(NamedTuple):
    """A wake that a worker has, as it was told of it."""

    subscription: Subscription
    generation: int
    wake_id: str


class Workers:
    """What all of a schedule share."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients
        self.names = [clients.name("sub"), clients.name("sub")]
        self._at_work: set[asyncio.Task[None]] = set()

    async def subscribe(self, name: str) -> None:
        """Make a subscription; perhaps it goes, and comes again as another one."""
        clients, rng = self._clients, self._clients.rng
        if rng.random() < 0.7:
            await clients.attempt(entries.create(path=WAKE))
        pattern, wake_stream = rng.choice(("*", "**", "a")), rng.choice((WAKE, WAKE, ""))
        lease_ms = rng.choice(LEASES_MS)
        for _ in range(rng.choice((1, 1, 2))):
            await clients.pause(2.0)
            entry = entries.subscribe(subscription=name, wake_stream=wake_stream, pattern=pattern, lease_ms=lease_ms)
            await self._ask(partial(_subscribe, entry))
            if rng.random() < 0.2:
                await clients.pause(4.0)
                await self._ask(lambda _, partition: partition.propose(entries.unsubscribe(subscription=name)))

    async def work(self, name: str) -> None:
        """Claim what there is to do, do it, or die."""
        clients, worker = self._clients, self._clients.name("worker")
        for _ in range(clients.rng.randint(2, 6)):
            await clients.pause(2.0)
            held = await self._claim(name, worker)
            if held is not None and clients.rng.random() < 0.8:
                await self._process(held)

    async def deliver(self, _: str, body: bytes) -> bool:
        """Be a receiver: as `Webhooks.deliver`."""
        rng = self._clients.rng
        await self._clients.pause(0.1)
        if rng.random() < 0.3:
            raise DeliveryFailed("the receiver says 503")
        if rng.random() < 0.5:
            return True
        told = msgspec.json.decode(body, type=WebhookBody)
        task = asyncio.create_task(self._call_back(told))
        self._at_work.add(task)
        task.add_done_callback(self._at_work.discard)
        return False

    async def _call_back(self, told: WebhookBody) -> None:
        subscription = await self._known(told.subscription_id)
        if subscription is not None and subscription.generation == told.generation:
            await self._process(Held(subscription, told.generation, told.wake_id))

    async def _known(self, name: str) -> Subscription | None:
        async def look(_: Node, partition: Partitioned) -> Subscription | None:
            return partition.subscriptions.get(name)

        return await self._ask(look)

    async def _claim(self, name: str, worker: str) -> Held | None:
        async def claim(node: Node, partition: Partitioned) -> Outcome | None:
            subscription = partition.subscriptions.get(name)
            if subscription is None or subscription.delivery != PULL_WAKE:
                return None
            tails = await _pending(node, name, subscription)
            return await partition.propose(entries.claim(worker, *tails, subscription=name))

        told = await self._ask(claim)
        if told is None or told.result is Result.REFUSED or told.subscription is None or told.subscription.wake is None:
            return None
        subscription, wake = told.subscription, told.subscription.wake
        self._clients.history.claims.append(Claim(name, subscription.birth, subscription.generation, worker))
        return Held(subscription, subscription.generation, wake.wake_id)

    async def _process(self, held: Held) -> None:
        """Read what is pending, and say how far: at once, or with a sign of life before."""
        clients, acks = self._clients, list[Place]()
        for link in held.subscription.links:
            try:
                page = await clients.read((link.path, link.incarnation), link.acked) if link.wake_tail else None
            except BrokerError:
                continue
            if page is not None and page.records:
                acks.append((link.path, link.incarnation, link.acked + len(page.records)))
        if clients.rng.random() < 0.3:
            await self._ack(held, acks[:1], done=False)
            await clients.pause(1.5)
        await self._ack(held, acks, done=True)

    async def _ack(self, held: Held, acks: list[Place], *, done: bool) -> None:
        known = held.subscription
        entry = entries.ack(
            held.generation, held.wake_id, *acks, subscription=known.subscription_id, done=done, birth=known.birth
        )
        await self._ask(lambda _, partition: partition.propose(entry))

    async def _ask(self, ask: Callable[[Node, Partitioned], Awaitable[T]]) -> T | None:
        """Any node; None when there was no answer that says anything."""
        node = self._clients.rng.choice(self._clients.nodes)
        try:
            return await node.call(lambda partition: ask(node, partition))
        except BrokerError:
            return None


async def _subscribe(entry: Entry, node: Node, partition: Partitioned) -> None:
    """As the API does."""
    made = (await partition.propose(entry)).subscription
    if made is not None and not made.linked and node.waker is not None:
        await node.waker.link_existing(made)


async def _pending(node: Node, name: str, subscription: Subscription) -> tuple[Place, ...]:
    if node.waker is None:
        return ()
    await node.waker.settle(name)
    return pending_tails(subscription, await node.waker.streams(subscription))


async def forgotten(node: Node, partition: Partitioned) -> list[str]:
    """Subscriptions that have work, and that nobody wakes. To be asked of a node that has applied all."""
    if node.waker is None:
        return []
    found = []
    for name, subscription in partition.subscriptions.items():
        linked = {link.path for link in subscription.links}
        # Else its maker was told of no success, and is to ask again: then what was there before joins at its tail.
        pattern = subscription.pattern if subscription.linked else ""
        covered = await node.waker.matching(pattern, subscription.wake_stream, 1_000) if pattern else []
        unlinked = [path for path in covered if path not in linked and await _has_content(partition, path)]
        if unlinked or (subscription.wake is None and await _pending(node, name, subscription)):
            found.append(name)
    return found


async def _has_content(partition: Partitioned, path: str) -> bool:
    stream = await partition.stream(path)
    return stream is not None and not stream.deleted and stream.tail > stream.begin
