"""`GET …/ui-stream`: the answer that runs, as a chat transport of the AI SDK reads it."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from broker.http.live_readers import LiveReaders
from broker.http.request import Request
from broker.http.response import CutOff, LiveResponse
from broker.http.session_routes import Target
from broker.http.sse import KEEP_ALIVE
from broker.http.ui_stream import UIStreams
from consumer.fold.ui_message_stream import read_ui_message_stream
from tests.broker.http.asgi import Answer, Client, Exchange, broker

SESSION = "/v1/sessions/s"
HEAD = [{"type": "start"}, {"type": "text-start", "id": "t"}]
CHUNKS: list[Any] = [*HEAD, {"type": "text-delta", "id": "t", "delta": "one"}]
TOLD: list[Any] = [{"type": "start", "messageId": "m"}, *CHUNKS[1:]]
MORE: list[Any] = [{"type": "text-delta", "id": "t", "delta": " two"}]
DONE = "data: [DONE]\n\n"


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with broker() as running:
        await running.send("PUT", SESSION)
        yield running


async def write(client: Client, seq: int, chunks: list[Any], gid: str = "g", query: str = "messageId=m") -> Answer:
    target = f"{SESSION}/generations/{gid}/chunks" + (f"?{query}" if seq == 0 and query else "")
    answer = await client.post(target, json.dumps(chunks).encode(), producer_seq=str(seq))
    assert answer.status == 200, answer.body
    return answer


async def finish(client: Client, seq: int, gid: str = "g", **told: Any) -> None:
    target = f"{SESSION}/generations/{gid}/finish"
    answer = await client.post(target, json.dumps(told).encode(), producer_seq=str(seq))
    assert answer.status == 200, answer.body


def ask(client: Client, query: str = "") -> Exchange:
    return client.begin("GET", f"{SESSION}/ui-stream{query}")


async def begun(exchange: Exchange) -> dict[str, str]:
    """The headers of a reader that is told something."""
    start = await exchange.next()
    assert start["status"] == 200
    return {name.decode(): value.decode() for name, value in start["headers"]}


async def told(exchange: Exchange) -> tuple[list[Any], str]:
    """All chunks to the end of the body, and its last event."""
    body = ""
    while piece := await exchange.chunk():
        body += piece
    assert body.endswith("\n\n")
    return chunks_in(body), body.split("\n\n")[-2] + "\n\n"


def chunks_in(body: str) -> list[Any]:
    """As the SDK's own transport takes them, and refuses what is none."""
    return list(read_ui_message_stream([body.encode()]))


# -- what is told ------------------------------------------------------------------------------------------------


async def test_without_a_running_answer_there_is_no_content(client: Client) -> None:
    assert (await client.get(f"{SESSION}/ui-stream")).status == 204
    await write(client, 0, CHUNKS)
    await finish(client, 1)
    answer = await client.get(f"{SESSION}/ui-stream")
    assert (answer.status, answer.body) == (204, b"")


async def test_running_answer_is_told_from_its_start_and_then_live_to_its_end(client: Client) -> None:
    await write(client, 0, CHUNKS)
    reader = ask(client)
    await begun(reader)
    assert chunks_in(await reader.chunk()) == TOLD
    await write(client, 1, MORE)
    assert chunks_in(await reader.chunk()) == MORE
    await finish(client, 2)
    assert await reader.chunk() == DONE
    assert await reader.chunk() == ""


async def test_headers_and_framing_are_those_of_the_sdk(client: Client) -> None:
    await write(client, 0, CHUNKS)
    reader = ask(client)
    headers = await begun(reader)
    assert headers["content-type"] == "text/event-stream"
    assert headers["x-vercel-ai-ui-message-stream"] == "v1"
    assert headers["x-accel-buffering"] == "no"
    assert "no-store" in headers["cache-control"]
    lines = (await reader.chunk()).split("\n\n")
    assert lines[0] == 'data: {"type":"start","messageId":"m"}'
    assert all(line.startswith("data: {") for line in lines[:-1])


async def test_every_reader_is_told_the_same_whenever_it_comes(client: Client) -> None:
    await write(client, 0, CHUNKS)
    early = ask(client)
    await begun(early)
    await early.chunk()
    await write(client, 1, MORE)
    late = ask(client)
    await begun(late)
    assert chunks_in(await late.chunk()) == [*TOLD, *MORE]
    await early.chunk()
    await write(client, 2, MORE)
    assert await early.chunk() == await late.chunk()


async def test_writer_without_a_start_gets_one_with_the_message_id(client: Client) -> None:
    await write(client, 0, CHUNKS[1:])
    reader = ask(client)
    await begun(reader)
    assert chunks_in(await reader.chunk()) == TOLD


async def test_start_of_the_writer_keeps_its_metadata_under_the_sessions_id(client: Client) -> None:
    await write(client, 0, [{"type": "start", "messageId": "mine", "messageMetadata": {"model": "x"}}])
    reader = ask(client)
    await begun(reader)
    assert chunks_in(await reader.chunk()) == [{"type": "start", "messageId": "m", "messageMetadata": {"model": "x"}}]


async def test_chunks_stay_as_their_writer_spelled_them(client: Client) -> None:
    spelled = rb'{"type":"text-delta","id":"t","delta":"\ud800 caf\u00e9", "n":' + b" 1.10}"
    body = b"[" + json.dumps(CHUNKS[1]).encode() + b",\n" + spelled + b',{"type":\n"finish"}]'
    answer = await client.post(f"{SESSION}/generations/g/chunks?messageId=m", body, producer_seq="0")
    assert answer.status == 200
    reader = ask(client)
    await begun(reader)
    frame = await reader.chunk()
    assert r'"delta":"\ud800 café"' in frame or r'"delta":"\ud800 caf\u00e9"' in frame
    assert 'data: {"type":\ndata: "finish"}\n\n' in frame


# -- how it ends -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("end", "chunk"),
    [
        ({"status": "aborted", "reason": "cancelled"}, {"type": "abort", "reason": "cancelled"}),
        ({"status": "aborted"}, {"type": "abort"}),
        ({"status": "failed", "error": {"message": "no quota"}}, {"type": "error", "errorText": "no quota"}),
        ({"status": "failed", "error": "no quota"}, {"type": "error", "errorText": "no quota"}),
        ({"status": "failed", "reason": "x"}, {"type": "error", "errorText": "the answer failed: x"}),
        ({"status": "failed"}, {"type": "error", "errorText": "the answer failed"}),
    ],
)
async def test_answer_that_does_not_complete_ends_in_the_sdks_own_words(
    client: Client, end: dict[str, Any], chunk: dict[str, Any]
) -> None:
    await write(client, 0, CHUNKS)
    reader = ask(client)
    await begun(reader)
    await finish(client, 1, **end)
    assert await told(reader) == ([*TOLD, chunk], DONE)


async def test_stop_ends_every_reader(client: Client) -> None:
    await write(client, 0, CHUNKS)
    readers = [ask(client), ask(client)]
    for reader in readers:
        await begun(reader)
    await client.post(f"{SESSION}/generations/g/stop", b"{}")
    for reader in readers:
        assert await told(reader) == ([*TOLD, {"type": "abort", "reason": "stopped"}], DONE)


async def test_newer_answer_in_the_lane_ends_the_older_and_is_told_next(client: Client) -> None:
    await write(client, 0, CHUNKS)
    reader = ask(client)
    await begun(reader)
    await write(client, 0, CHUNKS, "h", "messageId=n")
    assert await told(reader) == ([*TOLD, {"type": "abort", "reason": "superseded"}], DONE)
    newer = ask(client)
    await begun(newer)
    assert chunks_in(await newer.chunk())[0] == {"type": "start", "messageId": "n"}


async def test_deleted_session_ends_its_answer(client: Client) -> None:
    await write(client, 0, CHUNKS)
    reader = ask(client)
    await begun(reader)
    await reader.chunk()
    await client.send("DELETE", SESSION)
    assert await told(reader) == ([{"type": "abort", "reason": "the session is gone"}], DONE)


async def test_session_that_is_reset_ends_its_answer(client: Client) -> None:
    await write(client, 0, CHUNKS)
    reader = ask(client)
    await begun(reader)
    await reader.chunk()
    assert (await client.post(f"{SESSION}/reset", b"{}")).status == 200
    assert await told(reader) == ([{"type": "abort", "reason": "the session is gone"}], DONE)
    assert (await client.get(f"{SESSION}/ui-stream")).status == 204


async def test_drain_cuts_the_body_so_that_nobody_takes_the_answer_for_whole(client: Client) -> None:
    await write(client, 0, CHUNKS)
    reader = ask(client)
    await begun(reader)
    await reader.chunk()
    client.app.drain()
    await asyncio.wait_for(reader.task, 5)
    assert reader.sent.empty()


async def test_connection_that_has_lived_long_enough_is_cut_too(client: Client) -> None:
    await write(client, 0, CHUNKS)
    streams = UIStreams(client.app.partition, client.app.settings, LiveReaders(1), life_s=0.01)
    live = await streams.get(Request("GET", "s/ui-stream", {}), Target("s", "ui-stream"))
    assert isinstance(live, LiveResponse)
    assert chunks_in((await anext(live.chunks)).decode()) == TOLD
    with pytest.raises(CutOff):
        await anext(live.chunks)


async def test_silent_answer_is_kept_alive_by_comments() -> None:
    async with broker(sse_keepalive_s=0.02) as client:
        await client.send("PUT", SESSION)
        await write(client, 0, CHUNKS)
        reader = ask(client)
        await begun(reader)
        await reader.chunk()
        assert await reader.chunk() == KEEP_ALIVE.decode()


# -- which answer ------------------------------------------------------------------------------------------------


async def test_answer_of_another_lane_is_told_when_it_is_asked_for(client: Client) -> None:
    await write(client, 0, CHUNKS)
    await write(client, 0, CHUNKS, "h", "messageId=n&lane=side")
    await write(client, 1, MORE)
    reader = ask(client, "?lane=side")
    await begun(reader)
    assert chunks_in(await reader.chunk()) == [{"type": "start", "messageId": "n"}, *CHUNKS[1:]]
    assert (await client.get(f"{SESSION}/ui-stream?lane=none")).status == 204


async def test_start_is_found_behind_a_long_session_with_much_in_between(client: Client) -> None:
    await write(client, 0, CHUNKS * 40, "old", "")
    await finish(client, 1, "old")
    await write(client, 0, CHUNKS)
    for seq in range(3):
        await write(client, seq, MORE * 200, "aside", "lane=side")
    await write(client, 1, MORE)
    reader = ask(client)
    await begun(reader)
    heard: list[Any] = []
    while len(heard) < len(TOLD) + 1:
        heard += chunks_in(await reader.chunk())
    assert heard == [*TOLD, *MORE]


async def test_answer_to_a_message_is_waited_for_and_told_though_it_is_over(client: Client) -> None:
    await write(client, 0, CHUNKS, "old", "")
    await finish(client, 1, "old")
    asked = await client.post(f"{SESSION}/messages", b'{"id":"u","role":"user","parts":[]}')
    query = f"?offset={asked.json['offset']}"
    reader = ask(client, query)
    await asyncio.sleep(0)
    assert reader.sent.empty()
    await write(client, 0, CHUNKS)
    await begun(reader)
    assert chunks_in(await reader.chunk()) == TOLD
    await finish(client, 1)
    assert await reader.chunk() == DONE

    again = ask(client, query)
    await begun(again)
    assert await told(again) == (TOLD, DONE)


async def test_message_that_nobody_answers_has_no_content_when_the_time_is_up() -> None:
    async with broker(long_poll_s=0.05) as client:
        created = await client.send("PUT", SESSION)
        assert (await client.get(f"{SESSION}/ui-stream?offset={created.json['offset']}")).status == 204


async def test_session_that_is_deleted_while_an_answer_is_waited_for_is_gone(client: Client) -> None:
    reader = ask(client, "?offset=now")
    await asyncio.sleep(0)
    await client.send("DELETE", SESSION)
    assert (await reader.answer()).code == "OFFSET_GONE"


async def test_answer_that_continues_another_is_told_from_where_that_one_began(client: Client) -> None:
    await write(client, 0, CHUNKS)
    await finish(client, 1, status="failed", reason="asleep")
    await write(client, 0, MORE * 200, "aside", "lane=side")
    await write(client, 0, MORE, "h", "continues=g")
    reader = ask(client)
    await begun(reader)
    assert chunks_in(await reader.chunk()) == [*TOLD, *MORE]
    await write(client, 1, MORE, "h")
    assert chunks_in(await reader.chunk()) == MORE
    await finish(client, 2, "h")
    assert await told(reader) == ([], DONE)


async def test_answer_that_was_opened_ahead_is_told_when_it_begins(client: Client) -> None:
    await client.send("PUT", f"{SESSION}/generations/g", b'{"messageId":"m"}', {"content-type": "application/json"})
    reader = ask(client)
    await begun(reader)
    await write(client, 0, CHUNKS, query="")
    assert chunks_in(await reader.chunk()) == TOLD


# -- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("?lane=a/b", 400, "INVALID_PARAMETER"),
        ("?message=m", 400, "INVALID_PARAMETER"),
        ("?offset=x", 400, "INVALID_OFFSET"),
        ("?offset=0000000000000001_00000000000000ab", 410, "OFFSET_GONE"),
    ],
)
async def test_what_cannot_be_meant_is_refused(client: Client, query: str, status: int, code: str) -> None:
    answer = await client.get(f"{SESSION}/ui-stream{query}")
    assert (answer.status, answer.code) == (status, code)


async def test_unknown_session_is_named(client: Client) -> None:
    answer = await client.get("/v1/sessions/none/ui-stream")
    assert (answer.status, answer.code, answer.json["sessionId"]) == (404, "SESSION_NOT_FOUND", "none")


# -- other formats -----------------------------------------------------------------------------------------------


async def test_answer_in_another_format_is_told_as_what_it_has_grown_by(client: Client) -> None:
    await write(client, 0, ["Hel", "lo"], query="messageId=m&format=text")
    early = ask(client)
    await begun(early)
    assert chunks_in(await early.chunk()) == [
        {"type": "start", "messageId": "m"},
        {"type": "text-start", "id": "part-0"},
        {"type": "text-delta", "id": "part-0", "delta": "Hello"},
    ]
    await write(client, 1, [" you"])
    assert chunks_in(await early.chunk()) == [{"type": "text-delta", "id": "part-0", "delta": " you"}]
    late = ask(client)
    await begun(late)
    assert [chunk.get("delta") for chunk in chunks_in(await late.chunk())] == [None, None, "Hello", " you"]
    await client.post(f"{SESSION}/generations/g/stop", b"{}")
    end = [{"type": "text-end", "id": "part-0"}, {"type": "abort", "reason": "stopped"}]
    assert await told(early) == (end, DONE)
    assert await told(late) == (end, DONE)


async def test_conversion_lasts_for_as_long_as_somebody_reads_it(client: Client) -> None:
    await write(client, 0, ["Hello"], query="messageId=m&format=text")
    for _ in range(2):
        reader = ask(client)
        await begun(reader)
        assert [chunk.get("delta") for chunk in chunks_in(await reader.chunk())] == [None, None, "Hello"]
        reader.leave()
        await reader.task


async def test_answer_in_another_format_that_never_began_has_a_start_and_its_end(client: Client) -> None:
    query = "messageId=m&format=text"
    target = f"{SESSION}/generations/g/finish?{query}"
    asked = (await client.get(SESSION)).json["offset"]
    await client.post(target, b'{"status":"aborted"}', producer_seq="0")
    reader = ask(client, f"?offset={asked}")
    await begun(reader)
    assert await told(reader) == ([{"type": "start", "messageId": "m"}, {"type": "abort"}], DONE)


# -- bounds ------------------------------------------------------------------------------------------------------


async def test_readers_are_bounded_together_with_all_live_ones_and_counted() -> None:
    async with broker(live_readers_max=1) as client:
        await client.send("PUT", SESSION)
        await write(client, 0, CHUNKS)
        reader = ask(client)
        await begun(reader)
        await reader.chunk()
        assert client.app.live.counts["ui-stream"] == 1
        assert (await client.get(f"{SESSION}/ui-stream")).status == 503
        reader.leave()
        await reader.task
        assert client.app.live.counts["ui-stream"] == 0
