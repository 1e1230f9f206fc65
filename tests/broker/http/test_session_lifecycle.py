"""A session's lifecycle over HTTP: opened ahead, continued, stopped, reset, forked; and what others then see."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from broker import limits
from broker.core.entry import Kind
from tests.broker.http.asgi import Answer, Client, broker
from tests.eventually import eventually

S = "/v1/sessions/s"
G = f"{S}/generations/g"
STREAM = "/v1/stream/sessions/s"
JSON_TYPE = {"content-type": "application/json"}


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with broker() as client:
        await client.put(S)
        yield client


async def post(client: Client, target: str, body: bytes = b"{}") -> Answer:
    return await client.post(target, body)


async def chunk(client: Client, generation_id: str, seq: int, text: str, query: str = "", session: str = S) -> Answer:
    target = f"{session}/generations/{generation_id}/chunks?format=text{query}"
    return await client.post(target, f'"{text}"'.encode(), producer_seq=str(seq))


async def say(client: Client, message_id: str, session: str = S) -> Answer:
    return await post(client, f"{session}/messages", b'{"id":"%b","role":"user"}' % message_id.encode())


async def finish(client: Client, generation_id: str, seq: int, session: str = S) -> Answer:
    return await client.post(f"{session}/generations/{generation_id}/finish", b"{}", producer_seq=str(seq))


async def messages(client: Client, session: str = S) -> dict[str, Any]:
    items = (await client.get(f"{session}/messages")).json["messages"]
    return {item["id"]: item for item in items}


def text(item: Any) -> str:
    return "".join(part["text"] for part in item["message"]["parts"])


def told(answer: Answer, *names: str) -> list[Any]:
    return [answer.status, *(answer.json.get(name) for name in names)]


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
    await post(client, f"{G}/stop")
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
    await post(client, f"{G}/stop")
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
    await post(client, f"{G}/stop")
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
    one = await post(client, f"{S}/stop", b'{"lane":"side","requestedBy":"me","reason":"enough"}')
    assert told(one, "stopped") == [200, ["h"]]
    assert told(await post(client, f"{S}/stop", b""), "stopped") == [200, ["g"]]
    assert told(await post(client, f"{S}/stop"), "stopped") == [200, []]
    assert told(await chunk(client, "g", 1, "b"), "code", "reason") == [403, "FENCED", "stopped"]
    stops = [record for record in (await client.get(STREAM)).json if record["type"] == "stop"]
    assert [(record["key"], record["value"].get("reason")) for record in stops] == [("h", "enough"), ("g", None)]


async def test_records_of_presence_and_approval_are_upserts(client: Client) -> None:
    first = await post(client, f"{S}/records", b'{"type":"presence","key":"ann@x","value":{"n":1.0},"txid":"t"}')
    second = await post(client, f"{S}/records?txid=u", b'{"type":"approval","key":"call","value":{}}')
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
        b'{"type":"presence","key":"k","value":{},"more":1}',
        b'{"type":"presence","key":"\\ud800","value":{}}',
    ],
)
async def test_record_that_makes_no_sense_is_refused(client: Client, body: bytes) -> None:
    assert (await post(client, f"{S}/records", body)).status == 400
    assert (await client.get(STREAM)).json == []


# -- reset -----------------------------------------------------------------------------------------------------------


async def test_reset_session_is_empty_and_refuses_whoever_wrote_before(client: Client) -> None:
    await say(client, "m")
    before = await chunk(client, "g", 0, "a")
    reset = await post(client, f"{S}/reset", b'{"reason":"again"}')
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
    await post(client, f"{S}/reset")
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


# -- fork ------------------------------------------------------------------------------------------------------------

C = "/v1/sessions/c"
FORK = b'{"sessionId":"c"}'
FORK_AT_START = b'{"sessionId":"c","offset":"-1"}'


async def fork(client: Client, body: bytes = FORK, source: str = S) -> Answer:
    return await post(client, f"{source}/fork", body)


async def test_fork_begins_with_what_its_source_has_and_goes_its_own_way(client: Client) -> None:
    await client.put(f"{S}", body=b"{}")
    await say(client, "u")
    at = (await chunk(client, "g", 0, "a")).offset
    made = await fork(client, b'{"sessionId":"c","metadata":{"title":"t"}}')
    assert told(made, "sessionId", "forkedFrom", "forkOffset") == [201, "c", "s", at]
    await chunk(client, "g", 1, "b")
    await say(client, "mine", C)

    assert (await client.get(C)).json["metadata"] == {"title": "t"}
    mine, theirs = await messages(client, C), await messages(client)
    assert (list(mine), list(theirs)) == (["u", "g", "mine"], ["u", "g"])
    assert (mine["g"]["status"], mine["g"]["reason"], text(mine["g"])) == ("aborted", "forked", "a")
    assert (theirs["g"]["status"], text(theirs["g"])) == ("streaming", "ab")
    assert told(await fork(client, b'{"sessionId":"c"}'), "forkedFrom", "forkOffset") == [200, "s", at]


async def test_ids_before_the_fork_position_stay_taken_in_the_fork(client: Client) -> None:
    await say(client, "u")
    await chunk(client, "g", 0, "a")
    await finish(client, "g", 1)
    await fork(client)
    assert (await say(client, "u", C)).json["duplicate"] is True
    other = await post(client, f"{C}/messages", b'{"id":"u","role":"tool"}')
    assert other.code == "MESSAGE_EXISTS"
    assert told(await chunk(client, "g", 0, "a", session=C), "code", "generationStatus") == [403, "FENCED", "complete"]
    assert told(await chunk(client, "h", 0, "a", "&messageId=g", session=C), "code") == [409, "MESSAGE_EXISTS"]
    assert told(await chunk(client, "h", 0, "a", session=C), "fence") == [200, 2]


async def test_answer_that_a_fork_has_cut_short_goes_on_in_it(client: Client) -> None:
    await chunk(client, "g", 0, "Hel", "&messageId=m")
    await fork(client)
    answer = await chunk(client, "h", 0, "lo", "&continues=g", session=C)
    assert told(answer, "lane", "messageId") == [200, "main", "m"]
    await finish(client, "h", 1, C)
    assert text((await messages(client, C))["m"]) == "Hello"
    assert text((await messages(client))["m"]) == "Hel"


@pytest.mark.parametrize(("at", "seen"), [("u", ["u"]), ("g", ["u", "g"]), ("v", ["u", "g", "v"])])
async def test_fork_at_a_message_has_everything_up_to_its_end(client: Client, at: str, seen: list[str]) -> None:
    await say(client, "u")
    await chunk(client, "g", 0, "a")
    await finish(client, "g", 1)
    await say(client, "v")
    await say(client, "w")
    assert (await fork(client, b'{"sessionId":"c","messageId":"%b"}' % at.encode())).status == 201
    forked = await messages(client, C)
    assert list(forked) == seen
    assert {item["status"] for item in forked.values()} == {"complete"}


async def test_fork_at_a_message_that_is_being_written_has_what_is_there(client: Client) -> None:
    await chunk(client, "g", 0, "a")
    await chunk(client, "h", 0, "b", "&lane=side")
    await fork(client, b'{"sessionId":"c","messageId":"g"}')
    assert {item["reason"] for item in (await messages(client, C)).values()} == {"forked"}


async def test_fork_at_an_offset_ends_what_was_open_there_only(client: Client) -> None:
    at = (await chunk(client, "g", 0, "a")).offset
    await finish(client, "g", 1)
    assert (await client.get(G)).json["status"] == "complete"
    await fork(client, b'{"sessionId":"c","offset":"%b"}' % at.encode())
    assert told(await client.get(f"{C}/generations/g"), "status", "reason", "chunks") == [200, "aborted", "forked", 1]
    await fork(client, b'{"sessionId":"d","offset":"-1"}')
    assert await messages(client, "/v1/sessions/d") == {}


async def test_fork_outlives_a_reset_and_the_end_of_its_source(client: Client) -> None:
    """Its records are the source's: they stay while it is there, and no longer."""
    await say(client, "u")
    await fork(client)
    await fork(client, b'{"sessionId":"d"}', C)
    await post(client, f"{S}/reset")
    await say(client, "v")
    await fork(client, b'{"sessionId":"e"}')
    await client.app.partition.checkpoint()
    await client.send("DELETE", S)
    for session, seen in (("c", ["u"]), ("d", ["u"]), ("e", ["v"])):
        assert list(await messages(client, f"/v1/sessions/{session}")) == seen
    await post(client, f"{C}/reset")
    assert list(await messages(client, "/v1/sessions/d")) == ["u"]
    for session in ("c", "d", "e"):
        assert (await client.send("DELETE", f"/v1/sessions/{session}")).status == 204
    assert (await client.put(S)).code == "SESSION_EXISTS"  # until the sweeper has told the sources

    async def is_free() -> bool:
        return (await client.put(S)).status == 201

    assert await eventually(is_free)


async def test_fork_into_a_session_that_is_there_is_refused(client: Client) -> None:
    await client.put(C)
    assert told(await fork(client), "code") == [409, "SESSION_EXISTS"]
    await fork(client, b'{"sessionId":"d"}')
    other = await fork(client, b'{"sessionId":"d","offset":"-1"}')
    assert told(other, "code") == [409, "SESSION_EXISTS"]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b'{"sessionId":"s"}', 400, "INVALID_BODY"),
        (b"{}", 400, "INVALID_BODY"),
        (b'{"sessionId":"a b"}', 400, "INVALID_BODY"),
        (b'{"sessionId":"c","messageId":"m","offset":"-1"}', 400, "INVALID_BODY"),
        (b'{"sessionId":"c","offset":"junk"}', 400, "INVALID_OFFSET"),
        (b'{"sessionId":"c","messageId":"none"}', 404, "MESSAGE_NOT_FOUND"),
    ],
)
async def test_fork_that_makes_no_sense_makes_nothing(client: Client, body: bytes, status: int, code: str) -> None:
    assert told(await fork(client, body), "code") == [status, code]
    assert (await client.get(C)).code == "SESSION_NOT_FOUND"


async def test_fork_of_what_is_no_more_is_refused(client: Client) -> None:
    offset = (await say(client, "m")).offset
    await post(client, f"{S}/reset")
    gone = await fork(client, b'{"sessionId":"c","offset":"%b"}' % offset.encode())
    assert told(gone, "code") == [410, "OFFSET_GONE"]
    assert told(await fork(client, source="/v1/sessions/none"), "code") == [404, "SESSION_NOT_FOUND"]


async def test_fork_of_more_than_an_entry_can_carry_is_refused(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "FORK_IDS_MAX", 2)
    for message_id in ("a", "b", "c"):
        await say(client, message_id)
    assert told(await fork(client), "code") == [409, "FORK_TOO_LARGE"]
    assert (await fork(client, b'{"sessionId":"c","messageId":"a"}')).code == "FORK_TOO_LARGE"


async def test_source_is_told_of_a_fork_that_did_not_come(client: Client) -> None:
    """Somebody else took its id meanwhile: of two that race for it, one gets it."""
    partition = client.app.partition
    first, second = (client.begin("POST", f"{S}/fork", body, JSON_TYPE) for body in (FORK, FORK_AT_START))
    answers = [await first.answer(), await second.answer()]
    assert sorted(answer.status for answer in answers) == [201, 409]
    assert partition.counts.outcomes[Kind.FORK_UNREF, "accepted"] == 1
    source = await partition.stream("sessions/s")
    assert source is not None
    assert len(source.children) == 1


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
