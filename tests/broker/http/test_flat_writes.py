"""The flat routes: a thin layer over generations, with error codes of their own."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from broker.errors import OutcomeUnknown, Overloaded
from tests.broker.http.asgi import Answer, Client, broker

S = "/v1/sessions/s"


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with broker() as client:
        await client.put(S)
        yield client


async def write(client: Client, body: Any, route: str = "chunks?format=text", **headers: str) -> Answer:
    encoded = body if isinstance(body, bytes) else json.dumps({"generationId": "g", **body}).encode()
    return await client.post(f"{S}/{route}", encoded, **headers)


async def finish(client: Client, **body: Any) -> Answer:
    return await write(client, body, "generations/finish")


async def chunks(client: Client) -> list[Any]:
    records = (await client.get("/v1/stream/sessions/s")).json
    return [record["value"]["chunk"] for record in records if record["type"] == "chunk"]


def told(answer: Answer, *names: str) -> list[Any]:
    return [answer.status, *(answer.json.get(name) for name in names)]


async def test_chunks_open_a_generation_and_go_on_in_the_order_they_come(client: Client) -> None:
    first = await write(client, {"messageId": "m", "chunk": "a"})
    assert told(first, "generationId", "messageId", "seq", "status") == [200, "g", "m", 0, "streaming"]
    batch = await write(client, {"chunks": ["b", ["c"]]}, "chunks/batch")
    assert told(batch, "seq", "offset") == [200, 1, (await client.get(S)).json["offset"]]
    assert told(await write(client, {"chunk": [1]}), "seq") == [200, 2]
    done = await finish(client, usage={"out": 3})
    assert told(done, "seq", "status") == [200, 3, "complete"]
    assert await chunks(client) == ["a", "b", ["c"], [1]]
    (item,) = (await client.get(f"{S}/messages")).json["messages"]
    assert (item["id"], item["status"], item["usage"]) == ("m", "complete", {"out": 3})


async def test_chunks_are_kept_as_they_were_spelled(client: Client) -> None:
    for spelled in (b'{"a": 1.0}', b'"\\ud800"'):
        await write(client, b'{"generationId":"g", "chunk": %b }' % spelled)
        await write(client, b'{"chunks":[%b],"generationId":"g"}' % spelled, "chunks/batch")
        body = (await client.get("/v1/stream/sessions/s")).body
        assert body.count(b'"chunk":%b}' % spelled) == 2


async def test_numbered_and_unnumbered_batches_mix(client: Client) -> None:
    await write(client, {"chunk": "a"})
    again = [await write(client, {"chunk": "b"}, producer_seq="1") for _ in range(2)]
    assert [told(answer, "seq", "duplicate") for answer in again] == [[200, 1, None], [200, 1, True]]
    assert (await write(client, {"chunk": "x"}, producer_seq="9")).code == "SEQ_GAP"
    usual = await client.post(f"{S}/generations/g/chunks", b'"c"', producer_seq="2")
    assert usual.status == 200
    assert await chunks(client) == ["a", "b", "c"]


async def test_unnumbered_chunk_that_is_sent_again_is_there_twice(client: Client) -> None:
    """Nothing tells a copy from the next one: who cannot have that numbers its batches."""
    for _ in range(2):
        await write(client, {"chunk": "a"})
    assert await chunks(client) == ["a", "a"]


async def test_finish_that_is_sent_again_is_a_success(client: Client) -> None:
    await write(client, {"chunk": "a"})
    first, again = await finish(client, status="failed"), await finish(client, status="failed")
    assert told(again, "duplicate", "offset") == [200, True, first.json["offset"]]
    assert told(await finish(client), "code", "generationStatus") == [409, "GENERATION_MISMATCH", "failed"]


async def test_generation_that_is_not_the_one_that_runs_is_a_mismatch(client: Client) -> None:
    await write(client, {"messageId": "m", "chunk": "a"})
    assert told(await write(client, {"messageId": "other", "chunk": "b"}), "code") == [409, "GENERATION_MISMATCH"]
    assert told(await write(client, {"generationId": "h", "messageId": "m", "chunk": "b"}), "code") == [
        409, "GENERATION_MISMATCH"
    ]  # fmt: skip
    assert told(await finish(client, generationId="never"), "code") == [409, "GENERATION_MISMATCH"]
    await write(client, {"generationId": "newer", "chunk": "b"})
    late = await write(client, {"chunk": "c"})
    assert told(late, "code", "reason", "generationId") == [409, "GENERATION_MISMATCH", "superseded", "g"]


@pytest.mark.parametrize("route", ["chunks", "chunks/batch", "generations/finish"])
async def test_session_that_is_not_there_is_not_found(client: Client, route: str) -> None:
    body = b'{"generationId":"g","%b":[1]}' % (b"chunks" if route == "chunks/batch" else b"chunk")
    body = b'{"generationId":"g"}' if route == "generations/finish" else body
    answer = await client.post(f"/v1/sessions/none/{route}", body)
    assert told(answer, "code", "sessionId", "generationId") == [404, "SESSION_NOT_FOUND", "none", "g"]


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("chunks", b""),
        ("chunks", b"["),
        ("chunks", b"[]"),
        ("chunks", b'{"chunk":1}'),
        ("chunks", b'{"generationId":"g"}'),
        ("chunks", b'{"generationId":"g","chunk":1,"more":2}'),
        ("chunks", b'{"generationId":"a b","chunk":1}'),
        ("chunks", b'{"generationId":7,"chunk":1}'),
        ("chunks?format=morse", b'{"generationId":"g","chunk":1}'),
        ("chunks/batch", b'{"generationId":"g","chunks":1}'),
        ("chunks/batch", b'{"generationId":"g","chunks":[]}'),
        ("chunks/batch", b'{"generationId":"g","chunk":1}'),
        ("generations/finish", b'{"generationId":"g","status":"done"}'),
        ("generations/finish", b'{"generationId":"g","more":1}'),
    ],
)
async def test_body_that_makes_no_sense_is_invalid_and_changes_nothing(client: Client, route: str, body: bytes) -> None:
    assert told(await write(client, body, route), "code") == [400, "INVALID_BODY"]
    assert (await client.get("/v1/stream/sessions/s")).json == []


async def test_ndjson_is_for_one_generation(client: Client) -> None:
    answer = await client.post(f"{S}/chunks", b"1\n", content_type="application/x-ndjson", producer_seq="0")
    assert told(answer, "code") == [400, "INVALID_CONTENT_TYPE"]


@pytest.mark.parametrize(("route", "code"), [("chunks", "WRITE_FAILED"), ("generations/finish", "FINISH_FAILED")])
@pytest.mark.parametrize("error", [Overloaded("no room"), OutcomeUnknown("who knows")])
async def test_broker_that_cannot_write_says_so(
    client: Client, monkeypatch: pytest.MonkeyPatch, route: str, code: str, error: Exception
) -> None:
    async def fail(_entry: object) -> object:
        raise error

    monkeypatch.setattr(client.app.partition, "propose", fail)
    answer = await write(client, {"chunk": "a"} if route == "chunks" else {}, route)
    assert told(answer, "code", "retryable", "generationId") == [503, code, True, "g"]
    assert answer.headers["retry-after"] == "1"


async def test_r36_lifecycle_races_that_are_refused_are_counted(client: Client) -> None:
    await write(client, {"chunk": "a"})
    await client.post(f"{S}/generations/g/stop", b"{}")
    await write(client, {"chunk": "b"})
    await client.put(f"{S}/generations/h", body=b'{"continues":"g","messageId":"other"}')
    text = (await client.get("/metrics")).body.decode()
    lines = [line for line in text.splitlines() if line.startswith("streamfold_lifecycle_races_refused_total")]
    assert lines == [
        'streamfold_lifecycle_races_refused_total{code="FENCED",kind="chunks"} 1.0',
        'streamfold_lifecycle_races_refused_total{code="GENERATION_MISMATCH",kind="generation_open"} 1.0',
    ]
