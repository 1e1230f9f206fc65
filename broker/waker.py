"""The waker: links streams that come to match, wakes subscriptions that have work, and delivers (PROTOCOL.md 6, 7).

It watches; entries decide (`core.subscription`). What it remembers besides the rows are notes of what to look at, and a
crash takes them: so at a start every subscription is looked at, and streams that match and were not linked are searched
for. Leases are the sweeper's.

An append costs nothing here while there are no subscriptions, and with some of them one look-up: which of them a path
concerns is worked out once.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Final

from broker import limits
from broker.core.entry import (
    AckOptions,
    AttemptOptions,
    Entry,
    Kind,
    LinkOptions,
    Place,
    encode_options,
)
from broker.core.glob import glob
from broker.core.outcome import Outcome, Result
from broker.core.state import Stream, Subscription, Wake
from broker.core.subscription import WEBHOOK, matches, pending_tails
from broker.errors import BrokerError
from broker.partitions import Partitioned
from broker.signing import Signing, Token
from broker.wakes import wake_entry, webhook_body
from broker.webhooks import DeliveryFailed, Webhooks
from consumer.wire import Code

log = logging.getLogger("streamfold.waker")

TICK_S: Final = 0.1
"""How often attempts are looked at that may be due: well below the shortest delay."""
PUT_OFF_S: Final = 1.0
"""How long the partition is left alone by what it has just refused."""
LINK_STEP: Final = 250
"""Streams linked by one entry."""
PATHS_MAX: Final = 10_000
"""Paths of which it is remembered whom they concern."""


class Counts:
    """Plain numbers for the metrics to read."""

    def __init__(self) -> None:
        self.attempts = 0
        self.failures = 0
        self.links_refused = 0


class _Notes:
    """What is to be looked at of one subscription."""

    __slots__ = ("delivering_generation", "explicit", "failed_generation", "linked", "links", "moved_path")

    def __init__(self) -> None:
        self.links: dict[str, tuple[int, int]] = {}  # to be made: path → (incarnation, position)
        self.linked: frozenset[str] | None = None  # the paths of its links; None before somebody asks
        self.explicit: frozenset[str] = frozenset()
        self.moved_path = ""  # the stream that moved last
        self.delivering_generation = 0  # whose delivery is under way
        self.failed_generation = 0  # the newest of which an attempt failed in this process


class Waker:
    """Runs beside a partition, and is its `subscribers`; `run` until cancelled."""

    def __init__(
        self,
        partition: Partitioned,
        signing: Signing,
        webhooks: Webhooks,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.counts = Counts()
        self._partition = partition
        self._signing = signing
        self._webhooks = webhooks
        self._monotonic = monotonic
        self._chance = random.Random()  # noqa: S311 -- spreads retries; hides nothing
        self._notes: dict[str, _Notes] = {}
        self._births: dict[str, int] = {}
        self._concerned: dict[str, tuple[str, ...]] = {}  # path → ids of those whose pattern or explicit link names it
        self._due: dict[str, None] = {}  # ids to look at, oldest first
        self._put_off: set[str] = set()  # ids to look at again …
        self._put_off_until = float("-inf")  # … when it is so late
        self._something_due = asyncio.Event()
        self._looked_at = float("-inf")
        partition.subscribers = self

    # -- as the partition tells it ---------------------------------------------------------------------------------

    def changed(self, subscription_id: str) -> None:
        """As in `Subscribers`."""
        subscription = self._partition.subscriptions.get(subscription_id)
        if subscription is None:
            self._notes.pop(subscription_id, None)
            self._births.pop(subscription_id, None)
            self._concerned.clear()
            return
        if self._births.get(subscription_id) != subscription.birth:
            self._births[subscription_id] = subscription.birth
            self._notes[subscription_id] = _Notes()
            self._concerned.clear()
        notes = self._notes[subscription_id]
        notes.linked = None
        explicit = frozenset(link.path for link in subscription.links if link.explicit)
        if explicit != notes.explicit:
            notes.explicit = explicit
            self._concerned.clear()
        self._look_at(subscription_id)

    def moved(self, path: str, incarnation: int, start: int) -> None:
        """As in `Subscribers`."""
        for subscription_id in self._concerned_by(path):
            subscription, notes = self._partition.subscriptions[subscription_id], self._notes[subscription_id]
            if notes.linked is None:
                notes.linked = frozenset(link.path for link in subscription.links)
            if path not in notes.linked:
                if len(notes.links) < limits.LINKS_MAX:
                    notes.links.setdefault(path, (incarnation, start))
            elif subscription.wake is not None:
                continue  # its end is another reason to look
            notes.moved_path = path
            self._look_at(subscription_id)

    def _concerned_by(self, path: str) -> tuple[str, ...]:
        concerned = self._concerned.get(path)
        if concerned is None:
            if len(self._concerned) >= PATHS_MAX:
                self._concerned.clear()
            concerned = self._concerned[path] = tuple(
                subscription_id
                for subscription_id, subscription in self._partition.subscriptions.items()
                if path in self._notes[subscription_id].explicit or matches(subscription, path)
            )
        return concerned

    def _look_at(self, subscription_id: str) -> None:
        self._due[subscription_id] = None
        self._something_due.set()

    # -- what others ask -------------------------------------------------------------------------------------------

    async def streams(self, subscription: Subscription) -> dict[str, Stream]:
        """Those of its streams that there are, by path."""
        found: dict[str, Stream] = {}
        for link in subscription.links:
            stream = await self._partition.stream(link.path)
            if stream is not None and not stream.deleted:
                found[link.path] = stream
        return found

    async def settle(self, subscription_id: str) -> None:
        """Link the streams that are noted to be linked, so that whoever saw an append acknowledged finds its stream.

        Raises BrokerError.
        """
        notes, subscription = self._notes.get(subscription_id), self._partition.subscriptions.get(subscription_id)
        if notes is None or subscription is None:
            return
        for _ in range(0, len(notes.links), LINK_STEP):
            await self._link(subscription, notes)

    def is_failing(self, subscription: Subscription) -> bool:
        """Whether a delivery has failed, and is to be tried again."""
        wake, notes = subscription.wake, self._notes.get(subscription.subscription_id)
        if wake is None or wake.next_attempt_ms is None or notes is None:
            return False
        return wake.attempt > 0 or notes.failed_generation == subscription.generation

    async def matching(self, pattern: str, wake_stream: str, limit: int) -> list[str]:
        """Paths of streams that the pattern covers, without the wake stream's; at most `limit` of them."""
        found: dict[str, None] = {}
        async for path in self._covered(pattern, wake_stream):
            found[path] = None
            if len(found) >= limit:
                break
        return list(found)

    async def _covered(self, pattern: str, wake_stream: str) -> AsyncIterator[str]:
        covers = glob(pattern)
        async for path in self._partition.stream_paths(covers.literal_prefix):
            if path != wake_stream and covers.matches(path):
                yield path

    async def link_existing(self, subscription: Subscription) -> None:
        """Link what matched a new subscription at its tail (PROTOCOL.md 6.2), in bounded steps. Raises BrokerError."""
        paths = await self.matching(subscription.pattern, subscription.wake_stream, limits.LINKS_MAX)
        for begin in range(0, len(paths), LINK_STEP):
            places: list[Place] = []
            for path in paths[begin : begin + LINK_STEP]:
                stream = await self._partition.stream(path)
                if stream is not None and not stream.deleted:
                    places.append((path, stream.incarnation, stream.tail))
            await self._propose(Kind.SUBSCRIPTION_LINK, subscription, _link_options(places))
        await self._propose(Kind.SUBSCRIPTION_LINK, subscription, LinkOptions(complete=True))

    # -- running ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Look at what is due until cancelled. A partition that refuses or stops is no reason to end."""
        for subscription_id in self._partition.subscriptions:
            self.changed(subscription_id)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._find_unlinked(), name="subscriptions: find unlinked")
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(TICK_S):
                        await self._something_due.wait()
                self._something_due.clear()
                if self._partition.healthy:
                    await self._round(tasks)

    async def _round(self, tasks: asyncio.TaskGroup) -> None:
        if self._monotonic() >= self._looked_at + TICK_S:
            self._looked_at = self._monotonic()
            self._find_due()
        due = list(self._due)[: limits.WAKES_MAX]
        for subscription_id in due:
            del self._due[subscription_id]
        await asyncio.gather(*(self._attend(subscription_id, tasks) for subscription_id in due))
        if self._due:
            self._something_due.set()

    def _find_due(self) -> None:
        """Attempts whose time has come, and what was put off."""
        now_ms = self._partition.now_ms()
        for subscription_id, subscription in self._partition.subscriptions.items():
            wake = subscription.wake
            if wake is not None and wake.next_attempt_ms is not None and wake.next_attempt_ms <= now_ms:
                self._due[subscription_id] = None
        if self._put_off and self._monotonic() >= self._put_off_until:
            self._due.update(dict.fromkeys(self._put_off))
            self._put_off.clear()

    async def _attend(self, subscription_id: str, tasks: asyncio.TaskGroup) -> None:
        notes = self._notes.get(subscription_id)
        subscription = self._partition.subscriptions.get(subscription_id)
        if notes is None or subscription is None:
            return
        try:
            if notes.links:
                await self._link(subscription, notes)
            woken = await self._attempt(subscription_id, notes)
        except BrokerError as error:
            log.warning("subscription %s is put off: %s", subscription_id, error)
            self._put_off.add(subscription_id)
            self._put_off_until = self._monotonic() + PUT_OFF_S
            return
        if woken is not None and woken.wake is not None:
            notes.delivering_generation = woken.generation
            tasks.create_task(self._deliver(woken, woken.wake, notes), name=f"deliver {subscription_id}")

    async def _attempt(self, subscription_id: str, notes: _Notes) -> Subscription | None:
        """Propose what is due; the subscription when that was accepted, so that it is ours to deliver."""
        subscription = self._partition.subscriptions.get(subscription_id)
        if subscription is None:
            return None
        wake = subscription.wake
        if wake is None:
            tails = pending_tails(subscription, await self.streams(subscription))
            # What moved comes first: a pull-wake's event names the first.
            tails = tuple(sorted(tails, key=lambda place: place[0] != notes.moved_path))
            options = AttemptOptions(subscription.generation + 1, 0, self._delay_ms(0), tails)
            if not tails:
                return None
        elif wake.next_attempt_ms is None or wake.next_attempt_ms > self._partition.now_ms():
            return None
        elif notes.delivering_generation == subscription.generation:
            return None  # that attempt has not failed yet
        else:
            number = wake.attempt + 1
            options = AttemptOptions(subscription.generation, number, self._delay_ms(number))
        outcome = await self._propose(Kind.SUBSCRIPTION_ATTEMPT, subscription, options)
        return outcome.subscription if outcome.result is Result.ACCEPTED else None

    def _delay_ms(self, attempt: int) -> int:
        """Until the attempt after `attempt`: exponential, with jitter (PROTOCOL.md 7.1)."""
        delay_ms = min(limits.RETRY_MS_MIN << min(attempt, 16), limits.RETRY_MS_MAX)
        return round(delay_ms * self._chance.uniform(1 - limits.RETRY_JITTER, 1 + limits.RETRY_JITTER))

    async def _propose(
        self, kind: Kind, subscription: Subscription, options: AttemptOptions | LinkOptions | AckOptions
    ) -> Outcome:
        return await self._partition.propose(
            Entry(kind, subscription.subscription_id, incarnation=subscription.birth, options=encode_options(options))
        )

    # -- links -----------------------------------------------------------------------------------------------------

    async def _link(self, subscription: Subscription, notes: _Notes) -> None:
        """Link the streams that moved, before what made them match. Where there is no room, links of none make it."""
        paths = list(notes.links)[:LINK_STEP]
        places = [(path, *notes.links[path]) for path in paths]
        outcome = await self._propose(Kind.SUBSCRIPTION_LINK, subscription, _link_options(places))
        if outcome.code is Code.TOO_MANY_LINKS:
            await self._replace_links(outcome.subscription or subscription, notes, places)
        for path in paths:
            notes.links.pop(path, None)
        if notes.links:
            self._look_at(subscription.subscription_id)

    async def _replace_links(self, subscription: Subscription, notes: _Notes, places: list[Place]) -> None:
        there = await self.streams(subscription)
        gone = [link.path for link in subscription.links if not link.explicit and link.path not in there]
        room = limits.LINKS_MAX - len(subscription.links) + len(gone)
        refused = places[max(room, 0) :]
        if refused:
            self.counts.links_refused += len(refused)
            log.warning(
                "subscription %s has %d streams; %s and %d more cannot join",
                *(subscription.subscription_id, len(subscription.links), refused[0][0], len(refused) - 1),
            )
        await self._propose(Kind.SUBSCRIPTION_LINK, subscription, _link_options(places[: max(room, 0)], tuple(gone)))
        for path in gone:  # one that came back meanwhile was still linked when it moved
            stream = await self._partition.stream(path)
            if stream is not None and stream.tail > stream.begin:
                notes.links.setdefault(path, (stream.incarnation, stream.begin))

    async def _find_unlinked(self) -> None:
        """What a crash made us forget: streams that match, have something, and are not linked."""
        left = list(self._partition.subscriptions)
        while left:
            left = [subscription_id for subscription_id in left if not await self._found_unlinked(subscription_id)]
            await asyncio.sleep(PUT_OFF_S)

    async def _found_unlinked(self, subscription_id: str) -> bool:
        subscription, notes = self._partition.subscriptions.get(subscription_id), self._notes.get(subscription_id)
        if subscription is None or notes is None or not subscription.pattern:
            return True
        try:
            if not subscription.linked:
                await self.link_existing(subscription)
                return True
            linked = {link.path for link in subscription.links}
            async for path in self._covered(subscription.pattern, subscription.wake_stream):
                stream = None if path in linked else await self._partition.stream(path)
                if stream is not None and not stream.deleted and stream.tail > stream.begin:
                    notes.links.setdefault(path, (stream.incarnation, stream.begin))
                if len(notes.links) >= limits.LINKS_MAX:
                    break
        except BrokerError as error:
            log.warning("the streams of subscription %s are looked for again: %s", subscription_id, error)
            return False
        self._look_at(subscription_id)
        return True

    # -- delivery --------------------------------------------------------------------------------------------------

    async def _deliver(self, subscription: Subscription, wake: Wake, notes: _Notes) -> None:
        """Deliver an attempt that was accepted for us, and say so. What fails is tried again when that is due."""
        self.counts.attempts += 1
        try:
            done = await self._delivered(subscription, wake)
            options = AckOptions(subscription.generation, wake.wake_id, done=done, snapshot=done, delivered=not done)
            await self._propose(Kind.SUBSCRIPTION_ACK, subscription, options)
        except DeliveryFailed as error:
            self.counts.failures += 1
            notes.failed_generation = subscription.generation
            log.info("attempt %d for subscription %s failed: %s", wake.attempt, subscription.subscription_id, error)
        except BrokerError as error:
            log.warning("a wake of subscription %s is told again: %s", subscription.subscription_id, error)
        finally:
            if notes.delivering_generation == subscription.generation:
                notes.delivering_generation = 0
            self._look_at(subscription.subscription_id)

    async def _delivered(self, subscription: Subscription, wake: Wake) -> bool:
        """Whether the receiver is done with it. Raises DeliveryFailed, BrokerError."""
        if subscription.delivery == WEBHOOK:
            body = webhook_body(subscription, wake, await self.streams(subscription), self.token(subscription))
            return await self._webhooks.deliver(subscription.webhook_url, body)
        outcome = await self._partition.propose(wake_entry(subscription, wake))
        if outcome.result is Result.REFUSED and outcome.code not in (Code.FENCED, Code.PAYLOAD_MISMATCH):
            raise DeliveryFailed(f"wake stream {subscription.wake_stream}: {outcome.code}")
        return False

    def token(self, subscription: Subscription) -> str:
        """What proves to the broker that a request is about the wake that the subscription has now."""
        expires_ms = self._partition.now_ms() + limits.TOKEN_MS
        return self._signing.token(
            Token(subscription.subscription_id, subscription.birth, subscription.generation, expires_ms)
        )


def _link_options(places: list[Place], drop: tuple[str, ...] = ()) -> LinkOptions:
    return LinkOptions(tuple(places), drop=drop, links_max=limits.LINKS_MAX)
