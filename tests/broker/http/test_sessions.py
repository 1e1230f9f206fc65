"""`/v1/sessions` of a running broker: sessions, and whole messages in them."""

import pytest

from broker import limits
from consumer.session import SessionFold
from tests.broker.http.asgi import Client
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
    put,
    records,
)

# -- a session -------------------------------------------------------------------------------------------------------


EVERY_CHARACTER = "AZaz09._~:-"


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
