"""A session's lifecycle over HTTP: opened ahead, continued, stopped, reset, deleted; and what others then see."""

import asyncio
from typing import Any

import pytest

from broker import limits
from tests.broker.http.asgi import Client
from tests.broker.http.session_requests import JSON_TYPE, STREAM, G, S
from tests.broker.http.session_steps import C, chunk, finish, messages, say, text, told

pytestmark = pytest.mark.usefixtures("session")


# -- opened ahead ----------------------------------------------------------------------------------------------------


async def test_generation_that_is_opened_ahead_is_pending_until_its_first_chunk(client: Client) -> None:
    body = b'{"messageId":"m","lane":"l","format":"text","actorId":"me","leaseMs":5000,"metadata":{"k":1}}'
    opened = await client.put(G, body=body)
    assert told(opened, "generationId", "messageId", "lane", "fence", "status", "leaseMs") == [
        201, "g", "m", "l", 1, "pending", 5000
    ]  # fmt: skip
    assert (await messages(client))["m"]["status"] == "pending"
    assert (await client.get(S)).json["generations"][0]["status"] == "pending"

    again = await client.put(G, body=body)
    assert (again.status, again.json["status"]) == (200, "pending")
    assert told(await chunk(client, "g", 0, "a"), "status", "fence", "lane") == [200, "streaming", 1, "l"]
    item = (await messages(client))["m"]
    assert (item["status"], item["metadata"]) == ("streaming", {"k": 1})
    await finish(client, "g", 1)
    assert (await messages(client))["m"]["metadata"] == {"k": 1}


async def test_state_protocol_readers_see_when_it_begins(client: Client) -> None:
    await client.put(G, body=b'{"format":"text"}')
    await chunk(client, "g", 0, "a")
    records = (await client.get(STREAM)).json
    shapes = [(record["type"], record["headers"]["operation"], record["value"].get("status")) for record in records]
    assert shapes == [
        ("generation", "insert", "pending"),
        ("generation", "update", "streaming"),
        ("chunk", "insert", None),
    ]


@pytest.mark.parametrize("other", [b'{"messageId":"x"}', b'{"lane":"x"}', b'{"leaseMs":9000}', b'{"metadata":{}}'])
async def test_generation_that_is_opened_again_as_another_is_a_mismatch(client: Client, other: bytes) -> None:
    await client.put(G)
    assert told(await client.put(G, body=other), "code", "generationId") == [409, "GENERATION_MISMATCH", "g"]


async def test_generation_that_has_ended_is_not_opened_again(client: Client) -> None:
    await client.put(G)
    await client.post(f"{G}/stop", b"{}")
    assert told(await client.put(G), "code", "reason", "generationStatus") == [403, "FENCED", "stopped", "aborted"]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"lane":"a b"}', "INVALID_BODY"),
        (b'{"leaseMs":"5000"}', "INVALID_BODY"),
        (b'{"leaseMs":true}', "INVALID_BODY"),
        (b'{"leaseMs":1}', "INVALID_BODY"),
        (b'{"onConflict":"maybe"}', "INVALID_BODY"),
        (b'{"format":"morse"}', "UNKNOWN_FORMAT"),
        (b'{"mesageId":"m"}', "INVALID_BODY"),
        (b'{"metadata":[]}', "INVALID_BODY"),
        (b"[", "INVALID_JSON"),
    ],
)
async def test_opening_that_makes_no_sense_opens_nothing(client: Client, body: bytes, code: str) -> None:
    assert told(await client.put(G, body=body), "code") == [400, code]
    assert (await client.get(G)).code == "GENERATION_NOT_FOUND"


@pytest.mark.parametrize("way", ["put", "first batch"])
async def test_busy_lane_is_left_alone_by_whoever_asks_for_that(client: Client, way: str) -> None:
    await chunk(client, "first", 0, "a")
    if way == "put":
        refused = await client.put(G, body=b'{"onConflict":"reject"}')
    else:
        refused = await chunk(client, "g", 0, "b", "&onConflict=reject")
    assert told(refused, "code", "generationId", "generationStatus") == [409, "LANE_BUSY", "first", "streaming"]
    assert (await chunk(client, "first", 1, "b")).status == 200
    await finish(client, "first", 2)
    assert (await client.put(G, body=b'{"onConflict":"reject"}')).status == 201


async def test_interrupt_is_what_happens_otherwise(client: Client) -> None:
    await chunk(client, "first", 0, "a")
    assert (await client.put(G, body=b'{"onConflict":"interrupt"}')).status == 201
    assert told(await chunk(client, "first", 1, "b"), "code", "reason") == [403, "FENCED", "superseded"]


# -- late is not lost ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["put", "first batch"])
async def test_producer_that_comes_back_goes_on_with_its_message(client: Client, way: str) -> None:
    await chunk(client, "g", 0, "Hel", "&messageId=m")
    await client.post(f"{G}/stop", b"{}")
    if way == "put":
        opened = await client.put(f"{S}/generations/h", body=b'{"continues":"g"}')
        assert told(opened, "messageId", "lane", "status", "continues") == [201, "m", "main", "pending", "g"]
    answer = await client.post(f"{S}/generations/h/chunks?continues=g", b'"lo"', producer_seq="0")
    assert told(answer, "messageId", "lane", "continues") == [200, "m", "main", "g"]

    item = (await messages(client))["m"]
    assert (text(item), item["status"], item["generationId"]) == ("Hello", "streaming", "h")
    await finish(client, "h", 1)
    item = (await messages(client))["m"]
    assert (text(item), item["status"]) == ("Hello", "complete")
    assert (await client.get(G)).json["continuedBy"] == "h"
    assert (await client.get(f"{S}/generations/h")).json["continues"] == "g"


async def test_lane_that_has_moved_on_is_left_alone(client: Client) -> None:
    await chunk(client, "g", 0, "a")
    await chunk(client, "newer", 0, "x")
    opened = await client.put(f"{S}/generations/h", body=b'{"continues":"g","lane":"main"}')
    assert told(opened, "lane", "messageId") == [201, "h", "g"]
    assert (await chunk(client, "newer", 1, "y")).status == 200


async def test_generation_that_still_runs_is_interrupted_by_what_goes_on_with_it(client: Client) -> None:
    """Its producer crashed and is back before the lease ran out."""
    await chunk(client, "g", 0, "a")
    refused = await client.put(f"{S}/generations/h", body=b'{"continues":"g","onConflict":"reject"}')
    assert told(refused, "code", "generationId") == [409, "LANE_BUSY", "g"]
    assert (await client.put(f"{S}/generations/h", body=b'{"continues":"g","lane":"other"}')).status == 201
    assert told(await chunk(client, "g", 1, "b"), "code") == [403, "FENCED"]


async def test_message_has_one_generation_that_goes_on_with_it(client: Client) -> None:
    await chunk(client, "g", 0, "a")
    await client.put(f"{S}/generations/h", body=b'{"continues":"g"}')
    assert told(await client.put(f"{S}/generations/i", body=b'{"continues":"g"}'), "code") == [
        409, "GENERATION_MISMATCH"
    ]  # fmt: skip
    assert (await client.put(f"{S}/generations/i", body=b'{"continues":"h"}')).status == 201


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"continues":"nothing"}', "GENERATION_NOT_FOUND"),
        (b'{"continues":"h"}', "GENERATION_NOT_FOUND"),
        (b'{"continues":"g","messageId":"other"}', "GENERATION_MISMATCH"),
        (b'{"continues":"g","format":"openai-chat"}', "GENERATION_MISMATCH"),
    ],
)
async def test_what_cannot_be_continued_is_refused(client: Client, body: bytes, code: str) -> None:
    await chunk(client, "g", 0, "a")
    await client.post(f"{G}/stop", b"{}")
    assert (await client.put(f"{S}/generations/h", body=body)).code == code


async def test_first_batch_that_says_otherwise_what_it_continues_is_no_copy(client: Client) -> None:
    await chunk(client, "g", 0, "a")
    first = await chunk(client, "h", 0, "b", "&continues=g")
    assert (await chunk(client, "h", 0, "b", "&continues=g")).json["offset"] == first.json["offset"]
    assert (await chunk(client, "h", 0, "b")).code == "PAYLOAD_MISMATCH"


# -- stop and records ------------------------------------------------------------------------------------------------


async def test_stop_of_a_session_ends_what_runs_and_says_what_that_was(client: Client) -> None:
    await chunk(client, "g", 0, "a")
    await chunk(client, "h", 0, "b", "&lane=side")
    one = await client.post(f"{S}/stop", b'{"lane":"side","requestedBy":"me","reason":"enough"}')
    assert told(one, "stopped") == [200, ["h"]]
    assert told(await client.post(f"{S}/stop", b""), "stopped") == [200, ["g"]]
    assert told(await client.post(f"{S}/stop", b"{}"), "stopped") == [200, []]
    assert told(await chunk(client, "g", 1, "b"), "code", "reason") == [403, "FENCED", "stopped"]
    stops = [record for record in (await client.get(STREAM)).json if record["type"] == "stop"]
    assert [(record["key"], record["value"].get("reason")) for record in stops] == [("h", "enough"), ("g", None)]


async def test_records_of_presence_and_approval_are_upserts(client: Client) -> None:
    first = await client.post(f"{S}/records", b'{"type":"presence","key":"ann@x","value":{"n":1.0},"txid":"t"}')
    second = await client.post(f"{S}/records?txid=u", b'{"type":"approval","key":"call","value":{}}')
    assert [first.status, first.json["txid"], second.status, second.json["txid"]] == [201, "t", 201, "u"]
    records = (await client.get(STREAM)).json
    assert [(record["type"], record["key"], record["headers"]["operation"]) for record in records] == [
        ("presence", "ann@x", "upsert"),
        ("approval", "call", "upsert"),
    ]
    assert second.json["offset"] == (await client.get(S)).json["offset"]
    assert await messages(client) == {}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b'{"type":"chunk","key":"k","value":{}}',
        b'{"type":["presence"],"key":"k","value":{}}',
        b'{"type":"presence","value":{}}',
        b'{"type":"presence","key":"","value":{}}',
        b'{"type":"presence","key":"k","value":[]}',
        b'{"type":"presence","key":"k","value":{},"txid":"a b"}',
        b'{"type":"presence","key":"k","value":{},"txid":""}',
        b'{"type":"presence","key":"k","value":{},"more":1}',
        b'{"type":"presence","key":"\\ud800","value":{}}',
    ],
)
async def test_record_that_makes_no_sense_is_refused(client: Client, body: bytes) -> None:
    assert (await client.post(f"{S}/records", body)).status == 400
    assert (await client.get(STREAM)).json == []


# -- reset -----------------------------------------------------------------------------------------------------------


async def test_reset_session_is_empty_and_refuses_whoever_wrote_before(client: Client) -> None:
    await say(client, "m")
    before = await chunk(client, "g", 0, "a")
    reset = await client.post(f"{S}/reset", b'{"reason":"again"}')
    assert told(reset, "sessionId", "offset") == [200, "s", (await client.get(S)).json["offset"]]

    assert await messages(client) == {}
    assert (await client.get(STREAM)).json == []
    assert told(await client.get(f"{STREAM}?offset={before.offset}"), "code") == [410, "OFFSET_GONE"]
    assert told(await chunk(client, "g", 1, "b"), "code", "reason", "currentEpoch") == [403, "FENCED", "reset", 2]
    copy = await chunk(client, "g", 0, "a")
    assert told(copy, "duplicate", "offset") == [200, True, before.json["offset"]]
    assert told(await client.get(G), "status", "reason") == [200, "aborted", "reset"]
    state = (await client.get(S)).json
    assert (state["status"], state["resetReason"]) == ("idle", "again")
    assert (await say(client, "m")).status == 201
    assert (await chunk(client, "h", 0, "x")).json["fence"] == 3
    assert told(await client.put(f"{S}/generations/i", body=b'{"continues":"g"}'), "code") == [
        404, "GENERATION_NOT_FOUND"
    ]  # fmt: skip


async def test_live_readers_of_a_reset_session_are_let_go_before_it_is_answered(client: Client) -> None:
    offset = (await chunk(client, "g", 0, "a")).offset
    sse = client.begin("GET", f"{STREAM}?offset={offset}&live=sse")
    poll = client.begin("GET", f"{STREAM}?offset={offset}&live=long-poll")
    assert "upToDate" in await first_event(sse)
    await asyncio.sleep(0.05)
    await client.post(f"{S}/reset", b"{}")
    assert await sse.chunk() == ""
    assert (await poll.answer()).code == "OFFSET_GONE"


async def first_event(exchange: Any) -> str:
    await exchange.next()
    return str(await exchange.chunk())


# -- delete ----------------------------------------------------------------------------------------------------------


async def test_r42_delete_waits_for_drain(client: Client) -> None:
    """R3, R42: what was on its way to the session is answered, and its readers have left, before the delete is."""
    offset = (await chunk(client, "g", 0, "a")).offset
    sse = client.begin("GET", f"{STREAM}?offset={offset}&live=sse")
    await first_event(sse)
    writes = [client.begin("POST", f"{G}/heartbeat", b"{}", JSON_TYPE) for _ in range(20)]
    gone = client.begin("DELETE", S)
    late = [client.begin("POST", f"{G}/heartbeat", b"{}", JSON_TYPE) for _ in range(20)]

    assert (await gone.answer()).status == 204
    assert client.app.partition.in_flight == 0
    assert all(write.task.done() for write in writes)
    assert await sse.chunk() == ""
    assert {(await write.answer()).status for write in writes} == {200}
    assert {(await write.answer()).status for write in late} == {404}


@pytest.mark.parametrize(("method", "target"), [("DELETE", S), ("POST", f"{S}/reset")])
async def test_r42_answer_to_delete_and_reset_waits_until_the_session_has_settled(
    client: Client, monkeypatch: pytest.MonkeyPatch, method: str, target: str
) -> None:
    settled, asked = asyncio.Event(), asyncio.Event()

    async def settle(path: str) -> None:
        assert path == "sessions/s"
        asked.set()
        await settled.wait()

    monkeypatch.setattr(client.app.partition, "settle", settle)
    gone = client.begin(method, target)
    await asked.wait()
    assert gone.sent.empty()
    settled.set()
    assert (await gone.answer()).status in (200, 204)


# -- metadata --------------------------------------------------------------------------------------------------------


async def test_session_that_is_confirmed_with_other_metadata_is_refused(client: Client) -> None:
    await client.put(C, body=b'{"metadata":{"a":1,"b":2}}')
    assert (await client.put(C, body=b'{"metadata":{"b":2,"a":1}}')).status == 200
    assert (await client.put(C)).status == 200
    for other in (b'{"metadata":{"a":1}}', b'{"metadata":{}}'):
        assert told(await client.put(C, body=other), "code") == [409, "SESSION_EXISTS"]
    assert told(await client.put(S, body=b'{"metadata":{"a":1}}'), "code") == [409, "SESSION_EXISTS"]


async def test_lanes_that_nobody_writes_in_make_room(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LANES_MAX", 2)
    for number in range(4):
        opened = await chunk(client, f"g{number}", 0, "a", f"&lane=l{number}")
        assert opened.status == 200
        await finish(client, f"g{number}", 1)
    assert (await chunk(client, "again", 0, "a", "&lane=l0")).json["fence"] > 1
    await chunk(client, "more", 0, "a", "&lane=l9")
    assert (await chunk(client, "most", 0, "a", "&lane=l8")).code == "TOO_MANY_LANES"
