"""broker/unused.py: sessions that nobody uses go, and no others. The partition's time is the test's own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from broker.core.entry import Entry, Kind
from broker.partition import Partition
from broker.unused import BATCH, UnusedSessions
from tests.broker.core.entries import (
    SESSION,
    chunks,
    create_session,
    expire_lease,
    finish,
    message,
    open_generation,
    record,
    reset_session,
    stop,
)
from tests.broker.held import HeldJournal, opened
from tests.eventually import eventually
from tests.live import Broker

UNUSED_S = 3600.0


class Scene:
    """A partition, its time, and who looks for unused sessions in it."""

    def __init__(self, partition: Partition, journal: HeldJournal) -> None:
        self.partition = partition
        self.journal = journal
        self.unused = UnusedSessions(partition, UNUSED_S)

    async def do(self, *entries: Entry) -> None:
        for entry in entries:
            outcome = await self.partition.propose(entry)
            assert outcome.changed, outcome
        await self.partition.checkpoint()

    async def look_after(self, seconds: float) -> None:
        self.journal.time_ms += round(seconds * 1000)
        await self.unused.expire()

    async def is_there(self, path: str = SESSION) -> bool:
        return await self.partition.session(path) is not None

    @property
    def proposed(self) -> int:
        return sum(entry.kind == Kind.SESSION_EXPIRE for entry in self.journal.proposed)


@asynccontextmanager
async def looking() -> AsyncIterator[Scene]:
    journal = HeldJournal()
    async with opened(journal) as partition:
        yield Scene(partition, journal)


async def test_f6_session_that_was_created_and_never_used_goes() -> None:
    async with looking() as scene:
        await scene.do(create_session())
        await scene.look_after(UNUSED_S - 1)
        assert await scene.is_there()
        await scene.look_after(2)
        assert not await scene.is_there()
        assert await scene.partition.stream(SESSION) is None


async def test_f6_session_that_was_opened_ahead_and_never_used_goes() -> None:
    async with looking() as scene:
        await scene.do(create_session(), open_generation("g"), expire_lease("g", 1, 2))
        await scene.do(open_generation("h"), stop("h"))
        await scene.look_after(UNUSED_S + 1)
        assert not await scene.is_there()


@pytest.mark.parametrize(
    "entries",
    [
        [message("m")],
        [chunks("g", 0, b'"x"')],
        [chunks("g", 0, b'"x"'), finish("g", 1)],
        [open_generation("g"), stop("g"), message("m")],
        [open_generation("g")],
        [record("ann", b"{}")],
        [message("m"), reset_session()],
    ],
    ids=["message", "running", "answer", "message behind an attempt", "open", "presence", "reset"],
)
async def test_session_that_was_used_stays(entries: list[Entry]) -> None:
    async with looking() as scene:
        await scene.do(create_session(), *entries)
        await scene.look_after(100 * UNUSED_S)
        assert await scene.is_there()
        assert scene.proposed == 0


async def test_session_that_is_used_while_it_is_looked_at_stays() -> None:
    async with looking() as scene:
        await scene.do(create_session())
        await scene.partition.propose(message("m"))  # which the store does not have yet
        await scene.look_after(UNUSED_S + 1)
        assert await scene.is_there()


async def test_sessions_are_looked_at_once_however_many_there_are() -> None:
    async with looking() as scene:
        for number in range(BATCH + 10):
            await scene.partition.propose(create_session(path=f"sessions/{number}"))
            if number % 3:
                await scene.partition.propose(message("m", path=f"sessions/{number}"))
        await scene.partition.checkpoint()
        await scene.look_after(UNUSED_S + 100)
        assert [await scene.is_there(f"sessions/{number}") for number in range(6)] == [False, True, True] * 2
        assert scene.proposed == -(-(BATCH + 10) // 3)
        await scene.look_after(1)
        assert scene.proposed == -(-(BATCH + 10) // 3)
        await scene.do(create_session(path="sessions/later"))
        await scene.look_after(UNUSED_S + 100)
        assert not await scene.is_there("sessions/later")


async def test_f6_unused_session_goes_over_a_restart_of_the_broker_and_a_used_one_stays(tmp_path: Path) -> None:
    env = {"STREAMFOLD_UNUSED_SESSION_S": "2"}
    async with Broker(tmp_path / "data", env=env) as broker, httpx.AsyncClient(base_url=broker.url) as http:
        for name in ("used", "unused"):
            assert (await http.put(f"/v1/sessions/{name}")).status_code == 201
        await http.post("/v1/sessions/used/messages", json={"id": "m", "role": "user"})
        await broker.kill()
        await broker.start()

        async def is_gone() -> bool:
            return (await http.get("/v1/sessions/unused")).status_code == 404

        await eventually(is_gone)
        assert (await http.get("/v1/sessions/used")).status_code == 200
        assert (await http.get("/v1/stream/sessions/unused")).status_code == 404
        assert [session["sessionId"] for session in (await http.get("/v1/sessions")).json()["sessions"]] == ["used"]
