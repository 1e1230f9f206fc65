"""NDJSON uploads over a running broker: every way that one can go wrong."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from broker import limits
from broker.core.entry import Entry
from broker.errors import Overloaded, Unavailable
from consumer.wire import Code
from tests.broker.http.asgi import EVENT_WAIT_S_MAX, Client, broker
from tests.broker.http.ndjson_upload import Upload, chunks, state
from tests.broker.http.session_requests import G, S
from tests.eventually import eventually

BODY_BYTES_MAX = 10_000
pytestmark = pytest.mark.usefixtures("session")


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    """Of a broker that takes small bodies only."""
    async with broker(body_bytes_max=BODY_BYTES_MAX) as client:
        yield client


# -- what is refused before anything is there ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "query", "headers", "body", "status", "code"),
    [
        ("/v1/sessions/none/generations/g", "", {}, b"1\n", 404, Code.SESSION_NOT_FOUND),
        (G, "", {"producer_seq": "x"}, b"1\n", 400, Code.INVALID_PRODUCER),
        (G, "", {"producer_seq": "3"}, b"1\n", 409, Code.SEQ_GAP),
        (G, "wrong=1", {}, b"1\n", 400, Code.INVALID_PARAMETER),
        (G, "format=none", {}, b"1\n", 400, Code.UNKNOWN_FORMAT),
        (f"{S}/generations/%2e", "", {}, b"1\n", 400, Code.INVALID_PATH),
        (G, "", {"content_encoding": "br"}, b"1\n", 415, Code.UNSUPPORTED_CODING),
        (G, "", {"content_encoding": "gzip"}, b"1\n", 400, Code.INVALID_BODY),
        (G, "", {}, b"", 400, Code.EMPTY_BODY),
        (G, "", {}, b"\n \n\r\n", 400, Code.EMPTY_BODY),
        (G, "", {}, b"[]\n", 400, Code.EMPTY_ARRAY),
        (G, "", {}, b"{\n", 400, Code.INVALID_JSON),
        (G, "", {}, b'"\xff"\n', 400, Code.INVALID_JSON),
        (G, "", {}, b"[" * 200 + b"]" * 200 + b"\n", 400, Code.INVALID_JSON),
        (G, "", {}, b"[" * BODY_BYTES_MAX, 400, Code.INVALID_JSON),
        (G, "", {}, b'"' + b"x" * BODY_BYTES_MAX, 413, Code.BODY_TOO_LARGE),
    ],
)
async def test_upload_that_cannot_begin_is_refused_like_any_request(
    client: Client, target: str, query: str, headers: dict[str, str], body: bytes, status: int, code: Code
) -> None:
    before = (await client.get(S)).body
    upload = Upload(client.app, 0, query, target, **headers)
    upload.say(body, more=False)
    answer = await upload.answer()
    assert (answer.status, answer.code, answer.headers["connection"]) == (status, code, "close")
    assert (await client.get(S)).body == before
    assert client.app.uploads.in_flight == 0


async def test_first_line_that_never_ends_is_refused_while_it_still_comes(client: Client) -> None:
    upload = Upload(client.app)
    for _ in range(11):
        upload.say(b"x" * 1000)
    upload.end()
    assert (await upload.answer()).code == Code.BODY_TOO_LARGE


async def test_upload_of_which_nothing_comes_is_given_up(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BODY_READ_S", 0.05)
    monkeypatch.setattr(limits, "BODY_DISCARD_S", 0.05)
    assert (await Upload(client.app).answer()).code == Code.INVALID_BODY


async def test_one_upload_too_many_is_told_to_come_back(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client.app.uploads, "_uploads_max", 1)
    first, second = Upload(client.app), Upload(client.app)
    second.end()
    answer = await second.answer()
    assert (answer.status, answer.code, answer.headers["retry-after"]) == (503, Code.OVERLOADED, "1")
    first.leave()
    await first.task


# -- what goes wrong on the way --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"{", Code.INVALID_JSON),
        (b'"\xff"', Code.INVALID_JSON),
        (b"[]", Code.EMPTY_ARRAY),
        (b"[" * 200 + b"]" * 200, Code.INVALID_JSON),
        (b'"' + b"x" * BODY_BYTES_MAX + b'"', Code.BODY_TOO_LARGE),
    ],
)
async def test_bad_line_ends_the_upload_behind_those_before_it(client: Client, line: bytes, code: Code) -> None:
    upload = Upload(client.app)
    upload.say(b'"a"\n"b"\n' + line + b'\n"c"\n')
    assert "done" not in await upload.ack(1)
    error = (await upload.line())["error"]
    assert error["code"] == code
    upload.end()
    assert await upload.line() is None
    assert await chunks(client) == ["a", "b"]


async def test_silent_upload_is_given_up(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "UPLOAD_SILENCE_S", 0.05)
    monkeypatch.setattr(limits, "BODY_DISCARD_S", 0.05)
    upload = Upload(client.app)
    upload.say(b'"a"\n')
    await upload.ack(0)
    assert (await upload.line())["error"]["code"] == Code.INVALID_BODY
    assert await upload.line() is None


async def test_client_that_leaves_loses_nothing_that_was_whole(client: Client) -> None:
    upload = Upload(client.app)
    upload.say(b'"a"\n"b"\n"c')
    await upload.ack(1)
    upload.leave()
    await upload.task
    assert await chunks(client) == ["a", "b"]
    assert not client.app.uploads.open


async def test_client_that_takes_nothing_after_the_end_is_given_up(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "UPLOAD_STALL_S", 0.05)
    upload = Upload(client.app)
    stuck: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def takes_nothing(message: Any) -> None:
        if message["type"] == "http.response.body":
            await stuck

    monkeypatch.setattr(upload, "_send", takes_nothing)
    upload.say(b'"a"\n', more=False)
    async with asyncio.timeout(EVENT_WAIT_S_MAX):
        await upload.task
    assert not client.app.uploads.open


async def test_client_that_takes_nothing_for_long_gets_one_ack_for_all(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = Upload(client.app)
    gate = asyncio.Event()
    told: list[Any] = []

    async def takes_late(message: Any) -> None:
        if message["type"] == "http.response.body" and message.get("body"):
            await gate.wait()
            told.append(json.loads(message["body"]))

    monkeypatch.setattr(upload, "_send", takes_late)
    for _ in range(500):
        upload.say(b'"x"\n')

    async def all_there() -> bool:
        return bool((await client.get(G)).status == 200 and (await state(client))["seq"] == 499)

    await eventually(all_there)
    gate.set()
    upload.end()
    await upload.task
    assert len(told) <= 3
    assert (told[-1]["seq"], told[-1]["done"]) == (499, True)


async def test_no_more_is_read_than_the_window_takes(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[tuple[Any, Entry]] = []
    partition = client.app.partition
    propose = partition.propose_for
    monkeypatch.setattr(partition, "propose_for", lambda waiter, entry: held.append((waiter, entry)))
    upload = Upload(client.app)
    for _ in range(1000):
        upload.say(b'"x"\n')

    async def is_full() -> bool:
        return len(held) == limits.UPLOAD_IN_FLIGHT_MAX

    await eventually(is_full)
    await asyncio.sleep(0)
    assert (len(held), client.app.uploads.in_flight) == (limits.UPLOAD_IN_FLIGHT_MAX,) * 2
    monkeypatch.setattr(partition, "propose_for", propose)
    for waiter, entry in held:
        propose(waiter, entry)
    upload.end()
    while "done" not in (line := await upload.line()):
        pass
    assert line["seq"] == 999


async def test_broker_that_cannot_write_ends_the_upload_behind_what_it_wrote(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = Upload(client.app)
    upload.say(b'"a"\n')
    await upload.ack(0)
    partition = client.app.partition
    propose = partition.propose_for
    monkeypatch.setattr(
        partition, "propose_for", lambda waiter, _entry: waiter.set_exception(Unavailable("the disk is full"))
    )
    upload.say(b'"b"\n')
    error = (await upload.line())["error"]
    assert (error["code"], error["retryable"]) == (Code.UNAVAILABLE, True)
    monkeypatch.setattr(partition, "propose_for", propose)
    upload.end()
    assert await upload.line() is None
    assert await chunks(client) == ["a"]


async def test_broker_without_room_ends_the_upload_retryably(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    upload = Upload(client.app)
    upload.say(b'"a"\n')
    await upload.ack(0)

    async def no_room(_entry: Entry) -> None:
        raise Overloaded("no room")

    monkeypatch.setattr(client.app.partition, "has_room", lambda _entry: False)
    monkeypatch.setattr(client.app.partition, "wait_for_room", no_room)
    upload.say(b'"b"\n')
    assert (await upload.line())["error"]["code"] == Code.OVERLOADED
    upload.end()
    assert await upload.line() is None
