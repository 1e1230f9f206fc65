"""More sessions than fit into a page, into memory, or into the queue."""

from pathlib import Path

import anyio
import anyio.abc
import httpx
import pytest

from consumer import Reader
from consumer.materialize import materializing, moves
from consumer.materialize.materializing import Materializing
from consumer.materialize.queue import Queue
from tests.consumer.materialize.databases import SqliteDatabase, kept
from tests.consumer.materialize.test_materializing import until_equal
from tests.consumer.materialize.test_outages import materializing as running
from tests.live import Broker

SESSIONS = 40


async def test_sessions_beyond_every_bound_are_all_kept(
    tmp_path: Path, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those that were deleted, or made, while nobody looked."""
    monkeypatch.setattr(moves, "_PAGE_SESSIONS", 7)
    monkeypatch.setattr(materializing, "VANISHED_PAGE_SESSIONS", 7)
    monkeypatch.setattr(materializing, "FOLDS_KEPT_MAX", 3)
    database = SqliteDatabase(tmp_path / "rows.sqlite")
    names = [f"s{number:02}" for number in range(SESSIONS)]
    async with Reader(broker.url) as reader, httpx.AsyncClient(base_url=f"{broker.url}/v1/sessions/") as http:

        async def send(name: str, message_id: str) -> None:
            body = {"message": {"id": message_id, "role": "user", "content": message_id}}
            assert (await http.put(name, json=body)).is_success
            assert (await http.post(f"{name}/messages", json={"id": f"{message_id}2", "role": "user"})).is_success

        for name in names:
            await send(name, "m1")
        async with running(reader, database.sink()) as work:
            await until_equal(database, reader, *names)
            for name in reversed(names):
                await send(name, "m1")
                await http.post(f"{name}/messages", json={"id": "m3", "role": "user"})
            await until_equal(database, reader, *names)
            assert work.kept <= 3
        for name in names[::3]:
            assert (await http.delete(name)).is_success
        await send("new", "m1")
        sink = database.sink()
        await sink.open()
        again = Materializing(reader, sink, once=True)
        await again.run()
        await sink.aclose()
        assert again.transactions == 1, "what had not moved was written again"
        await until_equal(database, reader, *(name for name in names if name not in names[::3]), "new")
        assert len(await kept(database)) == SESSIONS - len(names[::3]) + 1


async def test_a_session_that_moves_while_it_is_in_hand_waits_once() -> None:
    queue = Queue()
    await queue.put("a", None)
    assert (await queue.take())[0] == "a"
    for _ in range(3):
        await queue.put("a", None)
    await queue.put("b", None)
    assert (await queue.take())[0] == "b"
    await queue.done("a")
    assert (await queue.take())[0] == "a"
    for session_id in "ab":
        await queue.done(session_id)
    await queue.until_empty()


async def test_a_full_queue_makes_the_finder_wait() -> None:
    queue = Queue(waiting_max=1)
    await queue.put("a", None)
    await queue.put("a", None)

    async def put(*, task_status: anyio.abc.TaskStatus[None]) -> None:
        task_status.started()
        await queue.put("b", None)
        taken.append("b is in")

    taken: list[str] = []
    async with anyio.create_task_group() as tasks:
        await tasks.start(put)
        await anyio.wait_all_tasks_blocked()
        assert taken == []
        taken.append((await queue.take())[0])
    assert taken == ["a", "b is in"]
