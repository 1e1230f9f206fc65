"""Reads of a running broker, on the memory engine, with the test in the place of the server."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from broker import limits
from broker.core.offset import START_TOKEN
from broker.http.sse import KEEP_ALIVE
from tests.broker.http.asgi import Client, Exchange, broker
from tests.broker.http.test_sse import understood

PATH = "/v1/stream/a"


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with broker(long_poll_s=0.05, sse_keepalive_s=0.02) as client:
        yield client


async def events(exchange: Exchange) -> list[tuple[str, str, str]]:
    """The events in the next piece of a live response that has any."""
    while True:
        chunk = await exchange.chunk()
        if chunk != KEEP_ALIVE.decode():
            return understood(chunk.encode())


async def live(client: Client, target: str, **headers: str) -> Exchange:
    """An SSE connection whose head has arrived."""
    exchange = client.begin("GET", target, headers={name.replace("_", "-"): value for name, value in headers.items()})
    assert (await exchange.next())["status"] == 200
    return exchange


# -- catch-up --------------------------------------------------------------------------------------------------------


async def test_read_resumes_where_the_one_before_ended(client: Client) -> None:
    await client.put(PATH, body=b"[1,2]")
    first = await client.get(PATH)
    assert (first.json, first.headers["stream-up-to-date"]) == ([1, 2], "true")
    at_end = await client.get(f"{PATH}?offset={first.offset}")
    assert (at_end.body, at_end.offset, at_end.headers["stream-up-to-date"]) == (b"[]", first.offset, "true")
    await client.post(PATH, b"[3]")
    assert (await client.get(f"{PATH}?offset={first.offset}")).json == [3]
    for start in ("-1", START_TOKEN):
        assert (await client.get(f"{PATH}?offset={start}")).json == [1, 2, 3]


async def test_offset_now_skips_what_is_there_and_is_kept_by_nobody(client: Client) -> None:
    await client.put(PATH, body=b"[1,2]")
    now = await client.get(f"{PATH}?offset=now")
    assert (now.body, now.headers["cache-control"], "etag" in now.headers) == (b"[]", "no-store", False)
    await client.post(PATH, b"3")
    assert (await client.get(f"{PATH}?offset={now.offset}")).json == [3]


async def test_large_stream_is_read_in_pages_of_which_only_the_last_is_up_to_date(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "READ_BYTES_MAX", 10)
    await client.put(PATH, "text/plain")
    for piece in (b"a" * 8, b"b" * 8, b"c" * 8):
        await client.post(PATH, piece, "text/plain")
    await client.post(PATH, b"", stream_closed="true")
    read, offset, pages = b"", "-1", []
    for _ in range(3):
        answer = await client.get(f"{PATH}?offset={offset}")
        read, offset = read + answer.body, answer.offset
        pages.append(("stream-up-to-date" in answer.headers, "stream-closed" in answer.headers))
    assert read == b"a" * 8 + b"b" * 8 + b"c" * 8
    assert pages == [(False, False), (False, False), (True, True)]


async def test_known_page_is_answered_with_304_until_the_stream_grows_or_closes(client: Client) -> None:
    await client.put(PATH, "text/plain", b"x")
    tag = (await client.get(PATH)).headers["etag"]
    known = await client.get(PATH, if_none_match=tag)
    assert (known.status, known.body, known.headers["etag"]) == (304, b"", tag)
    await client.post(PATH, b"", stream_closed="true")
    closed = await client.get(PATH, if_none_match=tag)
    assert (closed.status, closed.headers["stream-closed"]) == (200, "true")


async def test_offset_of_an_earlier_life_is_gone_in_every_mode(client: Client) -> None:
    offset = (await client.put(PATH, body=b"[1]")).offset
    await client.send("DELETE", PATH)
    await client.put(PATH, body=b"[1,2,3]")
    for mode in ("", "&live=long-poll", "&live=sse"):
        answer = await client.get(f"{PATH}?offset={offset}{mode}")
        assert (answer.status, answer.code) == (410, "OFFSET_GONE")


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("offset=", "INVALID_OFFSET"),
        ("offset=0,1", "INVALID_OFFSET"),
        ("offset=zzz", "INVALID_OFFSET"),
        ("offset=" + "f" * 33, "INVALID_OFFSET"),
        ("offset=-1&offset=-1", "INVALID_PARAMETER"),
        ("live=sse", "INVALID_OFFSET"),
        ("live=long-poll", "INVALID_OFFSET"),
        ("offset=-1&live=yes", "INVALID_PARAMETER"),
        ("offset=-1&live=", "INVALID_PARAMETER"),
    ],
)
async def test_read_that_makes_no_sense_is_refused(client: Client, query: str, code: str) -> None:
    await client.put(PATH, body=b"[1]")
    answer = await client.get(f"{PATH}?{query}")
    assert (answer.status, answer.code) == (400, code)


async def test_offset_beyond_the_end_is_refused(client: Client) -> None:
    offset = (await client.put(PATH, body=b"[1]")).offset
    beyond = f"{99:016x}_{offset[17:]}"
    assert (await client.get(f"{PATH}?offset={beyond}")).code == "INVALID_OFFSET"


async def test_stream_is_told_to_browsers_as_content_that_runs_nothing(client: Client) -> None:
    await client.put(PATH, "text/html", b"<script>alert(1)</script>")
    answer = await client.get(PATH)
    assert "sandbox" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"


async def test_head_tells_the_tail_and_the_configuration(client: Client) -> None:
    await client.put(PATH, "text/plain", b"abc", stream_ttl="3600")
    answer = await client.send("HEAD", PATH)
    assert (answer.status, answer.headers["stream-ttl"], answer.headers["cache-control"]) == (200, "3600", "no-store")
    assert answer.offset == (await client.get(PATH)).offset


# -- long-poll -------------------------------------------------------------------------------------------------------


async def test_long_poll_answers_at_once_when_there_is_something(client: Client) -> None:
    await client.put(PATH, body=b"[1]")
    answer = await client.get(f"{PATH}?offset=-1&live=long-poll")
    assert (answer.status, answer.json, answer.headers["stream-cursor"].isdigit()) == (200, [1], True)


async def test_long_poll_is_answered_by_the_append_that_it_waits_for() -> None:
    async with broker(long_poll_s=60.0) as client:
        await client.put(PATH, body=b"[1]")
        waiting = client.begin("GET", f"{PATH}?offset=now&live=long-poll")
        await _until_live(client, "long-poll", 1)
        await client.post(PATH, b"[2,3]")
        answer = await waiting.answer()
        assert (answer.json, answer.headers["stream-up-to-date"]) == ([2, 3], "true")
        await _until_live(client, "long-poll", 0)


async def test_long_poll_that_waits_in_vain_gets_204_with_its_place_and_a_cursor(client: Client) -> None:
    tail = (await client.put(PATH, body=b"[1]")).offset
    answer = await client.get(f"{PATH}?offset=now&live=long-poll")
    assert (answer.status, answer.offset, answer.headers["cache-control"]) == (204, tail, "no-store")
    assert (answer.headers["stream-up-to-date"], answer.headers["stream-cursor"].isdigit()) == ("true", True)


@pytest.mark.parametrize("end", ["close", "delete", "drain"])
async def test_long_poll_ends_when_nothing_can_come_any_more(end: str) -> None:
    async with broker(long_poll_s=60.0) as client:
        await client.put(PATH, body=b"[1]")
        waiting = client.begin("GET", f"{PATH}?offset=now&live=long-poll")
        await _until_live(client, "long-poll", 1)
        if end == "close":
            await client.post(PATH, b"", stream_closed="true")
        elif end == "delete":
            await client.send("DELETE", PATH)
        else:
            client.app.drain()
        answer = await waiting.answer()
        assert answer.status == (404 if end == "delete" else 204)
        assert ("stream-closed" in answer.headers) is (end == "close")


async def test_reader_that_leaves_is_noticed_while_it_waits() -> None:
    async with broker(long_poll_s=60.0, sse_life_s=60.0) as client:
        await client.put(PATH)
        polling = client.begin("GET", f"{PATH}?offset=now&live=long-poll")
        listening = await live(client, f"{PATH}?offset=now&live=sse")
        await _until_live(client, "long-poll", 1)
        await _until_live(client, "sse", 1)
        for exchange in (polling, listening):
            exchange.leave()
            await exchange.task
        assert _live(client) == {"long-poll": 0, "sse": 0, "ui-stream": 0}


async def test_reader_beyond_the_bound_is_told_to_come_back() -> None:
    async with broker(long_poll_s=60.0, live_readers_max=1) as client:
        await client.put(PATH)
        first = await live(client, f"{PATH}?offset=now&live=sse")
        await _until_live(client, "sse", 1)
        for mode in ("sse", "long-poll"):
            answer = await client.get(f"{PATH}?offset=now&live={mode}")
            assert (answer.status, answer.code, answer.headers["retry-after"]) == (503, "OVERLOADED", "1")
        first.leave()
        await first.task


# -- SSE -------------------------------------------------------------------------------------------------------------


async def test_sse_tells_what_is_there_then_what_comes_then_the_end(client: Client) -> None:
    await client.put(PATH, body=b"[1]")
    exchange = await live(client, f"{PATH}?offset=-1&live=sse")
    (first_id, kind, data), (_, control, _) = await events(exchange)
    assert (kind, data, control) == ("data", "[1]", "control")
    offset = (await client.post(PATH, b"[2,3]")).offset
    (second_id, _, data), (_, _, place) = await events(exchange)
    assert (data, second_id, first_id < second_id) == ("[2,3]", offset, True)
    assert f'"streamNextOffset":"{offset}"' in place
    assert '"upToDate":true' in place
    await client.post(PATH, b"4", stream_closed="true")
    (_, _, data), (_, _, place) = await events(exchange)
    assert data == "[4]"
    assert '"streamClosed":true' in place
    assert await exchange.chunk() == ""
    await exchange.task


async def test_sse_at_the_tail_says_so_at_once(client: Client) -> None:
    offset = (await client.put(PATH, body=b"[1]")).offset
    exchange = await live(client, f"{PATH}?offset=now&live=sse")
    assert [(at, kind) for at, kind, _ in await events(exchange)] == [(offset, "control")]
    exchange.leave()


async def test_browser_that_reconnects_resumes_at_the_last_event_it_saw(client: Client) -> None:
    offset = (await client.put(PATH, body=b"[1]")).offset
    await client.post(PATH, b"2")
    exchange = await live(client, f"{PATH}?offset=-1&live=sse", last_event_id=offset)
    assert (await events(exchange))[0][2] == "[2]"
    exchange.leave()


async def test_silent_sse_connection_is_kept_alive_by_comments(client: Client) -> None:
    await client.put(PATH)
    exchange = await live(client, f"{PATH}?offset=now&live=sse")
    await events(exchange)
    assert await exchange.chunk() == KEEP_ALIVE.decode()
    exchange.leave()


async def test_sse_connection_ends_properly_after_its_life() -> None:
    async with broker(sse_life_s=0.05) as client:
        await client.put(PATH)
        exchange = await live(client, f"{PATH}?offset=now&live=sse")
        while await exchange.chunk():
            pass
        await exchange.task


async def test_draining_broker_sends_sse_readers_elsewhere() -> None:
    async with broker() as client:
        await client.put(PATH)
        exchange = await live(client, f"{PATH}?offset=now&live=sse")
        await events(exchange)
        client.app.drain()
        assert await exchange.chunk() == "retry: 1000\n\n"
        assert await exchange.chunk() == ""


async def test_character_cut_by_two_appends_is_told_whole(client: Client) -> None:
    await client.put(PATH, "text/plain")
    half, rest = "aé".encode()[:2], "aé".encode()[2:]
    await client.post(PATH, half, "text/plain")
    exchange = await live(client, f"{PATH}?offset=-1&live=sse")
    (_, _, data), (_, _, place) = await events(exchange)
    assert data == "a"
    assert '"upToDate":true' in place
    await client.post(PATH, rest, "text/plain")
    assert (await events(exchange))[0][2] == "é"
    exchange.leave()


async def test_character_never_completed_is_told_when_the_stream_ends(client: Client) -> None:
    await client.put(PATH, "text/plain", b"a\xc3", stream_closed="true")
    exchange = client.begin("GET", f"{PATH}?offset=-1&live=sse")
    assert b"data:a\xc3\n" in (await exchange.answer()).body


async def test_binary_stream_is_told_in_base64(client: Client) -> None:
    await client.put(PATH, "application/octet-stream", b"Hello", stream_closed="true")
    answer = await client.get(f"{PATH}?offset=-1&live=sse")
    assert answer.headers["stream-sse-data-encoding"] == "base64"
    assert b"data:SGVsbG8=\n" in answer.body


async def test_sse_of_a_deleted_stream_ends(client: Client) -> None:
    await client.put(PATH)
    exchange = await live(client, f"{PATH}?offset=now&live=sse")
    await events(exchange)
    await client.send("DELETE", PATH)
    while await exchange.chunk():
        pass
    await exchange.task


async def test_stream_with_a_ttl_outlives_it_while_somebody_listens() -> None:
    async with broker() as client:
        await client.put(PATH, stream_ttl="1")
        exchange = await live(client, f"{PATH}?offset=now&live=sse")
        ends_at = asyncio.get_running_loop().time() + 2.5
        while asyncio.get_running_loop().time() < ends_at:
            assert await exchange.chunk()
        assert (await client.send("HEAD", PATH)).status == 200
        exchange.leave()


def _live(client: Client) -> dict[str, int]:
    return client.app.live.counts


async def _until_live(client: Client, mode: str, count: int) -> None:
    async with asyncio.timeout(10):
        while _live(client)[mode] != count:  # noqa: ASYNC110 -- a plain count has no event to wait for
            await asyncio.sleep(0)
