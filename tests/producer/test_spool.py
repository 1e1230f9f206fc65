"""What is in the spool survives: the process, the network, the lease; and nobody else touches it."""

import random
import sqlite3
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from starlette.requests import Request

from producer import (
    Fenced,
    Finished,
    Producer,
    Refused,
    SpoolCorrupt,
    SpooledGeneration,
    SpoolError,
    SpoolFull,
    SpoolInUse,
    Unavailable,
)
from producer.batcher import Batch
from producer.pace import Pace
from producer.spool import APPLICATION_ID, VERSION, Spool, State
from tests.eventually import until
from tests.live import free_port
from tests.producer.conftest import IMPATIENT
from tests.producer.model import Fault, ModelBroker, serving
from tests.producer.spooling_app import app, text_of

OFFLINE = "http://127.0.0.1:9"  # the port of discard; nobody listens
BRIEF = replace(IMPATIENT, finish_timeout_s=0.2)
"""Does not wait long for a broker that is not there."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool" / "spool.sqlite"


async def written_offline(path: Path, texts: list[str], *, ends: bool = True, **options: Any) -> None:
    """An application writes these, without a network, and is closed."""
    async with Producer(OFFLINE, limits=BRIEF, spool=path) as producer:
        generation = await producer.spooled("s", "g", format="text", **options).__aenter__()
        for text in texts:
            await generation.write(text)
        if ends:
            await generation.finish()


def whole(broker: ModelBroker, *generation_ids: str) -> str:
    """The text that readers have of these generations together."""
    return "".join(text for gid in generation_ids or ("g",) for text in broker.log("s", gid))


# -- delivery ----------------------------------------------------------------------------------------------------------


async def test_what_was_written_is_delivered_once_and_in_order(url: str, broker: ModelBroker, path: Path) -> None:
    texts = [text_of(n) for n in range(100)]
    async with Producer(url, limits=IMPATIENT, spool=path) as producer:
        async with producer.spooled("s", "g", format="text", merging="never") as generation:
            for text in texts:
                await generation.write(text)
        await generation.delivered(20)
        assert await producer.outbox.unfinished() == []
    assert broker.log("s", "g") == texts
    assert broker.generation("s", "g").status == "complete"


async def test_session_is_created_when_it_is_not_there(url: str, broker: ModelBroker, path: Path) -> None:
    async with Producer(url, limits=IMPATIENT, spool=path) as producer:
        async with producer.spooled("new", "g", format="text") as generation:
            await generation.write("x")
        await generation.delivered(20)
    assert broker.log("new", "g") == ["x"]


async def test_answer_that_was_written_offline_is_delivered_by_the_next_process(
    url: str, broker: ModelBroker, path: Path
) -> None:
    texts = [text_of(n) for n in range(600)]
    await written_offline(path, texts)
    async with Producer(url, limits=IMPATIENT, spool=path) as producer:
        await producer.outbox.drained(20)
    assert whole(broker) == "".join(texts)
    assert len(broker.log("s", "g")) < 30, "adjacent deltas left the spool merged"
    assert broker.generation("s", "g").status == "complete"


async def test_every_answer_lost_once_doubles_nothing(url: str, broker: ModelBroker, path: Path) -> None:
    texts = [text_of(n) for n in range(200)]
    seen: set[tuple[str, str | None]] = set()

    def lose_each_once(request: Request) -> Fault | None:
        one = (request.url.path, request.headers.get("producer-seq"))
        if one in seen:
            return None
        seen.add(one)
        return Fault.LOSE_ANSWER

    broker.fault = lose_each_once
    async with Producer(url, limits=replace(IMPATIENT, batch_chunks_max=20), spool=path) as producer:
        async with producer.spooled("s", "g", format="text", merging="never") as generation:
            for text in texts:
                await generation.write(text)
        await generation.delivered(20)
    assert broker.log("s", "g") == texts


async def test_batch_that_was_cut_is_sent_again_with_the_same_bytes(url: str, broker: ModelBroker, path: Path) -> None:
    """The first process sends batches whose answers never come; the second would cut them elsewhere."""
    broker.hold_answer = lambda request: request.url.path.endswith("/chunks")
    async with Producer(url, limits=replace(BRIEF, attempt_timeout_s=0.1), spool=path) as producer:
        generation = await producer.spooled("s", "g", format="text", merging="never").__aenter__()
        for n in range(10):
            await generation.write(n)
            await anyio.sleep(0.002)
    broker.hold_answer = lambda _: False
    broker.answers.set()
    arrived = len(broker.log("s", "g"))
    assert 0 < arrived < 10
    async with Producer(url, limits=replace(IMPATIENT, batch_chunks_max=3), spool=path) as producer:
        async with producer.spooled("s", "g", format="text", merging="never") as generation:
            assert generation.written_chunks == 10
            await generation.write("end")
        await generation.delivered(20)
    assert broker.log("s", "g") == [*range(10), "end"]


async def test_killed_application_goes_on_where_it_was(path: Path, broker: ModelBroker) -> None:
    """R26, N6: SIGKILL again and again in the middle of an answer; each chunk is there once and in order."""
    chance = random.Random(7)
    lives = 0
    async with serving(broker) as url:
        while True:
            lives += 1
            kill_at = chance.randrange(5, 120) if lives < 6 else None
            if await anyio.to_thread.run_sync(lived, url, path, kill_at):
                break
    assert lives >= 4
    assert whole(broker) == "".join(text_of(n) for n in range(400))
    assert broker.generation("s", "g").status == "complete"


def lived(url: str, path: Path, kill_at: int | None) -> bool:
    """Run the application; kill it after so many chunks. Whether it came to its end."""
    with app(url, path, 400) as process:
        assert process.stdout is not None
        kept = int(process.stdout.readline().split()[1])
        for count, line in enumerate(process.stdout):
            if kill_at is not None and count == kill_at:
                process.kill()
                return False
            if line == "delivered\n":
                return True
            assert line == "finished\n" or int(line) == kept + count
    raise AssertionError("the application died by itself")


async def test_generation_whose_lease_ran_out_goes_on_in_another(url: str, broker: ModelBroker, path: Path) -> None:
    """Late is not lost: the laptop slept in the middle of an answer."""
    async with Producer(url, limits=IMPATIENT, spool=path) as producer:
        async with producer.spooled("s", "g", format="text", message_id="m") as generation:
            await generation.write("before ")
            await generation.delivered(20)
            broker.expire("s", "g")
            await generation.write("after ")
            await generation.write("that")
        await generation.delivered(20)
        assert generation.error is None
    assert whole(broker, "g", "g~1") == "before after that"
    later = broker.generation("s", "g~1")
    assert (later.options["continues"], later.message_id, later.status) == ("g", "m", "complete")


async def test_second_lease_that_runs_out_is_continued_as_well(url: str, broker: ModelBroker, path: Path) -> None:
    await written_offline(path, ["a"], ends=False)
    for n in range(3):
        async with Producer(url, limits=IMPATIENT, spool=path) as producer:
            generation = await producer.spooled("s", "g", format="text").__aenter__()
            await generation.write(str(n))
            await generation.delivered(20)
            if n == 2:
                await generation.finish()
                await generation.delivered(20)
        if n < 2:
            broker.expire("s", f"g~{n}" if n else "g")
    assert whole(broker, "g", "g~1", "g~2") == "a012"
    assert broker.generation("s", "g~2").options["continues"] == "g~1"


async def test_batch_whose_answer_was_lost_before_the_lease_ran_out_is_not_sent_again(
    url: str, broker: ModelBroker, path: Path
) -> None:
    async with Producer(url, limits=IMPATIENT, spool=path) as producer:
        async with producer.spooled("s", "g", format="text", merging="never") as generation:
            await generation.write("a")
            await generation.delivered(20)

            def lose_and_expire(_: Any) -> Fault | None:
                broker.fault = lambda _: None
                return Fault.LOSE_ANSWER

            broker.fault = lose_and_expire
            await generation.write("b")
            await until(lambda: broker.log("s", "g") == ["a", "b"])
            broker.expire("s", "g")
            await generation.write("c")
        await generation.delivered(20)
    assert broker.log("s", "g") + broker.log("s", "g~1") == ["a", "b", "c"]


async def test_stopped_generation_is_not_continued(url: str, broker: ModelBroker, path: Path) -> None:
    async with Producer(url, limits=IMPATIENT, spool=path) as producer:
        async with producer.spooled("s", "g", format="text") as generation:
            await generation.write("a")
            await generation.delivered(20)
            await producer.stop("s", "g")
            await generation.write("b")
            with pytest.raises(Fenced):
                await generation.delivered(20)
            with pytest.raises(Fenced):
                await generation.write("c")
        assert await producer.outbox.refused() == []
    assert whole(broker) == "a"


async def test_what_was_begun_offline_does_not_end_what_runs_in_its_lane_today(
    url: str, broker: ModelBroker, path: Path
) -> None:
    await written_offline(path, ["old"])
    async with Producer(url, limits=IMPATIENT) as other, other.generation("s", "today", format="text") as today:
        await today.write("new")
        await today.flush()
        async with Producer(url, limits=IMPATIENT, spool=path) as producer:
            await producer.outbox.drained(20)
        await today.write("er")
    assert whole(broker, "today") == "newer"
    assert whole(broker) == "old"
    assert broker.generation("s", "g").options["lane"] == "~g"


async def test_refused_generation_is_kept_until_it_is_discarded(url: str, broker: ModelBroker, path: Path) -> None:
    """Two machines with one generation id: the second one's bytes differ."""
    async with Producer(url, limits=IMPATIENT) as other, other.generation("s", "g") as generation:
        await generation.write("another's")
    await written_offline(path, ["mine"])
    async with Producer(url, limits=IMPATIENT, spool=path) as producer:
        await producer.outbox.drained(20)
        [refused] = await producer.outbox.refused()
        assert "PAYLOAD_MISMATCH" in str(refused.error)
    async with Producer(url, limits=IMPATIENT, spool=path) as producer:
        [again] = await producer.outbox.refused()
        assert again == refused, "another process finds it as well"
        with pytest.raises(Finished):
            await producer.spooled("s", "g").__aenter__()
        await producer.outbox.discard(refused)
        assert await producer.outbox.refused() == []
    assert broker.log("s", "g") == ["another's"]


async def test_refusal_is_told_to_who_writes(url: str, broker: ModelBroker, path: Path) -> None:
    broker.body_bytes_max = 10
    async with Producer(url, limits=IMPATIENT, spool=path) as producer:
        async with producer.spooled("s", "g", format="text") as generation:
            await generation.write("x" * 100)
            with pytest.raises(Refused, match="BODY_TOO_LARGE"):
                await generation.delivered(20)
        assert len(await producer.outbox.refused()) == 1


async def test_expired_token_is_no_refusal(url: str, broker: ModelBroker, path: Path) -> None:
    """Nor is a captive portal: both pass."""
    limits = replace(IMPATIENT, probe_s=0.05)
    broker.require_token = "fresh"
    tokens = iter(["stale", "stale"])
    headers = {"authorization": lambda: f"Bearer {next(tokens, 'fresh')}"}
    async with Producer(url, limits=limits, headers=headers, spool=path) as producer:
        async with producer.spooled("s", "g", format="text") as generation:
            await generation.write("x")
        await generation.delivered(20)
    assert broker.log("s", "g") == ["x"]


async def test_waiting_for_delivery_is_given_up_at_its_timeout(path: Path) -> None:
    async with Producer(OFFLINE, limits=BRIEF, spool=path) as producer:
        async with producer.spooled("s", "g", format="text") as generation:
            await generation.write("x")
            with pytest.raises(Unavailable):
                await generation.delivered(0.05)
        with pytest.raises(Unavailable):
            await producer.outbox.drained(0.05)


@pytest.mark.parametrize(
    ("leaving", "status"), [("normally", "complete"), ("failing", "failed"), ("cancelled", "aborted")]
)
async def test_leaving_ends_the_generation_as_it_is_left(
    url: str, broker: ModelBroker, path: Path, leaving: str, status: str
) -> None:
    async with Producer(url, limits=IMPATIENT, spool=path) as producer:
        with anyio.CancelScope() as scope, suppress(ValueError):
            async with producer.spooled("s", "g", format="text") as generation:
                await generation.write("x")
                if leaving == "failing":
                    raise ValueError("no")
                if leaving == "cancelled":
                    scope.cancel()
                    await anyio.sleep(1)
        await producer.outbox.drained(20)
    assert broker.generation("s", "g").status == status
    assert broker.log("s", "g") == ["x"]


async def test_generation_that_was_delivered_is_known_to_be(url: str, path: Path) -> None:
    async with Producer(url, limits=IMPATIENT, spool=path) as producer:
        async with producer.spooled("s", "g", format="text") as generation:
            await generation.write("x")
        await generation.delivered(20)
    async with Producer(url, limits=IMPATIENT, spool=path) as producer:
        with pytest.raises(Finished, match="delivered"):
            await producer.spooled("s", "g", format="text").__aenter__()


# -- the file ----------------------------------------------------------------------------------------------------------


async def test_spool_is_bounded_and_has_room_again_when_the_broker_is_back(broker: ModelBroker, path: Path) -> None:
    limits = replace(IMPATIENT, spool_bytes_max=10_000)
    port = free_port()
    async with (
        Producer(f"http://127.0.0.1:{port}", limits=limits, spool=path) as producer,
        producer.spooled("s", "g", format="text") as generation,
    ):
        written = await written_until_full(generation, "x" * 500)
        assert 15 <= written < 20
        async with serving(broker, port):
            await generation.delivered(20)
            await generation.write("y")
            await generation.finish()
            await generation.delivered(20)
    assert whole(broker) == "x" * 500 * written + "y"


async def written_until_full(generation: SpooledGeneration, text: str) -> int:
    written = 0
    with suppress(SpoolFull):
        while True:
            await generation.write(text)
            written += 1
    return written


async def test_two_processes_cannot_have_one_spool(path: Path) -> None:
    async with Producer(OFFLINE, limits=BRIEF, spool=path):
        with pytest.raises(SpoolInUse):
            await Producer(OFFLINE, limits=BRIEF, spool=path).__aenter__()
        code = f"from pathlib import Path; from producer.spool import Spool; Spool(Path({str(path)!r}), bytes_max=1)"
        command = [sys.executable, "-c", code]
        other = await anyio.to_thread.run_sync(lambda: subprocess.run(command, capture_output=True, check=False))
        assert b"SpoolInUse" in other.stderr
    async with Producer(OFFLINE, limits=BRIEF, spool=path):
        pass  # it is free again


@pytest.mark.parametrize("damage", [slice(0, 2000), slice(100, 2000), slice(4096, 16_384)])
async def test_damaged_spool_is_set_aside_and_said_to_be(path: Path, damage: slice) -> None:
    await written_offline(path, [text_of(n) + 200 * "x" for n in range(60)])
    damaged = bytearray(path.read_bytes())
    damaged[damage] = b"\xee" * (damage.stop - damage.start)
    path.write_bytes(damaged)
    with pytest.raises(SpoolCorrupt) as caught:
        await Producer(OFFLINE, limits=BRIEF, spool=path).__aenter__()
    assert caught.value.set_aside is not None
    assert Path(caught.value.set_aside).read_bytes() == damaged, "as it was"
    async with Producer(OFFLINE, limits=BRIEF, spool=path) as producer:
        assert await producer.outbox.unfinished() == [], "the next one begins anew"


async def test_somebody_elses_database_is_left_alone(path: Path) -> None:
    path.parent.mkdir()
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE notes (text)")
    database.close()
    before = path.read_bytes()
    with pytest.raises(SpoolError, match="left alone"):
        await Producer(OFFLINE, limits=BRIEF, spool=path).__aenter__()
    assert path.read_bytes() == before


async def test_spool_of_a_later_version_is_left_alone(path: Path) -> None:
    Spool(path, bytes_max=1).close()
    with sqlite3.connect(path) as database:
        database.execute(f"PRAGMA user_version = {VERSION + 1}")
        assert database.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
    database.close()
    with pytest.raises(SpoolError, match="version"):
        Spool(path, bytes_max=1)


def test_changes_that_fail_together_leave_nothing(path: Path) -> None:
    spool = Spool(path, bytes_max=1000)
    [kept] = spool.transact([lambda spool: spool.begin("s", "g", {})])

    def fail(_: Spool) -> None:
        raise sqlite3.OperationalError("anything")

    with pytest.raises(SpoolError):
        spool.transact([lambda spool: spool.add(kept.id, b"1"), fail])
    assert spool.bytes == 0
    assert spool.transact([lambda spool: spool.page(kept.id, -1, 10)]) == [[]]
    spool.close()


def test_bytes_of_the_spool_are_those_of_what_is_in_it(path: Path) -> None:
    spool = Spool(path, bytes_max=1000)
    [kept] = spool.transact([lambda spool: spool.begin("s", "g", {})])
    spool.transact([lambda spool: spool.add(kept.id, b'"abc"'), lambda spool: spool.add(kept.id, b'"d"')])
    assert spool.bytes == 8
    spool.transact([lambda spool: spool.seal(kept.id, 0, Batch(b'["abc"]', 1, 5, written=1))])
    assert spool.bytes == 10
    spool.close()
    spool = Spool(path, bytes_max=1000)
    assert spool.bytes == 10
    spool.transact([lambda spool: spool.acknowledge(kept.id, 0)])
    assert spool.bytes == 3
    spool.transact([lambda spool: spool.conclude(kept.id, State.DELIVERED)])
    assert spool.bytes == 0
    spool.close()


def test_pace_lets_a_burst_through_and_then_so_many_bytes_a_second() -> None:
    pace = Pace(bytes_per_s=100, burst_bytes=1000)
    assert pace.take(1000, 50.0) == 0.0
    assert pace.take(50, 50.0) == 0.5
    assert pace.take(50, 50.5) == 0.5
    assert pace.take(1000, 1000.0) == 0.0


async def test_catching_up_keeps_to_its_rate(url: str, broker: ModelBroker, path: Path) -> None:
    await written_offline(path, ["x" * 1000] * 30, merging="never")
    limits = replace(IMPATIENT, catch_up_bytes_per_s=20_000, batch_bytes_max=2_100)
    async with Producer(url, limits=limits, spool=path) as producer:
        began_s = anyio.current_time()
        await producer.outbox.drained(20)
        assert anyio.current_time() - began_s >= 0.4, "a third leaves after the burst, in half a second"
    assert whole(broker) == "x" * 30_000
