"""Clients of Kafka: made as a log wants them, asked within a bound, and made anew once they are of no use any more.

aiokafka mends most of what happens to a connection by itself. What it does not, and what is done about it here:

1. A task of a client may end with an error, or wait for one that ended; then nothing that it is asked for is answered
   ever again. Brokers that all have other addresses by now are never found: it knows only those that it has met. So
   every question has a bound, and a client that answers none for KAFKA_STALL_S is replaced (`Client`).
2. Where a partition has no leader, a producer and a consumer ask who leads it as fast as they are answered: hundreds of
   times a second, a Kafka that is about to start (`_pace`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, Final, TypeVar

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from broker import limits
from broker.journal.kafka_topic import KafkaTopic

log = logging.getLogger("streamfold.kafka")

_T = TypeVar("_T")
_METADATA_PAUSE_S: Final = 0.05
"""Between two questions who leads what: with one more for each of it, an election is noticed as soon as it matters."""


class ClientFailed(Exception):
    """A client did not do what it was asked to. It may have been done, or be done later."""


class Departing:
    """Clients that are let go of: whoever puts one here need not wait until it has left."""

    def __init__(self) -> None:
        self.within_s = limits.KAFKA_REQUEST_MS / 1000
        """What each has to leave that is put here from now on."""
        self._tasks: set[asyncio.Task[None]] = set()

    def add(self, client: Any, starting: asyncio.Task[None] | None = None) -> None:
        """Stop it, within a bound; `starting` is what still connects it."""
        task = asyncio.create_task(let_go(client, self.within_s, starting), name="kafka: let go")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def gone(self) -> None:
        """Return when all of them have left."""
        await asyncio.gather(*self._tasks)


class Client:
    """A client of aiokafka's, or the next one in its place."""

    def __init__(self, name: str, make: Callable[[], Any], departing: Departing, patience_s: float) -> None:
        self._name = name
        self._make = make
        self._departing = departing
        self._patience_s = patience_s
        self._client: Any = None
        self._failing_since: float | None = None  # by the event loop's clock
        self._renewing: asyncio.Task[None] | None = None
        self.failures = 0
        """Questions that were not answered, or with an error."""
        self.renewals = 0
        """How often it was replaced."""

    async def start(self) -> None:
        """Connect. Raises ClientFailed."""
        self._client = await started(self._make(), self._departing)

    async def ask(self, question: Callable[[Any], Awaitable[_T]], answer_s_max: float) -> _T:
        """What the client answers. Raises ClientFailed, within `answer_s_max`."""
        client = self._client
        if client is None:
            raise ClientFailed("Kafka is not connected")
        try:
            async with asyncio.timeout(answer_s_max):
                answer = await question(client)
        except asyncio.CancelledError as error:  # whoever asked has less patience than this, and knows no more about it
            self._fail(client)
            if is_cancelled():
                raise
            raise ClientFailed("the client is closed") from error
        except Exception as error:  # what it raises is not all documented: whatever it is, there was no answer
            self._fail(client)
            raise ClientFailed(told(error, answer_s_max)) from error
        if client is self._client:
            self._failing_since = None
        return answer

    async def aclose(self) -> None:
        """Disconnect: from here on what there is of it is departing."""
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.gather(self._renewing, return_exceptions=True)
        client, self._client = self._client, None
        if client is not None:
            self._departing.add(client)

    def _fail(self, client: Any) -> None:
        self.failures += 1
        if client is not self._client or self._renewing is not None:
            return
        now = asyncio.get_running_loop().time()
        if self._failing_since is None:
            self._failing_since = now
        elif now >= self._failing_since + self._patience_s:
            self._failing_since = now  # the next one has as long; and so has this one, should none be to be had
            self._renewing = asyncio.create_task(self._renew(), name=f"kafka: another {self._name}")

    async def _renew(self) -> None:
        try:
            fresh = await started(self._make(), self._departing)
        except ClientFailed as error:
            log.warning("the %s fails, and another one cannot be made yet: %s", self._name, error)
            return
        finally:
            self._renewing = None
        self.renewals += 1
        log.warning("the %s has failed for %.0f s, and was made anew", self._name, self._patience_s)
        failed, self._client = self._client, fresh
        self._departing.add(failed)


class Together:
    """One question about many partitions: all who ask while one is under way share the next."""

    def __init__(self, ask: Callable[[Collection[int]], Awaitable[Mapping[int, int]]]) -> None:
        self._ask = ask
        self._one_at_a_time = asyncio.Lock()
        self._next: tuple[set[int], asyncio.Task[Mapping[int, int]]] | None = None
        self._tasks: set[asyncio.Task[Mapping[int, int]]] = set()  # at most two

    async def of(self, partition: int) -> int:
        """The answer about one of them. Raises what the question does."""
        if self._next is None:
            wanted = {partition}
            asking = asyncio.create_task(self._ask_about(wanted), name="kafka: ask")
            self._tasks.add(asking)
            asking.add_done_callback(self._asked)
            self._next = wanted, asking
        wanted, asking = self._next
        wanted.add(partition)
        return (await asyncio.shield(asking))[partition]  # others wait for it too

    async def aclose(self) -> None:
        """Ask nothing any more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._next = None

    async def _ask_about(self, partitions: set[int]) -> Mapping[int, int]:
        async with self._one_at_a_time:
            self._next = None
            return await self._ask(partitions)

    def _asked(self, asking: asyncio.Task[Mapping[int, int]]) -> None:
        self._tasks.discard(asking)
        heard(asking)


async def started(client: Any, departing: Departing) -> Any:
    """The client, connected. Raises ClientFailed; it is departing then."""
    _pace(connections(client))
    starting = asyncio.create_task(client.start(), name="kafka: connect")
    starting.add_done_callback(heard)
    try:
        async with asyncio.timeout(limits.KAFKA_START_S):
            await asyncio.shield(starting)
    except BaseException as error:
        departing.add(client, starting)
        if isinstance(error, Exception):
            raise ClientFailed(told(error, limits.KAFKA_START_S)) from error
        raise
    return client


async def let_go(client: Any, within_s: float, starting: asyncio.Task[None] | None = None) -> None:
    """Stop a client that may not answer; within that time, or some STOP_STEP_S more."""
    until = asyncio.get_running_loop().time() + within_s
    if starting is not None:
        # Not cancelled at once: between a first broker's welcome and its answer it would leave that connection to the
        # collector, open and with a warning (aiokafka issue 715).
        await _is_done(starting, until)
    if await _is_done(client.stop(), until):
        return
    # It waits for what does not come, the producer for its records. What it holds of the system is given back.
    if isinstance(client, AIOKafkaProducer):
        await _is_done(client._sender.close(), until)  # noqa: SLF001 -- there is no other way to end its task
    await _is_done(connections(client).close(), until)


async def _is_done(stop: Awaitable[None], until: float) -> bool:
    """Whether all of it was done by then, or within STOP_STEP_S."""
    now = asyncio.get_running_loop().time()
    try:
        async with asyncio.timeout_at(max(until, now + limits.STOP_STEP_S)):
            await stop
    except asyncio.CancelledError:
        if is_cancelled():
            raise
        return False
    except Exception:  # noqa: BLE001 -- the client is not needed any more
        return False
    return True


def is_cancelled() -> bool:
    """Whether this task is to end: aiokafka lets out cancellations of its own tasks, as a consumer that is stopped."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def heard(answer: asyncio.Future[Any]) -> None:
    """An answer has come, or an error; perhaps nobody waits for it any more."""
    if not answer.cancelled():
        answer.exception()


def told(error: BaseException, waited_s: float) -> str:
    """An error of a client's, for people: a timeout says nothing of itself."""
    if type(error) is TimeoutError:
        return f"no answer within {waited_s:g} s"
    return str(error) or repr(error)


def connections(client: Any) -> Any:
    """What it reaches Kafka by."""
    return client.client if isinstance(client, AIOKafkaProducer) else client._client  # noqa: SLF001 -- it is not shown


def _pace(reached_by: Any) -> None:
    """Let it ask who leads what no more often than each _METADATA_PAUSE_S: see 2."""
    update = reached_by._metadata_update  # noqa: SLF001 -- there is no option, and all who want to know come by here
    asked_at = -_METADATA_PAUSE_S

    async def paced(*arguments: Any) -> Any:
        nonlocal asked_at
        now = asyncio.get_running_loop().time
        await asyncio.sleep(max(0.0, asked_at + _METADATA_PAUSE_S - now()))
        asked_at = now()
        return await update(*arguments)

    reached_by._metadata_update = paced  # noqa: SLF001 -- as above


def new_producer(topic: KafkaTopic) -> Any:
    """A client that writes as the log wants it, not started."""
    return AIOKafkaProducer(
        **topic.access(),
        acks="all",
        enable_idempotence=False,
        linger_ms=0,
        compression_type="lz4",
        max_batch_size=limits.RECORD_BYTES_MAX,
        max_request_size=limits.RECORD_BYTES_MAX,
        request_timeout_ms=limits.KAFKA_REQUEST_MS,
        metadata_max_age_ms=limits.KAFKA_METADATA_MS,
        retry_backoff_ms=50,
    )


def new_consumer(topic: KafkaTopic) -> Any:
    """A client that reads as the log wants it, not started."""
    return AIOKafkaConsumer(
        **topic.access(),
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="none",  # anything else would jump over what is missing
        isolation_level="read_uncommitted",
        fetch_max_wait_ms=limits.KAFKA_FETCH_WAIT_MS,
        fetch_max_bytes=limits.KAFKA_FETCH_BYTES,
        max_partition_fetch_bytes=limits.RECORD_BYTES_MAX,
        request_timeout_ms=limits.KAFKA_REQUEST_MS,
        metadata_max_age_ms=limits.KAFKA_METADATA_MS,
        retry_backoff_ms=50,
    )
