"""`/v1/sessions` of a running broker: bad input of every kind gets its code, and what only looks bad is taken."""

import json
from collections.abc import AsyncIterator, Mapping

import msgspec
import pytest

from broker import limits
from broker.http.problems import standing_of
from consumer.wire import SEQ_MAX, Code
from tests.broker.http.asgi import Client, broker
from tests.broker.http.session_requests import JSON_TYPE, MESSAGE, STREAM, G, S, chunks, everything, finish, post, put

BODY_BYTES_MAX = 10_000


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with broker(body_bytes_max=BODY_BYTES_MAX) as client:
        yield client


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
    ("POST", f"{S}/stop", b'{"lane":""}', {}, Code.INVALID_BODY),
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
