"""What is in the spool is delivered once and in order, whatever ends in between: process, network or lease."""

import random
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from starlette.requests import Request

from producer import Fenced, Finished, Producer, Refused, Unavailable
from tests.eventually import until
from tests.producer.conftest import IMPATIENT
from tests.producer.model import Fault, ModelBroker, serving
from tests.producer.spooled import BRIEF, OFFLINE, whole, written_offline
from tests.producer.spooling_app import app, text_of


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
