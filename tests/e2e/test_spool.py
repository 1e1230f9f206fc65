"""The spool against a real broker: what a laptop does that sleeps, and comes back when the world has moved on."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from producer import Limits, Producer
from tests.eventually import eventually
from tests.live import Broker

LIMITS = Limits(backoff_s_initial=0.02, backoff_s_max=0.2, backoff_s_jitter=0.02, finish_timeout_s=5.0)


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Broker]:
    async with Broker(tmp_path / "data") as running:
        yield running


async def messages(url: str) -> list[dict[str, Any]]:
    async with httpx.AsyncClient(base_url=url) as client:
        answer = await client.get("/v1/sessions/s/messages")
        answer.raise_for_status()
        found: list[dict[str, Any]] = answer.json()["messages"]
        return found


def text_of(message: dict[str, Any]) -> str:
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
    assert (message["status"], text_of(message)) == ("complete", "before, and after")


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
    told = {message["id"]: (message["status"], text_of(message)) for message in await messages(broker.url)}
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
    assert text_of(message) == "".join(f"{n} " for n in range(60))
