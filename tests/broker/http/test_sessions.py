"""`/v1/sessions` of a running broker: every route, every refusal with its facts, and bad input of every kind."""

import json
import re
from collections.abc import AsyncIterator, Mapping
from typing import Any

import msgspec
import pytest

from broker import limits
from broker.errors import Overloaded
from broker.http.problems import standing_of
from consumer.session import SessionFold
from consumer.wire import SEQ_MAX, Code
from tests.broker.http.asgi import Answer, Client, broker

S = "/v1/sessions/s"
G = f"{S}/generations/g"
STREAM = "/v1/stream/sessions/s"
JSON_TYPE = {"content-type": "application/json"}
MESSAGE = b'{"id":"m","role":"user","parts":[]}'
BODY_BYTES_MAX = 10_000
EVERY_CHARACTER = "AZaz09._~:-"


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with broker(body_bytes_max=BODY_BYTES_MAX) as client:
        yield client


async def put(client: Client, body: bytes = b"", target: str = S, **headers: str) -> Answer:
    return await client.put(target, body=body, **headers)


async def post(client: Client, target: str, body: bytes = b"", **headers: str) -> Answer:
    return await client.post(target, body, **headers)


async def chunks(client: Client, seq: int, body: bytes = b'"x"', target: str = G, query: str = "format=text") -> Answer:
    return await client.post(f"{target}/chunks?{query}", body, producer_seq=str(seq))


async def finish(client: Client, seq: int, body: bytes = b"", target: str = G, query: str = "") -> Answer:
    return await client.post(f"{target}/finish?{query}", body, producer_seq=str(seq))


async def records(client: Client) -> list[Any]:
    found: list[Any] = (await client.get(STREAM)).json
    return found


async def everything(client: Client) -> list[bytes]:
    """All that a refusal must leave as it was."""
    targets = (S, f"{S}/messages", G, STREAM)
    return [re.sub(rb'"requestId":"[^"]*"', b"", (await client.get(target)).body) for target in targets]


def facts(answer: Answer, *names: str) -> list[Any]:
    """Those of the answer's body; None for what it does not say."""
    return [answer.json.get(name) for name in names]


def producer_headers(answer: Answer) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name.startswith("producer-")}


# -- a session -------------------------------------------------------------------------------------------------------


async def test_session_is_created_once_and_confirmed_after(client: Client) -> None:
    first, again = await put(client), await put(client)
    assert (first.status, first.json["created"], first.json["sessionId"]) == (201, True, "s")
    assert (again.status, again.json["created"], again.json["createdAt"]) == (200, False, first.json["createdAt"])
    assert first.offset == first.json["offset"] == again.offset
    assert first.headers["stream-durability"] == "memory"


async def test_session_begins_with_its_first_message_or_not_at_all(client: Client) -> None:
    body = b'{"message":%b,"metadata":{"title":"t"}}' % MESSAGE
    assert [(await put(client, body)).status, (await put(client, body)).status] == [201, 200]
    assert [record["key"] for record in await records(client)] == ["m"]
    assert (await client.get(S)).json["metadata"] == {"title": "t"}
    other = await put(client, b'{"message":{"id":"m","role":"user","parts":[1]}}')
    assert (other.status, other.code) == (409, "MESSAGE_EXISTS")
    another = await put(client, b'{"message":{"id":"m2","role":"user"}}')
    assert (another.status, another.code) == (409, "SESSION_EXISTS")


@pytest.mark.parametrize("number", ["0.10000000000000000555", "1e400", "12345678901234567890123", "1.0", "-0"])
async def test_first_message_is_kept_as_it_was_spelled(client: Client, number: str) -> None:
    """As every record is: nothing is rounded."""
    message = b'{"id":"m", "role":"user","n":%b}' % number.encode()
    await put(client, b'{"metadata":{},"message": %b }' % message)
    assert b'"value":%b' % message in (await client.get(STREAM)).body
    assert (await post(client, f"{S}/messages", message)).json["duplicate"] is True


async def test_state_tells_what_is_open(client: Client) -> None:
    created = await put(client)
    idle = await client.get(S)
    assert facts(idle, "status", "generations", "offset") == ["idle", [], created.offset]
    opened = await chunks(client, 0)
    busy = await client.get(S)
    assert facts(busy, "status", "offset") == ["streaming", opened.offset]
    assert busy.json["generations"] == [
        {"generationId": "g", "messageId": "g", "lane": "main", "fence": 1, "status": "streaming"}
    ]
    assert busy.json["lastActivityAt"] >= busy.json["createdAt"]


async def test_deleted_session_is_gone_with_everything_under_it(client: Client) -> None:
    await put(client, b'{"message":%b}' % MESSAGE)
    offset = (await chunks(client, 0)).offset
    gone = await client.send("DELETE", S)
    assert (gone.status, gone.body) == (204, b"")
    for target in (S, f"{S}/messages", f"{S}/messages/m", G):
        answer = await client.get(target)
        assert (answer.status, answer.code, answer.json["sessionId"]) == (404, "SESSION_NOT_FOUND", "s")
    assert (await client.send("DELETE", S)).code == "SESSION_NOT_FOUND"
    assert (await put(client)).status == 201
    assert (await client.get(f"{STREAM}?offset={offset}")).code == "OFFSET_GONE"
    assert [(await chunks(client, 1)).code, (await client.get(G)).code] == ["SEQ_GAP", "GENERATION_NOT_FOUND"]
    assert (await client.get(f"{S}/messages")).json["messages"] == []
    assert (await post(client, f"{S}/messages", MESSAGE)).status == 201


async def test_deleted_session_whose_records_a_fork_keeps_is_gone_all_the_same(client: Client) -> None:
    await put(client, b'{"message":%b}' % MESSAGE)
    assert (await client.put("/v1/stream/f", stream_forked_from=STREAM)).status == 201
    await client.send("DELETE", S)
    for target in (S, f"{S}/messages", f"{S}/messages/m", G):
        assert (await client.get(target)).code == "SESSION_NOT_FOUND"
    assert (await client.get(STREAM)).code == "STREAM_GONE"
    assert [record["key"] for record in (await client.get("/v1/stream/f")).json] == ["m"]
    refused = await put(client)
    assert (refused.status, refused.code) == (409, "SESSION_EXISTS")


@pytest.mark.parametrize("method", ["PUT", "POST", "DELETE"])
async def test_sessions_stream_is_written_through_the_session_api_only(client: Client, method: str) -> None:
    """CORE 7: so that fences and record shapes hold."""
    await put(client, b'{"message":%b}' % MESSAGE)
    before = await everything(client)
    for path in (STREAM, f"{STREAM}/below", "/v1/stream/sessions/other"):
        refused = await client.send(method, path, b"[1]", JSON_TYPE)
        assert (refused.status, refused.code, refused.headers["allow"]) == (
            405,
            "METHOD_NOT_ALLOWED",
            "GET, HEAD, OPTIONS",
        )
    assert await everything(client) == before
    assert (await client.send("HEAD", STREAM)).status == 200


async def test_every_allowed_character_makes_an_id(client: Client) -> None:
    session = f"/v1/sessions/{EVERY_CHARACTER}"
    assert (await put(client, target=session)).json["sessionId"] == EVERY_CHARACTER
    generation = f"{session}/generations/{EVERY_CHARACTER}"
    await chunks(client, 0, target=generation, query=f"messageId=m{EVERY_CHARACTER}&lane={EVERY_CHARACTER}&format=text")
    assert facts((await client.get(generation)), "generationId", "lane") == [EVERY_CHARACTER, EVERY_CHARACTER]
    message = (await client.get(f"{session}/messages/m{EVERY_CHARACTER}")).json
    assert (message["generationId"], message["status"]) == (EVERY_CHARACTER, "streaming")
    stream = (await client.get(f"/v1/stream/sessions/{EVERY_CHARACTER}")).json
    assert [record["key"] for record in stream] == [EVERY_CHARACTER, f"{EVERY_CHARACTER}:0"]


async def test_id_may_be_as_long_as_the_bound(client: Client) -> None:
    assert (await put(client, target=f"/v1/sessions/{'s' * limits.ID_CHARS_MAX}")).status == 201
    refused = await put(client, target=f"/v1/sessions/{'s' * (limits.ID_CHARS_MAX + 1)}")
    assert (refused.status, refused.code) == (400, "INVALID_PATH")


# -- whole messages --------------------------------------------------------------------------------------------------


async def test_message_is_added_once_and_a_copy_is_told_where_it_landed(client: Client) -> None:
    await put(client)
    first = await post(client, f"{S}/messages?txid=t1", MESSAGE)
    assert (first.status, facts(first, "messageId", "txid", "duplicate")) == (201, ["m", "t1", None])
    await post(client, f"{S}/messages", b'{"id":"m2","role":"user"}')
    copy = await post(client, f"{S}/messages", b' {"parts":[], "role":"user","id":"m"}')
    assert (copy.status, copy.json["duplicate"], copy.json["offset"]) == (200, True, first.json["offset"])
    assert [record["key"] for record in await records(client)] == ["m", "m2"]
    assert (await records(client))[0]["headers"]["txid"] == "t1"


async def test_message_with_the_id_of_another_is_refused(client: Client) -> None:
    await put(client)
    await chunks(client, 0)
    await post(client, f"{S}/messages", MESSAGE)
    before = await everything(client)
    for other in (b'{"id":"m","role":"system"}', b'{"id":"g","role":"assistant"}'):
        refused = await post(client, f"{S}/messages", other)
        assert (refused.status, refused.code, facts(refused, "retryable")) == (409, "MESSAGE_EXISTS", [None])
    assert await everything(client) == before


async def test_messages_are_the_fold_of_the_stream_up_to_the_offset_told(client: Client) -> None:
    await put(client, b'{"message":%b}' % MESSAGE)
    await chunks(client, 0, b'["a","b"]')
    await finish(client, 1, b'{"usage":{"tokens":2},"metadata":{"k":[1]}}')
    told = await client.get(f"{S}/messages")
    assert told.json["offset"] == told.offset == (await client.get(STREAM)).offset
    fold = SessionFold()
    for record in await records(client):
        fold.add(record)
    assert told.json["messages"] == fold.items()
    assert [message["id"] for message in told.json["messages"]] == ["m", "g"]
    one = await client.get(f"{S}/messages/g")
    assert one.json == {"sessionId": "s", **told.json["messages"][1]}
    assert facts(one, "status", "usage", "metadata", "lane", "format") == [
        "complete",
        {"tokens": 2},
        {"k": [1]},
        "main",
        "text",
    ]


async def test_messages_that_did_not_change_are_not_sent_again(client: Client) -> None:
    await put(client, b'{"message":%b}' % MESSAGE)
    before = (await client.get(f"{S}/messages")).headers["etag"]
    for target in (f"{S}/messages", f"{S}/messages/m"):
        tag = (await client.get(target)).headers["etag"]
        for known in (tag, f'"other", W/{tag}', "*"):
            same = await client.get(target, if_none_match=known)
            assert (same.status, same.body, same.headers["etag"]) == (304, b"", tag)
            assert same.headers["cache-control"] == "private, no-cache"
    await post(client, f"{S}/messages", b'{"id":"m2","role":"user"}')
    assert (await client.get(f"{S}/messages", if_none_match=before)).status == 200
    assert (await client.get(f"{S}/messages", if_none_match='"other"')).status == 200


@pytest.mark.parametrize("known", ["*", None])
async def test_message_that_is_not_there_is_not_unchanged_either(client: Client, known: str | None) -> None:
    await put(client)
    tag = (await client.get(f"{S}/messages")).headers["etag"]
    missing = await client.get(f"{S}/messages/nope", if_none_match=known or tag)
    assert (missing.status, missing.code, facts(missing, "sessionId", "messageId")) == (
        404,
        "MESSAGE_NOT_FOUND",
        ["s", "nope"],
    )


# -- a generation ----------------------------------------------------------------------------------------------------


async def test_batch_0_opens_a_generation_and_later_ones_write_it(client: Client) -> None:
    await put(client)
    query = "messageId=answer&lane=side&format=text&role=tool&actorId=me&leaseMs=5000&txid=t"
    opened = await chunks(client, 0, b'["a","b"]', query=query)
    assert opened.status == 200
    assert opened.json == {
        "sessionId": "s",
        "generationId": "g",
        "messageId": "answer",
        "lane": "side",
        "fence": 1,
        "status": "streaming",
        "seq": 0,
        "offset": opened.offset,
    }
    assert producer_headers(opened) == {"producer-epoch": "1", "producer-seq": "0"}
    assert opened.headers["stream-durability"] == "memory"
    later = await chunks(client, 1, b'{"any":"value"}')
    assert facts(later, "messageId", "lane", "seq") == ["answer", "side", 1]
    assert [record["key"] for record in await records(client)] == ["g", "g:0", "g:1", "g:2"]
    state = (await client.get(G)).json
    assert {name: value for name, value in state.items() if name != "createdAt"} == {
        "sessionId": "s",
        "generationId": "g",
        "messageId": "answer",
        "lane": "side",
        "fence": 1,
        "status": "streaming",
        "format": "text",
        "role": "tool",
        "chunks": 3,
        "seq": 1,
        "leaseMs": 5000,
    }


async def test_copy_of_a_batch_is_told_where_the_original_landed(client: Client) -> None:
    await put(client)
    first = await chunks(client, 0)
    await chunks(client, 1)
    before = await everything(client)
    copy = await chunks(client, 0)
    assert (copy.status, copy.json["duplicate"], copy.offset) == (200, True, first.offset)
    assert producer_headers(copy) == {"producer-epoch": "1", "producer-seq": "1"}
    assert await everything(client) == before


async def test_finish_ends_it_and_a_copy_of_the_finish_is_a_success(client: Client) -> None:
    await put(client)
    await chunks(client, 0)
    body = b'{"status":"failed","reason":"model","error":{"code":7},"usage":{"n":1},"metadata":{"k":"v"}}'
    ended = await finish(client, 1, body)
    assert (ended.status, facts(ended, "status", "reason", "seq")) == (200, ["failed", "model", 1])
    copy = await finish(client, 1, body)
    assert (copy.status, copy.json["duplicate"], copy.offset, copy.json["status"]) == (
        200,
        True,
        ended.offset,
        "failed",
    )
    state = await client.get(G)
    assert facts(state, "status", "reason", "error", "usage", "metadata", "chunks", "seq") == [
        "failed",
        "model",
        {"code": 7},
        {"n": 1},
        {"k": "v"},
        1,
        1,
    ]
    assert state.json["endedAt"] >= state.json["createdAt"]
    assert (await client.get(S)).json["status"] == "idle"


async def test_finish_with_seq_0_opens_and_ends_at_once(client: Client) -> None:
    await put(client)
    ended = await finish(client, 0, query="format=text&messageId=answer")
    assert (ended.status, facts(ended, "status", "messageId")) == (200, ["complete", "answer"])
    assert [record["value"]["status"] for record in await records(client)] == ["streaming", "complete"]


async def test_heartbeat_renews_the_lease_and_adds_no_record(client: Client) -> None:
    await put(client)
    opened = await chunks(client, 0, query="format=text&leaseMs=5000")
    beat = await post(client, f"{G}/heartbeat")
    assert (beat.status, facts(beat, "generationId", "leaseMs")) == (200, ["g", 5000])
    assert (await client.get(STREAM)).offset == opened.offset


async def test_stop_ends_it_for_good_and_says_who_asked(client: Client) -> None:
    await put(client)
    await chunks(client, 0)
    stopped = await post(client, f"{G}/stop", b'{"requestedBy":"user 7","reason":"enough"}')
    assert (stopped.status, facts(stopped, "generationId", "status", "reason")) == (200, ["g", "aborted", "stopped"])
    stop, end = (await records(client))[-2:]
    assert (stop["type"], stop["value"]["requestedBy"], stop["value"]["reason"]) == ("stop", "user 7", "enough")
    assert (end["type"], end["value"]["status"], end["value"]["reason"]) == ("generation", "aborted", "stopped")
    again = await post(client, f"{G}/stop")
    assert (again.status, facts(again, "status", "reason")) == (200, ["aborted", "stopped"])
    late = await chunks(client, 1)
    assert (late.status, late.code) == (403, "FENCED")
    assert facts(late, "generationStatus", "reason", "currentEpoch", "generationId", "messageId") == [
        "aborted",
        "stopped",
        2,
        "g",
        "g",
    ]
    assert late.headers["producer-epoch"] == "2"


async def test_stop_of_one_that_ended_by_itself_tells_how(client: Client) -> None:
    await put(client)
    await finish(client, 0, query="format=text")
    before = await everything(client)
    late = await post(client, f"{G}/stop")
    assert (late.status, facts(late, "status", "reason")) == (200, ["complete", None])
    assert await everything(client) == before


async def test_newer_generation_fences_off_the_one_in_its_lane(client: Client) -> None:
    await put(client)
    await chunks(client, 0)
    newer = await chunks(client, 0, target=f"{S}/generations/g2")
    assert (newer.json["fence"], newer.headers["producer-epoch"]) == (2, "2")
    before = await everything(client)
    assert (await chunks(client, 0)).json["duplicate"] is True
    for refused in (await chunks(client, 1), await finish(client, 1), await post(client, f"{G}/heartbeat")):
        assert (refused.status, refused.code) == (403, "FENCED")
        assert facts(refused, "reason", "generationStatus", "currentEpoch") == ["superseded", "aborted", 2]
    assert await everything(client) == before
    assert (await chunks(client, 0, target=f"{S}/generations/g3", query="format=text&lane=other")).json["fence"] == 1


# -- refusals and their facts ----------------------------------------------------------------------------------------


async def refused_unchanged(client: Client, *batches: tuple[str, int, bytes, str]) -> list[Answer]:
    """The answers to (action, seq, body, query), none of which may change anything."""
    before = await everything(client)
    answers = []
    for action, seq, body, query in batches:
        answers.append(await client.post(f"{G}/{action}?{query}", body, producer_seq=str(seq)))
        assert await everything(client) == before
    return answers


async def test_gap_names_the_seq_that_is_missing(client: Client) -> None:
    await put(client)
    await chunks(client, 0)
    for answer in await refused_unchanged(client, ("chunks", 3, b"1", ""), ("finish", 3, b"", "")):
        assert (answer.status, answer.code) == (409, "SEQ_GAP")
        assert facts(answer, "expectedSeq", "receivedSeq", "retryable") == [1, 3, None]
        assert producer_headers(answer) == {
            "producer-epoch": "1",
            "producer-seq": "0",
            "producer-expected-seq": "1",
            "producer-received-seq": "3",
        }


async def test_batch_of_a_generation_never_seen_is_a_gap_before_0(client: Client) -> None:
    await put(client)
    for answer in await refused_unchanged(client, ("chunks", 1, b"1", ""), ("finish", 1, b"", "")):
        assert (answer.status, answer.code, facts(answer, "expectedSeq", "receivedSeq")) == (409, "SEQ_GAP", [0, 1])
        assert answer.headers["producer-expected-seq"] == "0"


async def test_same_seq_with_other_content_is_a_bug_of_the_client_and_no_gap(client: Client) -> None:
    """DESIGN 4: published producers take a bare 409 for a gap and would repeat for ever."""
    await put(client)
    await chunks(client, 0)
    await chunks(client, 1)
    wrong = await refused_unchanged(client, ("chunks", 1, b'"y"', ""), ("finish", 1, b"", ""), ("chunks", 0, b"1", ""))
    for answer, seq in zip(wrong, (1, 1, 0), strict=True):
        assert (answer.status, answer.code, facts(answer, "expectedSeq", "receivedSeq")) == (
            409,
            "PAYLOAD_MISMATCH",
            [seq, seq],
        )
        assert answer.headers["producer-expected-seq"] == answer.headers["producer-received-seq"] == str(seq)


@pytest.mark.parametrize("action", ["chunks", "finish"])
@pytest.mark.parametrize(
    "other",
    ["messageId=other", "lane=other", "format=ai-sdk-ui-message-stream", "role=tool", "actorId=x", "leaseMs=2000"],
)
async def test_copy_of_batch_0_that_opens_something_else_is_no_copy(client: Client, action: str, other: str) -> None:
    await put(client)
    body = b'"x"' if action == "chunks" else b""
    asked = {"messageId": "answer", "lane": "main", "format": "text", "role": "assistant", "leaseMs": "3000"}
    name, value = other.split("=")
    query, changed = ("&".join(map("=".join, told.items())) for told in (asked, asked | {name: value}))
    assert (await client.post(f"{G}/{action}?{query}", body, producer_seq="0")).status == 200
    [answer] = await refused_unchanged(client, (action, 0, body, changed))
    assert (answer.status, answer.code, answer.headers["producer-expected-seq"]) == (409, "PAYLOAD_MISMATCH", "0")
    assert (await client.post(f"{G}/{action}?{query}", body, producer_seq="0")).json["duplicate"] is True


async def test_copy_of_batch_0_may_spell_out_what_is_the_default(client: Client) -> None:
    await put(client)
    await chunks(client, 0)
    query = f"format=text&lane=main&role=assistant&messageId=g&leaseMs={limits.LEASE_MS}&txid=t"
    assert (await chunks(client, 0, query=query)).json["duplicate"] is True


async def test_copy_of_batch_0_is_one_also_after_a_restart_with_other_limits(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put(client)
    await chunks(client, 0)
    monkeypatch.setattr(limits, "LANES_MAX", limits.LANES_MAX + 1)
    monkeypatch.setattr(limits, "GENERATIONS_OPEN_MAX", limits.GENERATIONS_OPEN_MAX + 1)
    assert (await chunks(client, 0)).json["duplicate"] is True


async def test_generation_cannot_write_a_message_that_is_there(client: Client) -> None:
    await put(client, b'{"message":%b}' % MESSAGE)
    await chunks(client, 0, target=f"{S}/generations/g0", query="format=text&messageId=answer")
    for taken in ("m", "answer"):
        [answer] = await refused_unchanged(client, ("chunks", 0, b"1", f"messageId={taken}"))
        assert (answer.status, answer.code, answer.headers["producer-expected-seq"]) == (409, "MESSAGE_EXISTS", "0")


async def test_late_batch_of_an_ended_generation_is_fenced_and_opens_nothing(client: Client) -> None:
    """CORE 7: a late retry of seq 0 of an ended generation is never a new answer."""
    await put(client)
    await finish(client, 0, query="format=text")
    [late] = await refused_unchanged(client, ("chunks", 1, b"1", ""))
    assert (late.status, late.code, facts(late, "reason", "generationStatus")) == (
        403,
        "FENCED",
        ["finished", "complete"],
    )
    [reused] = await refused_unchanged(client, ("chunks", 0, b"1", "format=text"))
    assert (reused.status, reused.code) == (409, "PAYLOAD_MISMATCH")


async def test_too_many_lanes_or_open_generations_are_told_to_come_again(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "GENERATIONS_OPEN_MAX", 1)
    await put(client)
    await chunks(client, 0, target=f"{S}/generations/first")
    [many] = await refused_unchanged(client, ("chunks", 0, b"1", "lane=second"))
    monkeypatch.setattr(limits, "LANES_MAX", 1)
    [lanes] = await refused_unchanged(client, ("chunks", 0, b"1", "lane=second"))
    assert [(many.status, many.code), (lanes.status, lanes.code)] == [
        (429, "TOO_MANY_GENERATIONS"),
        (429, "TOO_MANY_LANES"),
    ]
    for answer in (many, lanes):
        assert (answer.headers["retry-after"], facts(answer, "retryable", "retryAfterMs")) == ("1", [True, 1000])


@pytest.mark.parametrize(
    ("method", "target", "code"),
    [
        ("GET", S, "SESSION_NOT_FOUND"),
        ("DELETE", S, "SESSION_NOT_FOUND"),
        ("GET", f"{S}/messages", "SESSION_NOT_FOUND"),
        ("GET", f"{S}/messages/m", "SESSION_NOT_FOUND"),
        ("POST", f"{S}/messages", "SESSION_NOT_FOUND"),
        ("GET", G, "SESSION_NOT_FOUND"),
        ("POST", f"{G}/chunks", "SESSION_NOT_FOUND"),
        ("POST", f"{G}/finish", "SESSION_NOT_FOUND"),
        ("POST", f"{G}/heartbeat", "SESSION_NOT_FOUND"),
        ("POST", f"{G}/stop", "SESSION_NOT_FOUND"),
        ("GET", STREAM, "STREAM_NOT_FOUND"),
        ("GET", f"{S}/nothing", "NOT_FOUND"),
        ("GET", f"{S}/generations", "NOT_FOUND"),
        ("POST", f"{G}/nothing", "NOT_FOUND"),
        ("GET", f"{G}/chunks/more", "NOT_FOUND"),
    ],
)
async def test_what_is_not_there_is_told_by_name(client: Client, method: str, target: str, code: str) -> None:
    body = MESSAGE if method == "POST" and not target.endswith(("stop", "heartbeat", "finish")) else b""
    answer = await client.send(method, target, body, {**JSON_TYPE, "producer-seq": "0"})
    assert (answer.status, answer.code) == (404, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json["requestId"] == answer.headers["x-request-id"]
    if code == "SESSION_NOT_FOUND":
        assert answer.json["sessionId"] == "s"


async def test_unknown_generation_is_told_by_name(client: Client) -> None:
    await put(client)
    answers = [await client.get(G), await post(client, f"{G}/stop"), await post(client, f"{G}/heartbeat")]
    for answer in answers:
        assert (answer.status, answer.code, facts(answer, "sessionId", "generationId")) == (
            404,
            "GENERATION_NOT_FOUND",
            ["s", "g"],
        )


@pytest.mark.parametrize(
    ("method", "target", "allow"),
    [
        ("POST", S, "GET, PUT, DELETE, OPTIONS"),
        ("PUT", f"{S}/messages", "GET, POST, OPTIONS"),
        ("POST", f"{S}/messages/m", "GET, OPTIONS"),
        ("DELETE", G, "GET, PUT, OPTIONS"),
        ("GET", f"{G}/chunks", "POST, OPTIONS"),
        ("PUT", f"{G}/stop", "POST, OPTIONS"),
    ],
)
async def test_method_that_a_route_has_not_is_told_which_it_has(
    client: Client, method: str, target: str, allow: str
) -> None:
    answer = await client.send(method, target)
    assert (answer.status, answer.code, answer.headers["allow"]) == (405, "METHOD_NOT_ALLOWED", allow)


async def test_broker_that_has_no_room_says_when_to_come_back(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_args: object) -> None:
        raise Overloaded("too much")

    await put(client)
    monkeypatch.setattr(client.app.partition, "propose", refuse)
    answer = await chunks(client, 0)
    assert (answer.status, answer.code, answer.json["retryable"]) == (503, "OVERLOADED", True)
    assert answer.headers["retry-after"] == "1"


# -- bad input -------------------------------------------------------------------------------------------------------

NEXT = {"producer-seq": "1"}
CHUNKS, FINISH, STOP, BEAT, MESSAGES = f"{G}/chunks", f"{G}/finish", f"{G}/stop", f"{G}/heartbeat", f"{S}/messages"
TEXT = {"content-type": "text/plain"}
DEEP = b"[" * limits.JSON_DEPTH_MAX + b"1" + b"]" * limits.JSON_DEPTH_MAX

BAD: list[tuple[str, str, bytes, Mapping[str, str], Code]] = [
    # bodies
    ("POST", CHUNKS, b"", NEXT, Code.EMPTY_BODY),
    ("POST", CHUNKS, b"[]", NEXT, Code.EMPTY_ARRAY),
    ("POST", CHUNKS, b" [ ] ", NEXT, Code.EMPTY_ARRAY),
    ("POST", CHUNKS, b"[1,]", NEXT, Code.INVALID_JSON),
    ("POST", CHUNKS, b"{", NEXT, Code.INVALID_JSON),
    ("POST", CHUNKS, b"1 2", NEXT, Code.INVALID_JSON),
    ("POST", CHUNKS, b"NaN", NEXT, Code.INVALID_JSON),
    ("POST", CHUNKS, b"   ", NEXT, Code.INVALID_JSON),
    ("POST", CHUNKS, b'"\xff"', NEXT, Code.INVALID_JSON),
    ("POST", CHUNKS, b'"\xed\xa0\x80"', NEXT, Code.INVALID_JSON),
    ("POST", CHUNKS, b'"\\ud8"', NEXT, Code.INVALID_JSON),
    ("POST", CHUNKS, b"[" + DEEP + b",[" + DEEP + b"]]", NEXT, Code.INVALID_JSON),
    ("POST", CHUNKS, b"[" * 5000, NEXT, Code.INVALID_JSON),
    ("POST", CHUNKS, b"[" * 4000 + b"]" * 4000, NEXT, Code.INVALID_JSON),
    ("POST", CHUNKS, b"1" * (BODY_BYTES_MAX + 1), NEXT, Code.BODY_TOO_LARGE),
    ("POST", CHUNKS, b"1", {**NEXT, **TEXT}, Code.INVALID_CONTENT_TYPE),
    ("POST", CHUNKS, b"1", {**NEXT, "content-type": ""}, Code.INVALID_CONTENT_TYPE),
    ("POST", CHUNKS, b"1", {**NEXT, "content-encoding": "br"}, Code.UNSUPPORTED_CODING),
    # seq
    ("POST", CHUNKS, b"1", {}, Code.INVALID_PRODUCER),
    ("POST", FINISH, b"", {}, Code.INVALID_PRODUCER),
    *[
        ("POST", CHUNKS, b"1", {"producer-seq": seq}, Code.INVALID_PRODUCER)
        for seq in ("-1", "", "x", "01", "1.0", "1e3", "+1", " ", "1, 2", str(SEQ_MAX + 1), "9" * 400, "\xb2")
    ],
    ("POST", CHUNKS, b"1", {"producer-seq": str(SEQ_MAX)}, Code.SEQ_GAP),
    # what opens a generation
    *[
        ("POST", f"{S}/generations/new/chunks?{query}", b"1", {"producer-seq": "0"}, code)
        for query, code in (
            ("format=nope", Code.UNKNOWN_FORMAT),
            ("format=", Code.UNKNOWN_FORMAT),
            ("messageId=", Code.INVALID_PARAMETER),
            ("messageId=a%2Fb", Code.INVALID_PARAMETER),
            ("messageId=..", Code.INVALID_PARAMETER),
            (f"messageId={'m' * 129}", Code.INVALID_PARAMETER),
            ("lane=%00", Code.INVALID_PARAMETER),
            ("lane=a%0A", Code.INVALID_PARAMETER),
            ("lane=%C3%A4", Code.INVALID_PARAMETER),
            ("role=a+b", Code.INVALID_PARAMETER),
            ("actorId=%F0%9F%92%A9", Code.INVALID_PARAMETER),
            ("txid=a%22b", Code.INVALID_PARAMETER),
            ("leaseMs=999", Code.INVALID_PARAMETER),
            ("leaseMs=600001", Code.INVALID_PARAMETER),
            ("leaseMs=-1", Code.INVALID_PARAMETER),
            ("leaseMs=1e4", Code.INVALID_PARAMETER),
            (f"leaseMs={'9' * 400}", Code.INVALID_PARAMETER),
            ("messageID=misspelt", Code.INVALID_PARAMETER),
            ("lane=a&lane=b", Code.INVALID_PARAMETER),
            ("lane=a&lane=a", Code.INVALID_PARAMETER),
            ("&".join(f"p{n}=" for n in range(100)), Code.INVALID_PARAMETER),
        )
    ],
    *[
        ("GET", f"{MESSAGES}?{query}", b"", {}, Code.INVALID_PARAMETER)
        for query in ("when=x", "limit=0", "limit=1001", "limit=x", "limit=-1", "after=x", "after=", "at=-1&at=-1")
    ],
    *[("GET", f"{MESSAGES}{mid}?at={at}", b"", {}, Code.INVALID_OFFSET) for mid in ("", "/m") for at in ("x", "")],
    ("GET", f"{MESSAGES}/m?limit=1", b"", {}, Code.INVALID_PARAMETER),
    ("GET", f"{S}?x", b"", {}, Code.INVALID_PARAMETER),
    # finish
    *[
        ("POST", FINISH, body, NEXT, Code.INVALID_BODY)
        for body in (
            b"[]",
            b"1",
            b"null",
            b'"complete"',
            b'{"status":"streaming"}',
            b'{"status":null}',
            b'{"status":1}',
            b'{"status":[]}',
            b'{"status":{}}',
            b'{"reason":1}',
            b'{"reason":"%b"}' % (b"r" * (limits.HEADER_CHARS_MAX + 1)),
            b'{"reason":"\\ud800"}',
            b'{"usage":1}',
            b'{"usage":[]}',
            b'{"metadata":"x"}',
            b'{"finishReason":"misspelt"}',
            b'{"\\ud800":"a name that cannot be told"}',
        )
    ],
    ("POST", FINISH, b"{", NEXT, Code.INVALID_JSON),
    ("POST", FINISH, b"  ", NEXT, Code.EMPTY_BODY),
    ("POST", FINISH, b"{}", {**NEXT, **TEXT}, Code.INVALID_CONTENT_TYPE),
    ("POST", f"{S}/generations/new/finish?format=nope", b"", {"producer-seq": "0"}, Code.UNKNOWN_FORMAT),
    # stop and heartbeat
    ("POST", STOP, b"[]", {}, Code.INVALID_BODY),
    ("POST", STOP, b'{"requestedBy":1}', {}, Code.INVALID_BODY),
    ("POST", STOP, b'{"reason":{}}', {}, Code.INVALID_BODY),
    ("POST", STOP, b'{"by":"misspelt"}', {}, Code.INVALID_BODY),
    ("POST", STOP, b"{", {}, Code.INVALID_JSON),
    ("POST", STOP, b"{}", TEXT, Code.INVALID_CONTENT_TYPE),
    ("POST", f"{STOP}?force=1", b"", {}, Code.INVALID_PARAMETER),
    ("POST", BEAT, b"nonsense", {}, Code.INVALID_JSON),
    # messages
    ("POST", MESSAGES, b"", {}, Code.EMPTY_BODY),
    ("POST", MESSAGES, b" ", {}, Code.EMPTY_BODY),
    *[
        ("POST", MESSAGES, body, {}, Code.INVALID_BODY)
        for body in (
            b"[]",
            b"[" + MESSAGE + b"]",
            b"1",
            b"{}",
            b'{"id":"x"}',
            b'{"role":"user"}',
            b'{"id":1,"role":"user"}',
            b'{"id":"x","role":[]}',
            b'{"id":"","role":"user"}',
            b'{"id":"a/b","role":"user"}',
            b'{"id":"..","role":"user"}',
            b'{"id":"\\ud800","role":"user"}',
            b'{"id":"\xc3\xa4","role":"user"}',
            b'{"id":"%b","role":"user"}' % (b"i" * 129),
        )
    ],
    ("POST", MESSAGES, b'{"id":"x","role":"user"', {}, Code.INVALID_JSON),
    ("POST", MESSAGES, b'{"id":"x","role":"user","d":%b}' % DEEP, {}, Code.INVALID_JSON),
    ("POST", MESSAGES, MESSAGE, TEXT, Code.INVALID_CONTENT_TYPE),
    ("POST", f"{MESSAGES}?txid=", MESSAGE, {}, Code.INVALID_PARAMETER),
    # sessions
    *[
        ("PUT", "/v1/sessions/new", body, {}, Code.INVALID_BODY)
        for body in (
            b"[]",
            b'{"message":1}',
            b'{"message":[]}',
            b'{"message":{"id":"x"}}',
            b'{"metadata":1}',
            b'{"messages":[]}',
        )
    ],
    ("PUT", "/v1/sessions/new", b"{", {}, Code.INVALID_JSON),
    ("PUT", "/v1/sessions/new", b"{}", TEXT, Code.INVALID_CONTENT_TYPE),
    # paths
    *[
        ("PUT", f"/v1/sessions/{path}", b"", {}, Code.INVALID_PATH)
        for path in (
            "",
            ".",
            "..",
            "%2e",
            "a%00",
            "a%0a",
            "%ff",
            "%c3%a4",
            "a%20b",
            "a+b",
            "a%",
            "%zz",
            "a@b",
            "s" * 2000,
        )
    ],
    ("GET", f"{S}/messages/", b"", {}, Code.INVALID_PATH),
    ("GET", f"{S}/messages/a%20b", b"", {}, Code.INVALID_PATH),
    ("POST", f"{S}/generations/a%20b/stop", b"", {}, Code.INVALID_PATH),
    ("POST", f"{S}//generations/g/stop", b"", {}, Code.INVALID_PATH),
]


@pytest.mark.parametrize(("method", "target", "body", "headers", "code"), BAD)
async def test_bad_request_gets_a_4xx_with_a_stable_code_and_changes_nothing(
    client: Client, method: str, target: str, body: bytes, headers: Mapping[str, str], code: Code
) -> None:
    await put(client, b'{"message":%b}' % MESSAGE)
    await chunks(client, 0)
    before = await everything(client)
    answer = await client.send(method, target, body, {**JSON_TYPE, **headers})
    assert (answer.status, answer.code) == (standing_of[code].status, code)
    assert 400 <= answer.status < 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json["requestId"] == answer.headers["x-request-id"]
    assert await everything(client) == before
    assert (await client.get("/v1/sessions/new")).status == 404
    assert (await chunks(client, 1)).status == 200


async def test_texts_cut_inside_a_surrogate_pair_are_taken_and_told_as_they_came(client: Client) -> None:
    """RFC 8259, 8.2: JavaScript writes such escapes when a stream of tokens cuts a pair in two."""
    await put(client, b'{"message":{"id":"m","role":"user","t":"\\ud83d"},"metadata":{"t":"\\ude00"}}')
    await chunks(client, 0, b'["a\\ud83d","\\ude00b"]')
    ended = await finish(client, 1, b'{"error":"\\ud83d"}')
    assert ended.status == 200
    stream = (await client.get(STREAM)).body
    for text in (b'"t":"\\ud83d"', b'"chunk":"a\\ud83d"', b'"chunk":"\\ude00b"', b'"error":"\\ud83d"'):
        assert text in stream
    assert b'"metadata":{"t":"\\ude00"}' in (await client.get(S)).body
    assert b'"error":"\\ud83d"' in (await client.get(G)).body
    told = json.loads((await client.get(f"{S}/messages")).body)["messages"]
    assert "a\N{GRINNING FACE}b" in str(told[1]["message"])


async def test_batch_of_more_chunks_than_the_bound_is_too_large(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records are much larger than the smallest chunks."""
    monkeypatch.setattr(limits, "BATCH_CHUNKS_MAX", 3)
    await put(client)
    before = await everything(client)
    refused = await chunks(client, 0, b"[1,2,3,4]")
    assert (refused.status, refused.code) == (413, "BODY_TOO_LARGE")
    assert await everything(client) == before
    assert (await chunks(client, 0, b"[1,2,3]")).status == 200


async def test_nesting_up_to_the_bound_reaches_the_messages(client: Client) -> None:
    await put(client)
    within = b"[" * (limits.JSON_DEPTH_MAX - 1) + b"]" * (limits.JSON_DEPTH_MAX - 1)
    assert (await post(client, MESSAGES, b'{"id":"m","role":"user","d":%b}' % within)).status == 201
    chunk = b'{"type":"data-deep","data":%b}' % within
    assert (await chunks(client, 0, chunk, query="")).status == 200
    await client.app.partition.checkpoint()  # a snapshot of it can be written
    bodies = msgspec.json.encode((await client.get(f"{S}/messages")).json["messages"])
    assert bodies.count(b"[" * (limits.JSON_DEPTH_MAX - 1)) == 2


async def test_numbers_beyond_a_double_disturb_nobody(client: Client) -> None:
    await put(client)
    huge = b"9" * 5000
    body = b'{"id":"m","role":"user","a":1e400,"b":%b}' % huge
    assert [(await post(client, MESSAGES, body)).status for _ in range(2)] == [201, 200]
    assert (await chunks(client, 0, b'[1e400,{"x":%b}]' % huge[:2000])).status == 200
    assert (await finish(client, 1, b'{"usage":{"n":1e400}}')).status == 200
    assert huge in (await client.get(STREAM)).body
    assert (await client.get(f"{S}/messages")).json["messages"][0]["message"]["b"] is None
    await client.app.partition.checkpoint()
    assert client.app.partition.healthy
