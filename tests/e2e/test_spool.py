"""The spool against a real broker: what a laptop does that sleeps, and comes back when the world has moved on."""

import random
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import httpx

from consumer import Reader
from producer import Limits, Producer
from tests.eventually import eventually
from tests.live import Broker
from tests.producer.spooling_app import app, text_of

LIMITS = Limits(backoff_s_initial=0.02, backoff_s_max=0.2, backoff_s_jitter=0.02, finish_timeout_s=5.0)


async def messages(url: str, session_id: str = "s") -> list[dict[str, Any]]:
    async with httpx.AsyncClient(base_url=url) as client:
        answer = await client.get(f"/v1/sessions/{session_id}/messages")
        answer.raise_for_status()
        found: list[dict[str, Any]] = answer.json()["messages"]
        return found


def said(message: dict[str, Any]) -> str:
    return "".join(part["text"] for part in message["message"]["parts"])


async def test_answer_goes_on_in_its_message_after_the_lease_ran_out(broker: Broker, tmp_path: Path) -> None:
    """The process is gone in the middle, the broker ends the generation, and another process goes on."""
    spool = tmp_path / "spool.sqlite"
    async with Producer(broker.url, limits=LIMITS, spool=spool) as producer:
        asleep = await producer.spooled("s", "g", format="text", lease_ms=1000).__aenter__()
        await asleep.write("before, ")
        await asleep.delivered(20)

    async def ended() -> bool:
        return [message["status"] for message in await messages(broker.url)] == ["failed"]

    await eventually(ended)
    async with Producer(broker.url, limits=LIMITS, spool=spool) as producer:
        async with producer.spooled("s", "g", format="text", lease_ms=1000) as awake:
            assert awake.written_chunks == 1
            await awake.write("and after")
        await awake.delivered(20)
    [message] = await messages(broker.url)
    assert (message["status"], said(message)) == ("complete", "before, and after")


KILLS = 2
LEASE_MS_SHORT = 1000
CHUNKS = 300
WHOLE = "".join(text_of(n) for n in range(CHUNKS))


async def test_n6_application_killed_in_the_middle_goes_on_in_its_message_when_its_lease_has_run_out(
    broker: Broker, tmp_path: Path
) -> None:
    """SIGKILL, the broker ends what was open, the application starts again: nothing is lost, and nothing doubled."""
    async with anyio.create_task_group() as tasks:  # most of it is waiting for leases
        for seed in range(3):
            tasks.start_soon(
                live_through_kills, broker.url, tmp_path, f"late-{seed}", random.Random(seed), LEASE_MS_SHORT
            )
    for seed in range(3):
        opened = await generations(broker.url, f"late-{seed}")
        assert [one["continues"] for one in opened] == [None, *(one["id"] for one in opened[:-1])]
        assert len(opened) == 1 + KILLS
        assert {one["messageId"] for one in opened} == {"g"}


async def test_n6_application_killed_in_the_middle_goes_on_in_its_generation_within_the_lease(
    broker: Broker, tmp_path: Path
) -> None:
    await live_through_kills(broker.url, tmp_path, "soon", random.Random(7), 60_000)
    assert [one["id"] for one in await generations(broker.url, "soon")] == ["g"]


async def test_n6_application_killed_behind_its_finish_has_its_answer_delivered(broker: Broker, tmp_path: Path) -> None:
    """The end was told to the spool; the broker was away and gets it from the next process."""
    spool = tmp_path / "spool.sqlite"
    await broker.kill()
    assert not await anyio.to_thread.run_sync(lived, broker.url, spool, "s", 60_000, CHUNKS)
    await broker.start()
    assert await anyio.to_thread.run_sync(lived, broker.url, spool, "s", 60_000, None)
    await check_whole(broker.url, "s")


async def live_through_kills(url: str, folder: Path, session_id: str, chance: random.Random, lease_ms: int) -> None:
    """Kill it, let its lease run out if that is short, start it again; at last it may come to its end."""
    spool = folder / f"{session_id}.sqlite"
    generation_id = "g"
    for number in range(KILLS):
        kill_at = chance.randrange(5, CHUNKS // (KILLS + 1))
        life = partial(lived, url, spool, session_id, lease_ms, kill_at, opens=generation_id)
        assert not await anyio.to_thread.run_sync(life)
        if lease_ms == LEASE_MS_SHORT:
            await eventually(partial(has_ended, url, session_id, number + 1))
            generation_id = f"g~{number + 1}"
    assert await anyio.to_thread.run_sync(lived, url, spool, session_id, lease_ms, None)
    await check_whole(url, session_id)


def lived(
    url: str, spool: Path, session_id: str, lease_ms: int, kill_at: int | None, *, opens: str | None = None
) -> bool:
    """Run the application; kill it after so many lines, as soon as it has opened that. Whether it came to its end."""
    with app(url, spool, CHUNKS, session_id=session_id, lease_ms=lease_ms) as process:
        for count, line in enumerate(process.stdout):
            if kill_at is not None and count >= kill_at and (opens is None or is_open(url, session_id, opens)):
                process.kill()
                return False
            if line == "delivered\n":
                return True
    raise AssertionError("the application died by itself")


def is_open(url: str, session_id: str, generation_id: str) -> bool:
    return httpx.get(f"{url}/v1/sessions/{session_id}/generations/{generation_id}").is_success


async def has_ended(url: str, session_id: str, count: int) -> bool:
    """Whether so many generations of it were ended by their lease."""
    reasons = [one["reason"] for one in await generations(url, session_id)]
    return reasons == ["LEASE_EXPIRED"] * count


async def generations(url: str, session_id: str) -> list[dict[str, Any]]:
    """What readers see of them, in the order in which they were opened."""
    found: dict[str, dict[str, Any]] = {}
    for record in await records(url, session_id):
        if record["type"] == "generation":
            known = {"reason": None, "continues": None, "id": record["key"]}
            found[record["key"]] = {**known, **found.get(record["key"], {}), **record["value"]}
    return [*found.values()]


async def records(url: str, session_id: str) -> list[dict[str, Any]]:
    async with Reader(url) as reader:
        return [*(await reader.read(f"sessions/{session_id}")).records]


async def check_whole(url: str, session_id: str) -> None:
    """Every chunk once and in order, for those who read the log and for those who read messages."""
    chunks = [record["value"]["chunk"] for record in await records(url, session_id) if record["type"] == "chunk"]
    assert "".join(chunks) == WHOLE
    [message] = await messages(url, session_id)
    assert (message["id"], message["status"], said(message)) == ("g", "complete", WHOLE)


async def test_answer_from_offline_days_leaves_alone_what_runs_today(broker: Broker, tmp_path: Path) -> None:
    spool = tmp_path / "spool.sqlite"
    away = replace(LIMITS, finish_timeout_s=0.1)
    async with (
        Producer("http://127.0.0.1:9", limits=away, spool=spool) as producer,
        producer.spooled("s", "offline", format="text") as generation,
    ):
        await generation.write("from the train")
    async with Producer(broker.url, limits=LIMITS) as other:
        await other.create_session("s")
        async with other.generation("s", "today", format="text") as today:
            await today.write("still ")
            await today.flush()
            async with Producer(broker.url, limits=LIMITS, spool=spool) as producer:
                await producer.outbox.drained(20)
            await today.write("running")
    told = {message["id"]: (message["status"], said(message)) for message in await messages(broker.url)}
    assert told == {"today": ("complete", "still running"), "offline": ("complete", "from the train")}


async def test_broker_that_is_killed_while_it_is_delivered_to_gets_everything_once(
    broker: Broker, tmp_path: Path
) -> None:
    limits = replace(LIMITS, batch_chunks_max=10)
    async with Producer(broker.url, limits=limits, spool=tmp_path / "spool.sqlite") as producer:
        async with producer.spooled("s", "g", format="text", merging="never") as generation:
            for n in range(60):
                await generation.write(f"{n} ")
                if n == 20:
                    await broker.kill()
                if n == 40:
                    await broker.start()
        await generation.delivered(30)
    [message] = await messages(broker.url)
    assert said(message) == "".join(f"{n} " for n in range(60))
