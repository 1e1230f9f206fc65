"""Subscriptions against a real `streamfold serve`, a real receiver, and SIGKILL (PROTOCOL.md 6, 7)."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from tests.eventually import eventually
from tests.live import Broker
from tests.receiver import Received, Receiver

LEASE_MS = 1_000


class World:
    """A broker, a receiver, and a client of the one that subscribes the other."""

    def __init__(self, broker: Broker, receiver: Receiver, http: httpx.AsyncClient) -> None:
        self.broker = broker
        self.receiver = receiver
        self.http = http

    def sub(self, subscription_id: str = "sub-1", part: str = "") -> str:
        return f"{self.broker.url}/v1/stream/__ds/subscriptions/{subscription_id}{part}"

    async def subscribe(self, subscription_id: str = "sub-1", **more: Any) -> Any:
        body = {"pattern": "events/*", "lease_ttl_ms": LEASE_MS, **more}
        if "wake_stream" in body:
            body = {"type": "pull-wake", **body}
        else:
            body = {"type": "webhook", "webhook": {"url": self.receiver.url}, **body}
        answer = await self.http.put(self.sub(subscription_id), json=body)
        assert answer.is_success, answer.text
        return answer.json()

    async def emit(self, path: str = "events/a", event: str = "e") -> str:
        """Append an event, to a stream that is made for it if need be; the tail after it."""
        url = f"{self.broker.url}/v1/stream/{path}"
        answer = await self.http.post(url, json=[event])
        if answer.status_code == 404:
            answer = await self.http.put(url, json=[event])
        assert answer.is_success, answer.text
        return str(answer.headers["stream-next-offset"])

    async def call_back(self, received: Received, *, offset: str = "", done: bool = True) -> httpx.Response:
        wake = received.json
        acks = [{"stream": wake["streams"][0]["path"], "offset": offset}] if offset else []
        return await self.http.post(
            wake["callback_url"],
            json={"wake_id": wake["wake_id"], "generation": wake["generation"], "acks": acks, "done": done},
            headers={"authorization": f"Bearer {wake['callback_token']}"},
        )

    async def claim(self, worker: str = "me") -> httpx.Response:
        return await self.http.post(self.sub(part="/claim"), json={"worker": worker})

    async def report(self, lease: Any, action: str = "ack", **more: Any) -> httpx.Response:
        return await self.http.post(
            self.sub(part=f"/{action}"),
            json={"wake_id": lease["wake_id"], "generation": lease["generation"], **more},
            headers={"authorization": f"Bearer {lease['token']}"},
        )

    async def acked(self) -> dict[str, str]:
        streams = (await self.http.get(self.sub())).json()["streams"]
        return {stream["path"]: stream["acked_offset"] for stream in streams}

    async def events(self, path: str = "wake/pool") -> list[Any]:
        return list((await self.http.get(f"{self.broker.url}/v1/stream/{path}")).json())


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with Broker(tmp_path / "data") as broker, Receiver() as receiver, httpx.AsyncClient() as http:
        yield World(broker, receiver, http)


def decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def verify(received: Received, jwks: Any) -> None:
    """As a receiver does it, with what the protocol gives it. Raises InvalidSignature."""
    parts = dict(part.split("=", 1) for part in received.headers["webhook-signature"].split(","))
    (key,) = (key for key in jwks["keys"] if key["kid"] == parts["kid"])
    public = Ed25519PublicKey.from_public_bytes(decoded(key["x"]))
    public.verify(decoded(parts["ed25519"]), f"{parts['t']}.".encode() + received.body)


# -- webhooks --------------------------------------------------------------------------------------------------------


async def test_webhook_can_be_verified_and_is_acked_when_its_receiver_is_done(world: World) -> None:
    signing = (await world.subscribe())["webhook"]["signing"]
    world.receiver.answer(200, b'{"done": true}')
    tail = await world.emit()
    received = await world.receiver.next()
    verify(received, (await world.http.get(signing["jwks_url"])).json())
    (stream,) = received.json["streams"]
    assert (stream["path"], stream["link_type"], stream["tail_offset"]) == ("events/a", "glob", tail)
    assert stream["has_pending"]
    assert await eventually(lambda: has_acked(world, "events/a", tail))


async def has_acked(world: World, path: str, offset: str) -> bool:
    return (await world.acked()).get(path) == offset


async def test_content_that_comes_during_a_wake_wakes_once_more(world: World) -> None:
    """PROTOCOL 7.1: only the snapshot is acked."""
    await world.subscribe(lease_ttl_ms=60_000)
    first_tail = await world.emit()
    first = await world.receiver.next()
    second_tail = await world.emit()
    answer = await world.call_back(first, offset=first_tail)
    assert answer.json() == {"ok": True, "next_wake": True}
    second = await world.receiver.next()
    assert second.json["generation"] == first.json["generation"] + 1
    assert second.json["wake_id"] != first.json["wake_id"]
    assert second.json["streams"][0]["tail_offset"] == second_tail


async def test_failed_delivery_is_tried_again_as_the_same_wake(world: World) -> None:
    """PROTOCOL 7.1: even with a lease that is shorter than the wait."""
    await world.subscribe()
    world.receiver.answer(503)
    tail = await world.emit()
    first = await world.receiver.next()
    assert await eventually(lambda: has_status(world, "failed"))
    second = await world.receiver.next()
    world.receiver.answer(200, b'{"done": true}')
    third = await world.receiver.next()
    assert {wake.json["wake_id"] for wake in (first, second, third)} == {first.json["wake_id"]}
    assert await eventually(lambda: has_acked(world, "events/a", tail))
    assert await has_status(world, "active")


async def has_status(world: World, status: str) -> bool:
    return bool((await world.http.get(world.sub())).json()["status"] == status)


async def test_retry_goes_on_after_the_broker_was_killed(world: World) -> None:
    await world.subscribe(lease_ttl_ms=60_000)
    world.receiver.answer(503)
    tail = await world.emit()
    first = await world.receiver.next()
    await world.broker.kill()
    world.receiver.answer(200, b'{"done": true}')
    await world.broker.start()
    second = await world.receiver.next()
    assert (second.json["wake_id"], second.json["generation"]) == (first.json["wake_id"], first.json["generation"])
    assert await eventually(lambda: has_acked(world, "events/a", tail))
    keys = (await world.http.get(f"{world.broker.url}/v1/stream/__ds/jwks.json")).json()
    verify(first, keys)
    verify(second, keys)


async def test_delivered_wake_is_not_delivered_again_by_a_restart(world: World) -> None:
    """The callback of a wake from before the crash still counts, too."""
    await world.subscribe(lease_ttl_ms=60_000)
    tail = await world.emit()
    received = await world.receiver.next()
    await world.call_back(received, done=False)
    await world.broker.restart()
    answer = await world.call_back(received, offset=tail)
    assert answer.json() == {"ok": True, "next_wake": False}
    assert (await world.acked())["events/a"] == tail
    await world.emit()
    assert (await world.receiver.next()).json["generation"] == received.json["generation"] + 1


async def test_lease_that_runs_out_makes_a_new_wake_and_fences_the_old(world: World) -> None:
    """PROTOCOL 7.3."""
    await world.subscribe()
    tail = await world.emit()
    first = await world.receiver.next()
    second = await world.receiver.next()
    assert second.json["generation"] == first.json["generation"] + 1
    stale = await world.call_back(first, offset=tail)
    assert (stale.status_code, stale.json()["error"]["code"]) == (409, "FENCED")
    assert (await world.acked())["events/a"] != tail
    assert (await world.call_back(second, offset=tail)).is_success


async def test_deleted_subscription_refuses_the_callbacks_that_are_under_way(world: World) -> None:
    """PROTOCOL 6.3: and one of the same id knows nothing of them."""
    await world.subscribe(lease_ttl_ms=60_000)
    tail = await world.emit()
    received = await world.receiver.next()
    assert (await world.http.delete(world.sub())).status_code == 204
    gone = await world.call_back(received, offset=tail)
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "SUBSCRIPTION_NOT_FOUND")
    await world.subscribe(lease_ttl_ms=60_000)
    other = await world.call_back(received, offset=tail)
    assert (other.status_code, other.json()["error"]["code"]) == (401, "TOKEN_INVALID")


async def test_everything_of_a_subscription_survives_a_kill(world: World) -> None:
    await world.emit("events/old")
    before = await world.subscribe(streams=["manual/a"], description="d")
    await world.http.post(world.sub(part="/streams"), json={"streams": ["manual/b"]})
    told = (await world.http.get(world.sub())).json()
    await world.broker.restart()
    assert (await world.http.get(world.sub())).json() == told
    assert (await world.subscribe(streams=["manual/a"], description="d")) == told
    assert [stream["path"] for stream in told["streams"]] == ["manual/a", "events/old", "manual/b"]
    assert told["created_at"] == before["created_at"]


async def test_stream_made_anew_is_pending_from_its_start(world: World) -> None:
    world.receiver.answer(200, b'{"done": true}')
    await world.subscribe()
    tail = await world.emit()
    await world.receiver.next()
    assert await eventually(lambda: has_acked(world, "events/a", tail))
    await world.http.delete(f"{world.broker.url}/v1/stream/events/a")
    anew = await world.emit()
    wake = await world.receiver.next()
    assert wake.json["streams"][0]["tail_offset"] == anew
    assert await eventually(lambda: has_acked(world, "events/a", anew))


async def test_session_that_is_written_wakes_whoever_subscribed_to_it(world: World) -> None:
    """A pool of workers answers messages of users so."""
    await world.subscribe(pattern="sessions/*")
    message = {"id": "m1", "role": "user", "parts": []}
    await world.http.put(f"{world.broker.url}/v1/sessions/s1", json={"message": message})
    assert (await world.receiver.next()).json["streams"][0]["path"] == "sessions/s1"


# -- pull-wake -------------------------------------------------------------------------------------------------------


async def pull(world: World, **more: Any) -> None:
    await world.http.put(f"{world.broker.url}/v1/stream/wake/pool", json=[])
    await world.subscribe(**{"pattern": "**", "wake_stream": "wake/pool", **more})


async def woken(world: World, count: int) -> list[Any]:
    """The wake events, once there are so many."""

    async def enough() -> list[Any]:
        events = await world.events()
        return events if len(events) >= count else []

    return await eventually(enough)


async def test_wake_is_told_once_and_not_for_itself(world: World) -> None:
    """A pattern that covers the wake stream would wake it for ever."""
    await pull(world)
    await world.emit()
    (event,) = await woken(world, 1)
    assert (event["type"], event["subscription_id"], event["stream"], event["generation"]) == (
        *("wake", "sub-1", "events/a"),
        1,
    )
    assert (await world.claim()).status_code == 200
    await world.broker.restart()
    assert len(await world.events()) == 1


async def test_wake_is_told_when_its_stream_is_made_at_last(world: World) -> None:
    await world.subscribe(wake_stream="wake/pool")
    await world.emit()
    assert await eventually(lambda: has_status(world, "failed"))
    await world.broker.restart()
    await world.http.put(f"{world.broker.url}/v1/stream/wake/pool", json=[])
    assert [event["generation"] for event in await woken(world, 1)] == [1]


async def test_dead_worker_hands_its_work_to_another(world: World) -> None:
    """PROTOCOL 7.3: its lease runs out, a wake follows, and it is fenced when it comes back."""
    await pull(world)
    tail = await world.emit()
    await woken(world, 1)
    first = (await world.claim("dead")).json()
    busy = await world.claim("other")
    assert (busy.status_code, busy.json()["error"]["current_holder"]) == (409, "dead")
    await woken(world, 2)
    second = (await world.claim("other")).json()
    assert second["generation"] > first["generation"]
    acks = [{"stream": "events/a", "offset": tail}]
    stale = await world.report(first, acks=acks, done=True)
    assert (stale.status_code, stale.json()["error"]["code"]) == (409, "FENCED")
    assert (await world.report(second, acks=acks, done=True)).json() == {"ok": True, "next_wake": False}


async def test_lease_outlives_a_kill_of_the_broker(world: World) -> None:
    await pull(world, lease_ttl_ms=60_000)
    tail = await world.emit()
    lease = (await world.claim()).json()
    await world.broker.restart()
    assert (await world.claim("other")).status_code == 409
    acks = [{"stream": "events/a", "offset": tail}]
    assert (await world.report(lease, acks=acks, done=True)).json() == {"ok": True, "next_wake": False}


async def test_release_wakes_again(world: World) -> None:
    await pull(world, lease_ttl_ms=60_000)
    await world.emit()
    await woken(world, 1)
    lease = (await world.claim()).json()
    assert (await world.report(lease, "release")).status_code == 204
    assert (await woken(world, 2))[-1]["generation"] == lease["generation"] + 1
    assert (await world.report(lease, "release")).status_code == 409


async def test_append_that_was_acknowledged_is_there_to_be_claimed(world: World) -> None:
    """However fast the claim comes: the stream joins the subscription before anybody is told that it does not."""
    await pull(world, lease_ttl_ms=60_000)
    for count in range(20):
        tail = await world.emit(f"events/{count}")
        lease = (await world.claim()).json()
        assert [stream["path"] for stream in lease["streams"] if stream["has_pending"]] == [f"events/{count}"]
        acks = [{"stream": f"events/{count}", "offset": tail}]
        assert (await world.report(lease, acks=acks, done=True)).json() == {"ok": True, "next_wake": False}


async def test_no_acknowledged_append_is_forgotten_by_a_broker_that_is_killed(world: World) -> None:
    """A crash may come between an append and the link that it calls for: the next start finds the stream."""
    await pull(world, lease_ttl_ms=60_000)
    tails: dict[str, str] = {}
    for kill in range(5):
        writing = asyncio.create_task(write_until_it_fails(world, f"events/{kill}", tails))
        assert await eventually(partial(has_length, tails, (kill + 1) * 40))
        await world.broker.kill()
        await writing
        await world.broker.start()

    async def all_are_linked() -> bool:
        return tails.keys() <= (await world.acked()).keys()

    assert await eventually(all_are_linked)
    lease = (await world.claim()).json()
    pending = {stream["path"]: stream["tail_offset"] for stream in lease["streams"] if stream["has_pending"]}
    assert tails.items() <= pending.items()


async def write_until_it_fails(world: World, prefix: str, tails: dict[str, str]) -> None:
    """Put an event into one new stream after the other; `tails` are of those that were acknowledged."""
    with contextlib.suppress(httpx.TransportError):
        for count in range(150):
            tails[f"{prefix}-{count}"] = await world.emit(f"{prefix}-{count}")


async def has_length(found: dict[str, str], length: int) -> bool:
    return len(found) >= length
