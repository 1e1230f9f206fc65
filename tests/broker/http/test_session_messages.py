"""`GET /v1/sessions/{sid}/messages`: at an offset, in pages, and only when there is something new."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from broker import limits
from consumer.session import SessionFold
from tests.broker.http.asgi import Answer, Client

S = "/v1/sessions/s"
G = f"{S}/generations/g"
STREAM = "/v1/stream/sessions/s"


async def conversation(client: Client) -> None:
    await client.put(S, body=b'{"message":{"id":"q","role":"user","text":"?"}}')
    for seq in range(3):
        await client.post(f"{G}/chunks?messageId=a&format=text", b'["x","y"]', producer_seq=str(seq))
    await client.post(f"{S}/messages", b'{"id":"late","role":"user"}')
    await client.post(f"{G}/chunks", b'"z"', producer_seq="3")
    await client.post(f"{G}/finish", b'{"status":"failed"}', producer_seq="4")
    await client.post(f"{S}/messages", b'{"id":"end","role":"user"}')


async def offsets(client: Client) -> list[str]:
    """The offset of every position, from 0 on."""
    stream = await client.get(STREAM)
    life = stream.offset[16:]
    return [f"{position:016x}{life}" for position in range(len(stream.json) + 1)]


def ids(answer: Answer) -> list[str]:
    return [message["id"] for message in answer.json["messages"]]


async def test_messages_at_every_offset_are_the_fold_of_the_log_up_to_it(client: Client) -> None:
    await conversation(client)
    fold, log = SessionFold(), (await client.get(STREAM)).json
    for offset, record in zip(await offsets(client), [*log, None], strict=True):
        told = await client.get(f"{S}/messages?at={offset}")
        assert (told.status, told.json["offset"], told.offset) == (200, offset, offset)
        assert told.json["messages"] == fold.items()
        for item in fold.items():
            one = await client.get(f"{S}/messages/{item['id']}?at={offset}")
            assert one.json == {"sessionId": "s", **item}
        fold.add(record)


async def test_message_that_began_later_is_not_there_yet(client: Client) -> None:
    await conversation(client)
    early = (await offsets(client))[1]
    assert ids(await client.get(f"{S}/messages?at={early}")) == ["q"]
    missing = await client.get(f"{S}/messages/a?at={early}")
    assert (missing.status, missing.code) == (404, "MESSAGE_NOT_FOUND")


async def test_the_start_and_now_are_offsets_too(client: Client) -> None:
    await conversation(client)
    assert ids(await client.get(f"{S}/messages?at=-1")) == []
    now, latest = await client.get(f"{S}/messages?at=now"), await client.get(f"{S}/messages")
    assert (now.body, now.headers["etag"]) == (latest.body, latest.headers["etag"])


async def test_offset_of_another_life_is_gone_and_one_beyond_the_end_is_none(client: Client) -> None:
    await conversation(client)
    known = await offsets(client)
    beyond = await client.get(f"{S}/messages?at=00000000000000ff{known[0][16:]}")
    assert (beyond.status, beyond.code) == (400, "INVALID_OFFSET")
    await client.send("DELETE", S)
    assert (await client.get(f"{S}/messages?at={known[3]}")).code == "SESSION_NOT_FOUND"
    await client.put(S)
    gone = await client.get(f"{S}/messages?at={known[3]}")
    assert (gone.status, gone.code) == (410, "OFFSET_GONE")


async def test_pages_have_each_message_once(client: Client) -> None:
    await conversation(client)
    whole = (await client.get(f"{S}/messages")).json
    assert whole["next"] is None
    for limit in (1, 2, 3, 4, 1000):
        found: list[Any] = []
        page = (await client.get(f"{S}/messages?limit={limit}")).json
        while page["next"] is not None:
            assert len(page["messages"]) == limit
            found += page["messages"]
            page = (await client.get(f"{S}/messages?limit={limit}&after={page['next']}&at={whole['offset']}")).json
        assert found + page["messages"] == whole["messages"]


async def test_page_after_the_last_has_nothing_until_there_is_more(client: Client) -> None:
    await conversation(client)
    page = (await client.get(f"{S}/messages?limit=3")).json
    assert ids(await client.get(f"{S}/messages?limit=9&after={page['next']}")) == ["end"]
    await client.post(f"{S}/messages", b'{"id":"more","role":"user"}')
    assert ids(await client.get(f"{S}/messages?after={page['next']}")) == ["end", "more"]
    past = await client.get(f"{S}/messages?after={page['next']}&at={page['offset']}")
    assert ids(past) == ["end"]


async def test_page_of_another_life_is_gone(client: Client) -> None:
    await conversation(client)
    token = (await client.get(f"{S}/messages?limit=1")).json["next"]
    await client.send("DELETE", S)
    await conversation(client)
    gone = await client.get(f"{S}/messages?after={token}")
    assert (gone.status, gone.code) == (410, "OFFSET_GONE")


async def test_list_that_is_known_is_not_folded_to_say_so(client: Client) -> None:
    await conversation(client)
    known = await client.get(f"{S}/messages")
    tags = {offset: f'"{offset}"' for offset in await offsets(client)}
    folded = client.app.materializer.records_folded
    same = await client.get(f"{S}/messages", if_none_match=known.headers["etag"])
    assert (same.status, same.body, same.offset) == (304, b"", known.offset)
    for offset, tag in tags.items():
        past = await client.get(f"{S}/messages?at={offset}", if_none_match=tag)
        assert (past.status, past.headers["etag"]) == (304, tag)
    assert client.app.materializer.records_folded == folded


async def test_going_on_from_where_one_went_back_to_folds_only_what_lies_between(client: Client) -> None:
    await conversation(client)
    await client.get(f"{S}/messages")
    known = await offsets(client)
    counts = []
    for position in (6, 6, 7, 5):
        before = client.app.materializer.records_folded
        await client.get(f"{S}/messages?at={known[position]}")
        counts.append(client.app.materializer.records_folded - before)
    assert counts == [5, 0, 1, 4]  # the answer began at 1


async def test_page_asks_for_no_more_than_the_bound(client: Client) -> None:
    await client.put(S)
    allowed = await client.get(f"{S}/messages?limit={limits.MESSAGES_PAGE_MAX}")
    assert allowed.status == 200


@pytest.mark.parametrize("model", ["", "as=ui"])
async def test_long_list_is_encoded_in_steps_that_let_others_run(client: Client, model: str) -> None:
    """As many turns more than for a page of one message as there are steps."""
    steps, text = 12, b"x" * limits.MESSAGES_STEP_BYTES
    await client.put(S)
    for number in range(steps):
        await client.post(
            f"{S}/messages", b'{"id":"m%d","role":"user","parts":[{"type":"text","text":"%b"}]}' % (number, text)
        )

    async def turns_of(query: str) -> int:
        asking = asyncio.create_task(client.get(f"{S}/messages?{query}"))
        turns = 0
        while not asking.done():
            turns += 1
            await asyncio.sleep(0)
        assert (await asking).status == 200
        return turns

    await client.get(f"{S}/messages?limit=1")  # folded and in memory from here on
    whole, one = await turns_of(model), await turns_of("limit=1&" + model)
    assert whole - one >= steps - 2


# -- what sessions go through ---------------------------------------------------------------------------------------


async def require_every_offset(client: Client, session: str = "s") -> list[Any]:
    """What is told at each offset is the fold of the log before it, by a broker that had forgotten the session."""
    fold, path = SessionFold(), f"sessions/{session}"
    row = await client.app.partition.stream(path)
    assert row is not None
    for position, record in enumerate([*(await client.get(f"/v1/stream/{path}")).json, None]):
        client.app.materializer.forget(path)
        told = (await client.get(f"/v1/sessions/{session}/messages?at={row.offset(position)}")).json
        assert told["messages"] == fold.items(), f"{session} at {position}"
        fold.add(record)
    return fold.items()


async def test_message_that_another_generation_goes_on_with_is_streaming_again_at_every_offset(client: Client) -> None:
    await conversation(client)
    ended = (await client.get(f"{S}/messages/a")).json
    await client.app.partition.checkpoint()
    await client.post(f"{S}/generations/h/chunks?continues=g", b'["on","ward"]', producer_seq="0")
    running = (await client.get(f"{S}/messages/a")).json
    assert (ended["status"], running["status"]) == ("failed", "streaming")
    await client.post(f"{S}/messages", b'{"id":"between","role":"user"}')
    await client.post(f"{S}/generations/h/finish", b"", producer_seq="1")
    assert [item["status"] for item in await require_every_offset(client)] == ["complete"] * 5
    text = (await client.get(f"{S}/messages/a")).json["message"]["parts"]
    assert "".join(part["text"] for part in text) == "xyxyxyzonward"


async def test_session_that_was_reset_has_the_messages_of_its_new_life_only(client: Client) -> None:
    await conversation(client)
    before = await client.get(f"{S}/messages")
    await client.app.partition.checkpoint()
    await client.post(f"{S}/reset", b'{"reason":"again"}')
    after = await client.get(f"{S}/messages", if_none_match=before.headers["etag"])
    assert (after.status, after.json["messages"]) == (200, [])
    gone = await client.get(f"{S}/messages?at={before.offset}")
    assert (gone.status, gone.code) == (410, "OFFSET_GONE")
    await client.post(f"{S}/messages", b'{"id":"q","role":"user"}')
    await client.post(f"{S}/generations/n/chunks?format=text", b'"new"', producer_seq="0")
    await client.app.partition.checkpoint()
    assert [item["id"] for item in await require_every_offset(client)] == ["q", "n"]


async def test_forked_session_has_the_messages_of_its_source_up_to_the_fork_and_its_own(client: Client) -> None:
    await conversation(client)
    await client.post(f"{S}/generations/open/chunks?format=text", b'["1","2"]', producer_seq="0")
    await client.get(f"{S}/messages")
    await client.app.partition.checkpoint()
    await client.post(f"{S}/fork", b'{"sessionId":"child"}')
    await client.post(f"{S}/generations/open/chunks", b'"3"', producer_seq="1")
    await client.post("/v1/sessions/child/messages", b'{"id":"own","role":"user"}')
    await client.app.partition.checkpoint()
    child, source = await require_every_offset(client, "child"), await require_every_offset(client)
    assert child[:4] == source[:4]
    assert [(item["id"], item["status"]) for item in child[4:]] == [("open", "aborted"), ("own", "complete")]
    assert source[4]["status"] == "streaming"


# -- in one model ----------------------------------------------------------------------------------------------------


async def test_messages_of_any_format_are_had_as_ui_messages(client: Client) -> None:
    await client.put(S, body=b'{"message":{"id":"q","role":"user","content":"?"}}')
    choice = b'{"index":0,"delta":{"role":"assistant","content":"Hi"}}'
    piece = b'{"id":"x","object":"chat.completion.chunk","choices":[%b]}' % choice
    await client.post(f"{G}/chunks?format=openai-chat&messageId=a", piece, producer_seq="0")
    offset = (await client.get(f"{S}/messages")).json["offset"]
    await client.post(f"{G}/finish", b"", producer_seq="1")
    ended, running = await client.get(f"{S}/messages?as=ui"), await client.get(f"{S}/messages?as=ui&at={offset}")
    question = {"id": "q", "role": "user", "parts": [{"type": "text", "text": "?", "state": "done"}]}
    for told, state in ((ended, "done"), (running, "streaming")):
        answer = {"id": "a", "role": "assistant", "parts": [{"type": "text", "text": "Hi", "state": state}]}
        assert [item["message"] for item in told.json["messages"]] == [question, answer]
    one = (await client.get(f"{S}/messages/a?as=ui")).json
    assert one == {"sessionId": "s", **ended.json["messages"][1]}
    plain = (await client.get(f"{S}/messages/a")).json
    assert {**one, "message": None} == {**plain, "message": None}
    assert one["message"] != plain["message"]


async def test_model_that_is_not_known_is_refused(client: Client) -> None:
    await conversation(client)
    refused = await client.get(f"{S}/messages?as=html")
    assert (refused.status, refused.code) == (400, "INVALID_PARAMETER")
