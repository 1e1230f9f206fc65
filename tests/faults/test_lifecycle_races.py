"""R10, R42, R43 on a real broker: a session is reset, deleted, forked and stopped while many write to it."""

import random
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from consumer.session import SessionFold
from tests.live import Broker

S = "/v1/sessions/s"
WRITERS = 6
ROUNDS = 30
CHUNKS = 25


@dataclass
class Ack:
    """A batch that was acknowledged: when it was asked for and when answered, and the life that it is in."""

    generation_id: str
    seq: int
    begun: float
    ended: float
    life: str


@dataclass
class History:
    """What writers were told, and from when to when which life of the session was there."""

    acks: list[Ack] = field(default_factory=list)
    gone: list[tuple[float, float]] = field(default_factory=list)  # deleted, until just before it was created again
    lives: list[tuple[float, float, str]] = field(default_factory=list)  # from the answer to the next change
    forks: list[str] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=WRITERS + 4)
    async with Broker(tmp_path / "data") as running, httpx.AsyncClient(base_url=running.url, limits=limits) as client:
        await client.put(S)
        yield client


def life_of(offset: str) -> str:
    return offset.partition("_")[2]


async def write_for_ever(client: httpx.AsyncClient, history: History, writer: int) -> None:
    """One generation after another, each until it is refused or done; never twice the same batch."""
    for number in range(1_000_000):
        generation_id = f"w{writer}-{number}"
        for seq in range(CHUNKS):
            begun = time.monotonic()
            answer = await client.post(
                f"{S}/generations/{generation_id}/chunks?format=text&lane=l{writer}",
                json=f"{generation_id}:{seq} ",
                headers={"producer-seq": str(seq)},
            )
            told = answer.json()
            if answer.status_code != httpx.codes.OK:
                history.refused.add(told["code"])
                break
            history.acks.append(Ack(generation_id, seq, begun, time.monotonic(), life_of(told["offset"])))
        else:
            await client.post(f"{S}/generations/{generation_id}/finish", headers={"producer-seq": str(CHUNKS)})


async def take_away(client: httpx.AsyncClient, history: History, chance: random.Random) -> None:
    """Whatever can happen to a session, in a random order."""
    for number in range(ROUNDS):
        await anyio.sleep(chance.uniform(0, 0.03))
        match chance.choice(["reset", "reset", "delete", "delete", "fork", "fork", "stop"]):
            case "reset":
                answer = await client.post(f"{S}/reset", json={"reason": str(number)})
                assert answer.status_code == httpx.codes.OK
                await watch_life(client, history, chance)
            case "delete":
                while history.forks:  # they would keep what was deleted
                    await check_fork(client, history.forks.pop(), delete=True)
                assert (await client.delete(S)).status_code == httpx.codes.NO_CONTENT
                await stay_gone(client, history, chance)
                await watch_life(client, history, chance)
            case "fork":
                child = f"c{number}"
                made = await client.post(f"{S}/fork", json={"sessionId": child})
                assert made.status_code == httpx.codes.CREATED, made.text
                history.forks.append(child)
            case "stop":
                assert (await client.post(f"{S}/stop")).status_code == httpx.codes.OK


async def stay_gone(client: httpx.AsyncClient, history: History, chance: random.Random) -> None:
    """Nobody gets in until it is created again, which takes until its sources have heard of forks that are gone."""
    since = until = time.monotonic()
    created = 0
    assert (await client.post(f"{S}/stop")).json()["code"] == "SESSION_NOT_FOUND"
    while created != httpx.codes.CREATED:
        await anyio.sleep(chance.uniform(0, 0.02))
        until = time.monotonic()
        created = (await client.put(S)).status_code
    history.gone.append((since, until))


async def watch_life(client: httpx.AsyncClient, history: History, chance: random.Random) -> None:
    """A new life has begun: from here on it is the only one, until the next change."""
    since = time.monotonic()
    life = life_of((await client.get(S)).json()["offset"])
    await anyio.sleep(chance.uniform(0, 0.05))
    history.lives.append((since, time.monotonic(), life))


async def check_fork(client: httpx.AsyncClient, child: str, *, delete: bool) -> None:
    """It has what was there when it was made: whole, and with nothing open."""
    check_log(await records_of(client, child))
    state = (await client.get(f"/v1/sessions/{child}")).json()
    assert (state["status"], state["forkedFrom"]) == ("idle", "s")
    if delete:
        assert (await client.delete(f"/v1/sessions/{child}")).status_code == httpx.codes.NO_CONTENT


async def records_of(client: httpx.AsyncClient, session_id: str) -> list[Any]:
    found: list[Any] = []
    offset = "-1"
    while True:
        answer = await client.get(f"/v1/stream/sessions/{session_id}", params={"offset": offset})
        found += answer.json()
        offset = answer.headers["stream-next-offset"]
        if "stream-up-to-date" in answer.headers:
            return found


def check_log(records: list[Any]) -> dict[str, list[int]]:
    """The chunks by generation: there in order without a hole, and folding to their text."""
    fold, numbers, texts = SessionFold(), dict[str, list[int]](), dict[str, str]()
    for record in records:
        fold.add(record)
        if record["type"] == "chunk":
            generation_id, _, number = record["key"].rpartition(":")
            numbers.setdefault(generation_id, []).append(int(number))
            assert record["value"]["chunk"] == f"{generation_id}:{number} "
            texts[generation_id] = texts.get(generation_id, "") + record["value"]["chunk"]
    assert fold.malformed == 0
    assert all(found == list(range(len(found))) for found in numbers.values())
    for item in fold.items():
        folded = "".join(part["text"] for part in item["message"]["parts"])
        assert folded == texts.get(str(item["generationId"]), "")
    return numbers


@pytest.mark.parametrize("seed", [1, 2])
async def test_r43_reset_and_delete_racing_active_streams_neither_reorder_nor_corrupt_them(
    client: httpx.AsyncClient, seed: int
) -> None:
    """R10, R42, R43. Every ack is in the life that was there; a deleted session takes nothing; forks are whole."""
    history, chance = History(), random.Random(seed)
    async with anyio.create_task_group() as tasks:
        for writer in range(WRITERS):
            tasks.start_soon(write_for_ever, client, history, writer)
        await take_away(client, history, chance)
        await anyio.sleep(0.1)
        tasks.cancel_scope.cancel()

    # R42: behind the 204 nothing of the session was on its way, and nothing got in until it was created again
    for since, until in history.gone:
        assert not [ack for ack in history.acks if ack.begun >= since and ack.ended <= until]
    # behind the answer of a reset nobody writes to the life before it
    for since, until, life in history.lives:
        assert {ack.life for ack in history.acks if ack.begun >= since and ack.ended <= until} <= {life}
    # what was acknowledged in the life that is there is there, once, in order
    now = (await client.get(S)).json()
    there = check_log(await records_of(client, "s"))
    acked = [ack for ack in history.acks if ack.life == life_of(now["offset"])]
    assert acked
    assert all(ack.seq in there[ack.generation_id] for ack in acked)
    for child in history.forks:
        await check_fork(client, child, delete=False)
    assert {"FENCED", "SESSION_NOT_FOUND"} <= history.refused <= {"FENCED", "SESSION_NOT_FOUND", "SEQ_GAP"}


async def test_r10_of_many_who_open_the_same_lane_at_once_one_is_running(client: httpx.AsyncClient) -> None:
    """R10: openings, finishes and resets of one session come in one order, whoever sent them when."""

    async def open_and_finish(who: int) -> None:
        opened = await client.put(f"{S}/generations/g{who}", json={"format": "text"})
        assert opened.status_code in (httpx.codes.CREATED, httpx.codes.OK)
        if who % 3 == 0:
            await client.post(f"{S}/generations/g{who}/finish", headers={"producer-seq": "0"})
        if who % 10 == 0:
            await client.post(f"{S}/reset")

    async with anyio.create_task_group() as tasks:
        for who in range(60):
            tasks.start_soon(open_and_finish, who)
    fences, open_ones = [], 0
    for record in await records_of(client, "s"):
        if record["headers"]["operation"] == "insert":
            fences.append(record["value"]["fence"])
            open_ones += 1
        else:
            open_ones -= 1
        assert 0 <= open_ones <= 1
    assert fences == sorted(set(fences))
    assert len((await client.get(S)).json()["generations"]) == open_ones
