"""`/v1/sessions/{sid}/generations` of a running broker: their routes, and every refusal with its facts."""

import pytest

from broker import limits
from broker.errors import Overloaded
from tests.broker.http.asgi import Answer, Client
from tests.broker.http.session_requests import (
    JSON_TYPE,
    MESSAGE,
    STREAM,
    G,
    S,
    chunks,
    everything,
    facts,
    finish,
    post,
    producer_headers,
    put,
    records,
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
