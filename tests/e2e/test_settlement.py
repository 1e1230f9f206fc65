"""F5: what is to be done when an answer is over is tried again, counted, and told to readers when it fails."""

import random
import sqlite3
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import httpx
import pytest

from consumer import Reader
from producer import Ended, Limits, Producer, Refused, Settle, Unavailable, ValueFailed
from producer.spool import Spool
from tests.eventually import eventually
from tests.faults.cutter import Cutter
from tests.live import Broker
from tests.program import next_line, program

LIMITS = Limits(
    backoff_s_initial=0.01, backoff_s_max=0.05, backoff_s_jitter=0.01, finish_timeout_s=5.0, settle_deadline_s=10.0
)
APP = "tests.e2e.settling_app"


@pytest.fixture
async def session(live: Broker, request: pytest.FixtureRequest) -> str:
    session_id = str(request.node.name).replace("[", "-").replace("]", "").removeprefix("test_")
    async with Producer(live.url) as producer:
        await producer.create_session(session_id)
    return session_id


class Book:
    """Notes what was settled; the first so many attempts fail."""

    def __init__(self, failures: int = 0) -> None:
        self.entries: list[Ended] = []
        self._failures = failures

    async def settle(self, ended: Ended) -> None:
        if self._failures:
            self._failures -= 1
            raise ConnectionError("the quota service is down")
        self.entries.append(ended)

    def told(self) -> list[tuple[str, str, str | None]]:
        return [(ended.generation_id, ended.status, ended.reason) for ended in self.entries]


async def settlements(url: str, session_id: str) -> list[dict[str, Any]]:
    """What readers of the session are told of them."""
    async with Reader(url) as reader:
        records = [*(await reader.read(f"sessions/{session_id}")).records]
    return [record for record in records if record["type"] == "settlement"]


async def test_every_way_to_end_is_settled_once(live: Broker, session: str) -> None:
    book = Book()
    async with Producer(live.url, limits=LIMITS, settle=book.settle) as producer:
        async with producer.generation(session, "complete", format="text") as generation:
            await generation.write("x")
        with suppress(ValueError):
            async with producer.generation(session, "failed", format="text") as generation:
                await generation.write("x")
                raise ValueError
        with anyio.CancelScope() as scope:
            async with producer.generation(session, "cancelled", format="text") as generation:
                await generation.write("x")
                scope.cancel()
                await anyio.sleep(1)
        async with producer.generation(session, "refused", format="text") as generation:
            await generation.finish("failed", reason="refused to answer")
        generation = await producer.generation(session, "stopped", format="text", lease_ms=1000).__aenter__()
        await generation.write("x")
        await generation.flush()
        await producer.stop(session, "stopped")
        with anyio.fail_after(20):
            await generation.stopped.wait()
        left_open = await producer.generation(session, "closed", format="text").__aenter__()
        await left_open.write("x")
    assert sorted(book.told()) == [
        ("cancelled", "aborted", None),
        ("closed", "aborted", None),
        ("complete", "complete", None),
        ("failed", "failed", None),
        ("refused", "failed", None),
        ("stopped", "aborted", "stopped"),
    ]
    assert all(ended.is_certain and ended.session_id == session for ended in book.entries)
    assert producer.metrics().settlement.count == 6
    assert await settlements(live.url, session) == []


async def test_settlement_that_fails_is_tried_again_until_it_works(live: Broker, session: str) -> None:
    book = Book(failures=3)
    async with Producer(live.url, limits=LIMITS, settle=book.settle) as producer:
        async with producer.generation(session, "g", format="text") as generation:
            await generation.write("x")
        await eventually(lambda: is_true(book.entries))
    assert book.told() == [("g", "complete", None)]
    metrics = producer.metrics()
    assert (metrics.failed_settlement_attempts, metrics.failed_settlements, metrics.unsettled) == (3, 0, 0)
    assert await settlements(live.url, session) == []


async def is_true(value: object) -> bool:
    return bool(value)


async def test_settlement_that_fails_for_good_is_told_to_readers(live: Broker, session: str) -> None:
    book = Book(failures=10**6)
    limits = replace(LIMITS, settle_deadline_s=0.2)
    async with Producer(live.url, limits=limits, settle=book.settle) as producer:
        async with producer.generation(session, "g", message_id="m", format="text") as generation:
            await generation.write("x")
        [record] = await eventually(lambda: settlements(live.url, session))
    assert (record["key"], record["headers"]["operation"]) == ("g", "upsert")
    assert record["value"].pop("attempts") == producer.metrics().failed_settlement_attempts > 1
    assert record["value"] == {
        "messageId": "m",
        "generationStatus": "complete",
        "status": "failed",
        "error": {"type": "ConnectionError", "message": "the quota service is down"},
    }
    assert producer.metrics().failed_settlements == 1
    async with Reader(live.url) as reader:
        [message] = (await reader.messages(session)).messages
        assert message["status"] == "complete", "the answer itself is as good as ever"


async def test_refusal_to_settle_is_not_argued_with(live: Broker, session: str) -> None:
    async def refuse(_: Ended) -> None:
        raise ValueFailed("no such quota")

    async with Producer(live.url, limits=LIMITS, settle=refuse) as producer:
        async with producer.generation(session, "g", format="text") as generation:
            await generation.write("x")
        [record] = await eventually(lambda: settlements(live.url, session))
    assert record["value"]["attempts"] == 1


async def test_closing_the_producer_does_not_wait_for_ever(live: Broker, session: str) -> None:
    limits = replace(LIMITS, finish_timeout_s=0.5)
    with anyio.fail_after(5):
        async with (
            Producer(live.url, limits=limits, settle=lambda _: anyio.sleep_forever()) as producer,
            producer.generation(session, "g", format="text") as generation,
        ):
            await generation.write("x")
    assert len(await settlements(live.url, session)) == 1


async def test_end_that_the_broker_could_not_be_told_is_settled_as_uncertain(live: Broker, session: str) -> None:
    book = Book()
    way = Cutter(live.port, random.Random(1), 10**9, 10**9)
    limits = replace(LIMITS, deadline_s=0.3)
    async with way.serving(), Producer(way.url, limits=limits, settle=book.settle) as producer:
        generation = await producer.generation(session, "g", format="text").__aenter__()
        await generation.write("x")
        await generation.flush()
        way.is_open = False
        way.cut_all()
        with pytest.raises(Unavailable):
            await generation.finish()
    [ended] = book.entries
    assert (ended.status, ended.reason, ended.is_certain) == ("failed", "UNAVAILABLE", False)


async def test_loser_of_two_writers_does_not_settle_what_is_not_its_own(live: Broker, session: str) -> None:
    book = Book()
    async with Producer(live.url, limits=LIMITS, settle=book.settle) as producer:
        async with producer.generation(session, "g", format="text") as generation:
            await generation.write("first")
        with pytest.raises(Refused, match="PAYLOAD_MISMATCH"):
            async with producer.generation(session, "g", format="text") as generation:
                await generation.write("second")
    assert book.told() == [("g", "complete", None)]


# -- over a spool ------------------------------------------------------------------------------------------------------


async def answer(url: str, spool: Path, session_id: str, settle: Settle | None, limits: Limits = LIMITS) -> Producer:
    """A process that writes an answer, delivers it, and leaves in order."""
    async with Producer(url, limits=limits, spool=spool, settle=settle) as producer:
        async with producer.spooled(session_id, "g", format="text") as generation:
            await generation.write("x")
        await generation.delivered(20)
    return producer


async def test_spooled_answer_is_settled_when_the_broker_has_its_end(
    live: Broker, session: str, tmp_path: Path
) -> None:
    book = Book(failures=2)
    producer = await answer(live.url, tmp_path / "spool", session, book.settle)
    assert book.told() == [("g", "complete", None)]
    assert producer.metrics().settlement.count == 1


async def test_answer_left_unsettled_is_settled_by_the_next_process(live: Broker, session: str, tmp_path: Path) -> None:
    spool, book = tmp_path / "spool", Book()
    hanging = replace(LIMITS, finish_timeout_s=0.3)
    await answer(live.url, spool, session, lambda _: anyio.sleep_forever(), hanging)
    assert await settlements(live.url, session) == [], "it has not failed: it is not over"
    for _ in range(2):
        async with Producer(live.url, limits=LIMITS, spool=spool, settle=book.settle):
            await eventually(lambda: is_true(book.entries))
    assert book.told() == [("g", "complete", None)], "and by no process after that"


async def test_process_killed_while_it_settles_is_followed_by_one_that_settles(live: Broker, tmp_path: Path) -> None:
    """At least once: a killed process cannot say whether it had done it."""
    with program(APP, live.url, tmp_path / "spool", "hanging") as process:
        assert await next_line(process) == "g complete"
        process.kill()
    with program(APP, live.url, tmp_path / "spool", "working") as process:
        assert await next_line(process) == "g complete"
        process.communicate("\n", timeout=20)
    spool = Spool(tmp_path / "spool", bytes_max=1)
    assert spool.unsettled(1) == []
    spool.close()


async def test_failure_is_told_when_the_network_is_back(live: Broker, session: str, tmp_path: Path) -> None:
    """The quota is gone for good while the broker is away: readers learn it from a later process."""
    spool = tmp_path / "spool"
    refused = anyio.Event()
    limits = replace(LIMITS, probe_s=0.1, finish_timeout_s=0.5)
    way = Cutter(live.port, random.Random(1), 10**9, 10**9)

    async def refuse(_: Ended) -> None:
        way.is_open = False
        way.cut_all()
        refused.set()
        raise ValueFailed("no such quota")

    async with way.serving(), Producer(way.url, limits=limits, spool=spool, settle=refuse) as producer:
        async with producer.spooled(session, "g", format="text") as generation:
            await generation.write("x")
        await refused.wait()
    assert await settlements(live.url, session) == []
    book = Book()
    async with Producer(live.url, limits=LIMITS, spool=spool, settle=book.settle):
        [record] = await eventually(lambda: settlements(live.url, session))
    assert record["value"]["error"] == {"type": "ValueFailed", "message": "no such quota"}
    assert book.entries == [], "what was given up is not tried again"


async def test_failure_that_nobody_can_be_told_is_counted(live: Broker, session: str, tmp_path: Path) -> None:
    """The session is gone with its readers."""

    async def delete_and_fail(ended: Ended) -> None:
        await anyio.to_thread.run_sync(delete_session, live.url, ended.session_id)
        raise ValueFailed("no such quota")

    async with Producer(live.url, limits=LIMITS, spool=tmp_path / "spool", settle=delete_and_fail) as producer:
        async with producer.spooled(session, "g", format="text") as generation:
            await generation.write("x")
        await eventually(lambda: is_true(producer.metrics().untold_settlements))
    assert producer.metrics().failed_settlements == 1


def delete_session(url: str, session_id: str) -> None:
    httpx.delete(f"{url}/v1/sessions/{session_id}").raise_for_status()


async def test_spool_of_the_first_version_learns_to_settle(live: Broker, session: str, tmp_path: Path) -> None:
    path = tmp_path / "spool"
    Spool(path, bytes_max=1).close()
    with sqlite3.connect(path) as database:
        database.execute("DROP TABLE settlements")
        database.execute("PRAGMA user_version = 1")
    database.close()
    book = Book()
    await answer(live.url, path, session, book.settle)
    assert book.told() == [("g", "complete", None)]
