"""The list of recent sessions, kept up to date, against a real broker that is killed and hidden behind proxies."""

import statistics
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import anyio
import httpx
import pytest

from consumer import BadRequest, Limits, Recents, RecentsChange
from producer import Producer
from tests.live import Broker
from tests.nginx import Nginx
from tests.relay import Relay

PROMPT = Limits(
    backoff_s_initial=0.01, backoff_s_max=0.1, backoff_s_jitter=0.01, first_event_s_max=0.5, polling_wait_s=0.1
)
WAIT_S_MAX = 20.0


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Broker]:
    async with Broker(tmp_path / "data", env={"STREAMFOLD_SSE_LIFE_S": "1"}) as running:
        yield running


async def say(producer: Producer, session_id: str, message_id: str) -> None:
    """Something happens in the session, later than all before: activity is told to the millisecond."""
    await anyio.sleep(0.002)
    await producer.create_session(session_id)
    await producer.send_message(session_id, {"id": message_id, "role": "user", "text": "?"})


async def delete(broker: Broker, session_id: str) -> None:
    async with httpx.AsyncClient() as client:
        (await client.delete(f"{broker.url}/v1/sessions/{session_id}")).raise_for_status()


def ids(recents: Recents) -> list[str]:
    return [session.session_id for session in recents.sessions]


async def until(recents: Recents, changes: AsyncIterator[RecentsChange], *expected: str) -> None:
    """Follow until the list is this."""
    with anyio.fail_after(WAIT_S_MAX):
        while ids(recents) != [*expected]:
            await anext(changes)


# -- the list ------------------------------------------------------------------------------------------------------


async def test_the_latest_activity_comes_first_and_older_ones_when_they_are_asked_for(broker: Broker) -> None:
    async with Producer(broker.url) as producer:
        for session_id in "abcde":
            await say(producer, session_id, "m1")
        await say(producer, "b", "m2")
        async with Recents(broker.url, limit=2) as recents:
            assert ids(recents) == ["b", "e"]
            while recents.has_more:
                await recents.more()
            assert ids(recents) == ["b", "e", "d", "c", "a"]
            assert await recents.more() == []


async def test_a_broker_without_sessions_has_an_empty_list(broker: Broker) -> None:
    async with Recents(broker.url) as recents:
        assert (recents.sessions, recents.has_more) == ([], False)


async def test_a_limit_that_cannot_be_one_is_refused(broker: Broker) -> None:
    with pytest.raises(BadRequest, match="INVALID_PARAMETER"):
        async with Recents(broker.url, limit=0):
            pass


# -- live ----------------------------------------------------------------------------------------------------------


async def test_what_happens_in_a_session_moves_it_to_the_front(broker: Broker) -> None:
    async with Producer(broker.url) as producer:
        for session_id in "ab":
            await say(producer, session_id, "m1")
        async with Recents(broker.url) as recents, aclosing(recents.follow()) as changes:
            await say(producer, "a", "m2")
            await until(recents, changes, "a", "b")
            await say(producer, "new", "m1")
            await until(recents, changes, "new", "a", "b")
            await delete(broker, "a")
            await until(recents, changes, "new", "b")


async def test_an_answer_that_is_running_shows_in_the_list(broker: Broker) -> None:
    async with Producer(broker.url) as producer:
        await say(producer, "s", "m1")
        async with Recents(broker.url) as recents, aclosing(recents.follow()) as changes:
            async with producer.generation("s", "g", format="text") as generation:
                await generation.write("text")
                while recents.sessions[0].status != "streaming":
                    await anext(changes)
                assert [running["generationId"] for running in recents.sessions[0].generations] == ["g"]
            while recents.sessions[0].status != "idle":
                await anext(changes)
            assert recents.sessions[0].generations == []


async def test_a_message_is_in_the_list_within_half_a_second(broker: Broker) -> None:
    """The median, so that a machine which stalls once proves nothing."""
    async with Producer(broker.url) as producer:
        await say(producer, "s", "first")
        async with Recents(broker.url) as recents, aclosing(recents.follow()) as changes:
            took_s = []
            for number in range(15):
                before, began_s = recents.sessions[0].offset, time.monotonic()
                await say(producer, "s", f"m{number}")
                while recents.sessions[0].offset == before:
                    await anext(changes)
                took_s.append(time.monotonic() - began_s)

    assert statistics.median(took_s) < 0.5


async def test_pages_that_are_read_while_the_list_changes_bring_no_ghosts(broker: Broker) -> None:
    async with Producer(broker.url) as producer:
        for session_id in "abcd":
            await say(producer, session_id, "m1")
        async with Recents(broker.url, limit=2) as recents, aclosing(recents.follow()) as changes:
            assert ids(recents) == ["d", "c"]
            await say(producer, "a", "m2")
            await until(recents, changes, "a", "d", "c")
            assert [session.session_id for session in await recents.more()] == ["b"]
            assert ids(recents) == ["a", "d", "c", "b"]


# -- whatever breaks -----------------------------------------------------------------------------------------------


async def test_after_the_broker_was_killed_the_list_is_read_anew_and_the_difference_told(broker: Broker) -> None:
    async with Producer(broker.url) as producer:
        for session_id in "abc":
            await say(producer, session_id, "m1")
        async with Recents(broker.url, limits=PROMPT) as recents, aclosing(recents.follow()) as changes:
            await say(producer, "a", "m2")
            await until(recents, changes, "a", "c", "b")
            await broker.kill()
            await broker.start()
            await delete(broker, "c")
            await say(producer, "d", "m1")
            await until(recents, changes, "d", "a", "b")
            await say(producer, "b", "m2")
            await until(recents, changes, "b", "d", "a")


async def test_connections_that_end_in_order_lose_nothing(broker: Broker) -> None:
    async with (
        Producer(broker.url) as producer,
        Recents(broker.url, limits=PROMPT) as recents,
        aclosing(recents.follow()) as changes,
    ):
        for number in range(6):
            await say(producer, f"s{number}", "m1")
            await until(recents, changes, *(f"s{earlier}" for earlier in reversed(range(number + 1))))
            await anyio.sleep(0.25)  # longer in all than a connection lives here


async def test_where_events_are_held_back_the_list_is_polled(broker: Broker, tmp_path: Path) -> None:
    async with (
        Nginx(broker, tmp_path / "nginx", holds_back=True) as nginx,
        Producer(broker.url) as producer,
        Recents(nginx.url, limits=PROMPT) as recents,
        aclosing(recents.follow()) as changes,
    ):
        for number in range(3):
            await say(producer, f"s{number}", "m1")
            await until(recents, changes, *(f"s{earlier}" for earlier in reversed(range(number + 1))))


async def test_who_reconnects_need_not_wait_until_a_dead_connection_is_noticed(broker: Broker) -> None:
    relay = Relay(broker.port)
    async with (
        relay.serving() as url,
        Producer(broker.url) as producer,
        Recents(url, limits=Limits(backoff_s_initial=30.0, backoff_s_max=60.0)) as recents,
        aclosing(recents.follow()) as changes,
    ):
        for number in range(3):
            await say(producer, f"s{number}", "m1")
            await until(recents, changes, *(f"s{earlier}" for earlier in reversed(range(number + 1))))
            relay.freeze()
            await recents.reconnect()
