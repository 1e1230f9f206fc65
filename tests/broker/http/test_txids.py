"""`…/txids/{txid}`: told once it can be read, and not before."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from broker import limits
from consumer.wire import Code
from tests.broker.http.asgi import Answer, Client, broker

S = "/v1/sessions/s"
G = f"{S}/generations/g"
STREAM = "/v1/stream/sessions/s"
MESSAGE = b'{"id":"m","role":"user","parts":[]}'


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with broker() as client:
        await client.put(S)
        yield client


async def told(client: Client, txid: str, query: str = "timeoutMs=0") -> Answer:
    return await client.get(f"{S}/txids/{txid}?{query}")


async def test_every_kind_of_write_is_found_by_its_txid(client: Client) -> None:
    headers = {"producer_seq": "0", "txid": "chunks"}
    offsets = {
        "message": (await client.post(f"{S}/messages?txid=message", MESSAGE)).offset,
        "chunks": (await client.post(f"{G}/chunks?format=text", b'["a","b"]', **headers)).offset,
        "finish": (await client.post(f"{G}/finish?txid=finish", b"", producer_seq="1")).offset,
    }
    for txid, offset in offsets.items():
        found = await told(client, txid)
        assert (found.status, found.json) == (200, {"sessionId": "s", "txid": txid, "offset": offset})
    read = (await client.get(f"{STREAM}?offset={offsets['message']}")).json
    assert [record["headers"].get("txid") for record in read] == ["chunks"] * 3 + ["finish"]


async def test_who_waits_is_told_as_soon_as_it_is_there(client: Client) -> None:
    waiting = asyncio.create_task(told(client, "t", "timeoutMs=20000"))
    await client.post(f"{S}/messages?txid=other", MESSAGE.replace(b'"m"', b'"n"'))
    assert not waiting.done()
    written = await client.post(f"{S}/messages?txid=t", MESSAGE)
    assert (await asyncio.wait_for(waiting, 5)).json["offset"] == written.offset


async def test_txid_that_does_not_come_is_a_timeout(client: Client) -> None:
    answer = await told(client, "t", "timeoutMs=30")
    assert (answer.status, answer.code, answer.json["retryable"]) == (504, Code.TXID_TIMEOUT, True)


async def test_content_that_looks_like_a_txid_is_none(client: Client) -> None:
    body = b'{"headers":{"txid":"t"},"txid":"t","half":"\\ud83d"}'
    await client.post(f"{G}/chunks?format=text", body, producer_seq="0")
    assert (await told(client, "t")).status == 504


async def test_search_begins_where_it_is_told_to(client: Client) -> None:
    offset = (await client.post(f"{S}/messages?txid=t", MESSAGE)).offset
    assert (await told(client, "t", f"timeoutMs=0&offset={offset}")).status == 504
    assert (await told(client, "t", "timeoutMs=0&offset=-1")).status == 200


async def test_txid_is_found_behind_many_pages(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "READ_BYTES_MAX", 200)
    for seq in range(20):
        await client.post(f"{G}/chunks?format=text" if seq == 0 else f"{G}/chunks", b'["a","b"]', producer_seq=str(seq))
    written = await client.post(f"{S}/messages?txid=t", MESSAGE)
    assert (await told(client, "t")).json["offset"] == written.offset


async def test_end_of_the_session_is_told_to_who_waits(client: Client) -> None:
    waiting = asyncio.create_task(told(client, "t", "timeoutMs=20000"))
    await asyncio.sleep(0)
    await client.send("DELETE", S)
    answer = await asyncio.wait_for(waiting, 5)
    assert (answer.status, answer.code) == (410, Code.OFFSET_GONE)


async def test_drain_is_told_to_who_waits(client: Client) -> None:
    waiting = asyncio.create_task(told(client, "t", "timeoutMs=20000"))
    await asyncio.sleep(0)
    client.app.drain()
    assert (await asyncio.wait_for(waiting, 5)).code == Code.UNAVAILABLE


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/v1/sessions/none/txids/t", 404, Code.SESSION_NOT_FOUND),
        (f"{S}/txids/t?timeoutMs=x", 400, Code.INVALID_PARAMETER),
        (f"{S}/txids/t?timeoutMs=30001", 400, Code.INVALID_PARAMETER),
        (f"{S}/txids/t?wrong=1", 400, Code.INVALID_PARAMETER),
        (f"{S}/txids/t?offset=x", 400, Code.INVALID_OFFSET),
        (f"{S}/txids/%20", 400, Code.INVALID_PATH),
    ],
)
async def test_bad_questions_are_refused(client: Client, path: str, status: int, code: Code) -> None:
    answer = await client.get(path)
    assert (answer.status, answer.code) == (status, code)


async def test_bad_txid_header_is_refused(client: Client) -> None:
    answer = await client.post(f"{G}/chunks?format=text", b"1", producer_seq="0", txid="a b")
    assert (answer.status, answer.code) == (400, Code.INVALID_HEADER)
