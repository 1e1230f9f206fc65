"""When a consumer asks Kafka for more, and of which partitions it has heard of late.

A fetch that brings one record costs a node several times what it takes to apply it, and Kafka as much again. A consumer
of aiokafka's asks again as soon as it is answered: with a record every few milliseconds that is a fetch for each of
them, in every node, just when the node that wrote it waits for Kafka. So fetches from a broker keep
KAFKA_FETCH_PAUSE_MS apart, or KAFKA_UNWATCHED_PAUSE_MS while nobody is told of what they bring, but for those that
somebody waits for. After a silence the next record comes at once: the fetch that waits for it has long been sent.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any, Final

from aiokafka.protocol.fetch import FetchRequest

from broker import limits

_PAUSE_S: Final = limits.KAFKA_FETCH_PAUSE_MS / 1000
_UNWATCHED_PAUSE_S: Final = limits.KAFKA_UNWATCHED_PAUSE_MS / 1000


class Fetches:
    """Of one consumer, or the next one in its place.

    `is_urgent`: whether somebody waits for what is there to fetch. `is_watched`: whether somebody is told of it.
    """

    def __init__(self, is_urgent: Callable[[], bool], is_watched: Callable[[], bool]) -> None:
        self._is_urgent = is_urgent
        self._is_watched = is_watched
        self._sent_at: dict[int, float] = {}  # by broker, by the event loop's clock
        self._heard_at: dict[int, float] = {}  # by partition: when the newest fetch was sent that was answered
        self._pausing: set[asyncio.Future[None]] = set()  # at most one for each broker

    def heed(self, connections: Any) -> None:
        """Those of a consumer that is not started yet."""
        send = connections.send

        async def paced(broker: int, request: Any, **options: Any) -> Any:
            if not isinstance(request, FetchRequest):
                return await send(broker, request, **options)
            await self._pause(broker)
            self._sent_at[broker] = sent_at = asyncio.get_running_loop().time()
            answer = await send(broker, request, **options)
            self._hear(answer, sent_at)
            return answer

        connections.send = paced

    def hurry(self) -> None:
        """Send those that pause: somebody waits."""
        for pausing in self._pausing:
            _end(pausing)

    def has_heard_of(self, partition: int, within_s: float) -> bool:
        """Whether its leader has answered a fetch that was sent so lately, be it without records."""
        heard_at = self._heard_at.get(partition)
        return heard_at is not None and asyncio.get_running_loop().time() <= heard_at + within_s

    async def _pause(self, broker: int) -> None:
        clock = asyncio.get_running_loop().time
        sent_at = self._sent_at.get(broker, -math.inf)
        while not self._is_urgent():
            until = sent_at + (_PAUSE_S if self._is_watched() else _UNWATCHED_PAUSE_S)
            if until <= clock():
                return
            # In short steps: whoever begins to watch does not wait for the end of a long pause.
            await self._pause_until(min(until, clock() + _PAUSE_S))

    async def _pause_until(self, until: float) -> None:
        loop = asyncio.get_running_loop()
        pausing = loop.create_future()
        self._pausing.add(pausing)
        timer = loop.call_at(until, _end, pausing)
        try:
            await pausing
        finally:
            timer.cancel()
            self._pausing.discard(pausing)

    def _hear(self, answer: Any, sent_at: float) -> None:
        for _, partitions in answer.topics:
            for partition, error, *_ in partitions:
                if not error:
                    self._heard_at[partition] = sent_at


def _end(pausing: asyncio.Future[None]) -> None:
    if not pausing.done():
        pausing.set_result(None)
