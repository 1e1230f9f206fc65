"""Between the commit and its acknowledgement: what was done is known again after a crash, and is not done twice."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.faults.checker import shown, violations
from tests.faults.client import SESSIONS, STREAMS, Answer, Client
from tests.faults.history import History
from tests.faults.proxy import Proxy, every_first_time
from tests.faults.scene import Scene
from tests.faults.storm import Storm
from tests.faults.talkers import Ending, Talker
from tests.faults.writers import Producer, Stream, created, producer_headers
from tests.live import Broker, free_port

JSON = {"content-type": "application/json"}
BATCHES = 30


class Asked(NamedTuple):
    """A write that is acknowledged to nobody, and what tells that it was done before."""

    method: str
    target: str
    headers: Mapping[str, str]
    content: bytes
    read_at: str
    done: str
    status_again: int


JSON_APPEND = Asked(
    "POST", f"{STREAMS}/json", {**JSON, **producer_headers("p", 0, 0)}, b'["once"]', f"{STREAMS}/json", "once", 204
)
WRITES = {
    "append_to_json": JSON_APPEND,
    "append_to_bytes": JSON_APPEND._replace(
        target=f"{STREAMS}/bytes",
        headers={"content-type": "text/plain", **producer_headers("p", 0, 0)},
        content=b"once",
        read_at=f"{STREAMS}/bytes",
    ),
    "append_and_close": JSON_APPEND._replace(headers={**JSON_APPEND.headers, "stream-closed": "true"}),
    "message": Asked(
        "POST",
        f"{SESSIONS}/s/messages",
        JSON,
        b'{"id":"once","role":"user"}',
        f"{STREAMS}/sessions/s",
        '"key":"once"',
        200,
    ),
    "first_chunks": Asked(
        "POST",
        f"{SESSIONS}/s/generations/g/chunks?format=text",
        {**JSON, "producer-seq": "0"},
        b'["once"]',
        f"{STREAMS}/sessions/s",
        '"chunk":"once"',
        200,
    ),
    "finish": Asked(
        "POST",
        f"{SESSIONS}/s/generations/g/finish",
        {**JSON, "producer-seq": "0"},
        b'{"status":"failed","reason":"once"}',
        f"{STREAMS}/sessions/s",
        '"reason":"once"',
        200,
    ),
    "session": Asked(
        "PUT",
        f"{SESSIONS}/new",
        JSON,
        b'{"message":{"id":"once","role":"user"}}',
        f"{STREAMS}/sessions/new",
        '"key":"once"',
        200,
    ),
}


@pytest.mark.parametrize("name", WRITES)
async def test_write_whose_ack_dies_with_the_broker_is_a_duplicate_when_told_again(name: str, tmp_path: Path) -> None:
    asked, history = WRITES[name], History()
    async with Broker(tmp_path / "data") as broker:
        proxy = Proxy(free_port(), broker.port, lambda _: True)
        with Client(broker.port, history) as direct, Client(proxy.port, history) as through:
            await prepare(direct)
            async with proxy.serving():
                assert await tell(through, asked) is None
            first = await proxy.withheld.get()
            assert first.head.status in (200, 201, 204)

            await broker.restart()

            again = await tell(direct, asked)
            assert again is not None
            assert again.status == asked.status_again
            assert again.next_offset == first.head.headers["stream-next-offset"]
            read = await direct.ask("GET", asked.read_at)
            assert read is not None
            assert read.body.decode().count(asked.done) == 1
    assert not history.complaints


async def prepare(client: Client) -> None:
    for target, content_type in ((f"{STREAMS}/json", "application/json"), (f"{STREAMS}/bytes", "text/plain")):
        answer = await client.ask("PUT", target, headers={"content-type": content_type})
        assert answer is not None
        assert answer.status == 201
    answer = await client.ask("PUT", f"{SESSIONS}/s")
    assert answer is not None
    assert answer.status == 201


async def tell(client: Client, asked: Asked) -> Answer | None:
    return await client.ask(asked.method, asked.target, headers=asked.headers, content=asked.content)


async def test_delete_whose_ack_dies_with_the_broker_stays_done(tmp_path: Path) -> None:
    history = History()
    async with Broker(tmp_path / "data") as broker:
        proxy = Proxy(free_port(), broker.port, lambda _: True)
        with Client(broker.port, history) as direct, Client(proxy.port, history) as through:
            await prepare(direct)
            async with proxy.serving():
                assert await through.ask("DELETE", f"{STREAMS}/json") is None
            first = await proxy.withheld.get()
            assert first.head.status == 204

            await broker.restart()

            for method in ("GET", "DELETE"):
                answer = await direct.ask(method, f"{STREAMS}/json")
                assert answer is not None
                assert answer.status == 404


async def test_every_ack_lost_once_loses_doubles_and_reorders_nothing(tmp_path: Path) -> None:
    """Every answer, of streams and sessions, is given once to nobody: all writers live on their second attempts."""
    history = History()
    async with Broker(tmp_path / "data") as broker:
        proxy = Proxy(free_port(), broker.port, every_first_time())
        with Client(broker.port, history) as direct, Client(proxy.port, history) as through:
            async with proxy.serving():
                await write_through(Storm(through, history, "every ack lost once"))
            await look(Scene(Storm(direct, history, "looking")))
    found = violations(history)
    assert not found, shown(found)
    assert proxy.withheld.qsize() > 3 * BATCHES


async def write_through(storm: Storm) -> None:
    json_stream, bytes_stream = Stream("json", "application/json"), Stream("bytes", "text/plain")
    storm.history.byte_paths.add("bytes")
    storm.history.session_paths.add("sessions/talk")
    talker = Talker(storm, "talk")
    await talker.create()
    async with asyncio.TaskGroup() as group:
        for stream in (json_stream, bytes_stream):
            await created(storm, stream, storm.chance(stream.path))
            for number in range(2):
                producer = Producer(storm, stream, f"{stream.path}-p{number}", batches_max=BATCHES)
                group.create_task(producer.run())
        group.create_task(talk(talker))


async def talk(talker: Talker) -> None:
    for ending in (Ending.FINISHED, Ending.SUPERSEDED, Ending.STOPPED, Ending.FAILED):
        talker.turn += 1
        await talker.post_message()
        await talker.generate(ending)


async def look(scene: Scene) -> None:
    for path in ("json", "bytes", "sessions/talk"):
        scene.history.logs.append(await scene.whole(path))
    scene.history.sessions.append(await scene.state("talk"))
