"""F2: whose answer could not be registered is told so, and no session points at an answer that nobody writes.

What a client resumes is the generation that is open in its lane: it is registered by the batch that opens it, in the
same entry. So there is no pointer that could be written without it, or stay behind without it.
"""

import random
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from producer import BadRequest, ClientError, Conflict, Generation, Limits, NotFound, Producer, Unavailable
from tests.eventually import eventually
from tests.faults.cutter import Cutter
from tests.faults.proxy import Proxy
from tests.live import Broker, free_port

IMPATIENT = Limits(
    backoff_s_initial=0.01, backoff_s_max=0.05, backoff_s_jitter=0.01, deadline_s=0.5, finish_timeout_s=1
)


async def pointer(url: str, session_id: str) -> dict[str, Any]:
    """What the session points at, for those who ask for its state and for those who resume."""
    async with httpx.AsyncClient(base_url=url) as client:
        state = (await client.get(f"/v1/sessions/{session_id}")).json()
        async with client.stream("GET", f"/v1/sessions/{session_id}/ui-stream") as resumed:
            return {"status": state["status"], "open": len(state["generations"]), "resume": resumed.status_code}


NOTHING = {"status": "idle", "open": 0, "resume": 204}


async def messages(url: str, session_id: str) -> list[Any]:
    async with httpx.AsyncClient(base_url=url) as client:
        found: list[Any] = (await client.get(f"/v1/sessions/{session_id}/messages")).json()["messages"]
        return found


async def session(live: Broker, session_id: str) -> None:
    async with Producer(live.url) as producer:
        await producer.create_session(session_id)


@asynccontextmanager
async def told(
    kind: type[ClientError], producer: Producer, *ids: str, **opening: Any
) -> AsyncGenerator[Generation, None]:
    """A writer that gets this error from the first call that waits, and from every one after it."""
    generation = await producer.generation(*ids, **opening).__aenter__()
    await generation.write({"type": "text-delta", "id": "0", "delta": "x"})
    yield generation
    for call in (generation.flush, generation.finish, lambda: generation.write("more")):
        with pytest.raises(kind):
            await call()


async def test_answer_that_the_broker_refuses_to_open_is_told_and_leaves_no_pointer(live: Broker) -> None:
    await session(live, "refused")
    async with Producer(live.url, limits=IMPATIENT) as producer:
        async with told(BadRequest, producer, "refused", "g", format="nobodys-format"):
            pass
        assert await pointer(live.url, "refused") == NOTHING
        assert await messages(live.url, "refused") == []
        async with producer.generation("refused", "another", format="text") as generation:
            await generation.write("the next one is none the worse")
    [message] = await messages(live.url, "refused")
    assert message["status"] == "complete"


async def test_answer_in_a_session_that_is_not_there_is_told(live: Broker) -> None:
    async with Producer(live.url, limits=IMPATIENT) as producer:
        async with told(NotFound, producer, "nowhere", "g"):
            pass
        async with httpx.AsyncClient(base_url=live.url) as client:
            assert (await client.get("/v1/sessions/nowhere")).status_code == 404


async def test_answer_whose_opening_never_arrives_is_told_and_leaves_no_pointer(live: Broker) -> None:
    await session(live, "unheard")
    way = Cutter(live.port, random.Random(1), 10**9, 10**9)
    way.is_open = False
    async with (
        way.serving(),
        Producer(way.url, limits=IMPATIENT) as producer,
        told(Unavailable, producer, "unheard", "g"),
    ):
        pass
    assert await pointer(live.url, "unheard") == NOTHING
    assert await messages(live.url, "unheard") == []


async def test_answer_whose_opening_was_never_acknowledged_is_told_and_pointed_at_no_longer_than_its_lease(
    live: Broker,
) -> None:
    """It arrived, and its writer cannot know: it runs until its lease has run out, and then it has failed."""
    await session(live, "unsure")
    proxy = Proxy(free_port(), live.port, lambda _: True)
    url = f"http://127.0.0.1:{proxy.port}"
    async with (
        proxy.serving(),
        Producer(url, limits=IMPATIENT, upload="post") as producer,
        told(Unavailable, producer, "unsure", "g", lease_ms=1000),
    ):
        await eventually(lambda: points_at(live.url, "unsure", {"status": "streaming", "open": 1, "resume": 200}))
    await eventually(lambda: points_at(live.url, "unsure", NOTHING))
    [message] = await messages(live.url, "unsure")
    assert (message["status"], message["reason"]) == ("failed", "LEASE_EXPIRED")


async def points_at(url: str, session_id: str, expected: dict[str, Any]) -> bool:
    return await pointer(url, session_id) == expected


async def test_session_that_could_not_be_registered_is_told_and_not_half_there(live: Broker) -> None:
    """Together with its first message, or not at all."""
    way = Cutter(live.port, random.Random(1), 10**9, 10**9)
    way.is_open = False
    message = {"id": "m", "role": "user"}
    async with way.serving(), Producer(way.url, limits=IMPATIENT) as producer:
        with pytest.raises(Unavailable):
            await producer.create_session("half", message=message)
    async with httpx.AsyncClient(base_url=live.url) as client:
        assert (await client.get("/v1/sessions/half")).status_code == 404
    async with Producer(live.url) as producer:
        await producer.create_session("half", message=message)
        with pytest.raises(Conflict):
            await producer.create_session("half", message={**message, "role": "system"})
    assert [one["id"] for one in await messages(live.url, "half")] == ["m"]
