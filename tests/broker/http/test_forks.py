"""Forks over HTTP (PROTOCOL.md 4.2; CORE 3 and 8): what a fork reads, how long it lives, and which cannot be."""

import asyncio
from typing import Any

import pytest

from broker import limits
from broker.core.offset import START_TOKEN
from tests.broker.http.asgi import Client, broker
from tests.broker.http.scene import A, B, C, D, Scene, chain, make_fork, read


@pytest.fixture
def client(scene: Scene) -> Client:
    return scene.client


# -- what a fork reads -----------------------------------------------------------------------------------------------


async def test_fork_begins_with_its_sources_records_and_goes_its_own_way(client: Client) -> None:
    await chain(client)
    await client.post(A, b"3")
    assert [await read(client, path) for path in (A, B, C)] == [[0, 1, 2, 3], [0, 1, 10, 11], [0, 1, 10, 20]]
    made = await client.get(C)
    assert (made.headers["stream-up-to-date"], made.headers["content-type"]) == ("true", "application/json")


async def test_fork_takes_its_sources_offsets_up_to_where_they_parted_and_its_own_after(client: Client) -> None:
    """CORE 3."""
    told = await chain(client)
    assert (told["b2"], told["c3"]) == (told["a2"], told["b3"])
    after = {name: await read(client, C, offset) for name, offset in told.items() if name in {"a1", "a2", "b3", "c4"}}
    assert after == {"a1": [1, 10, 20], "a2": [10, 20], "b3": [20], "c4": []}
    assert await read(client, C, START_TOKEN) == [0, 1, 10, 20]
    assert (await client.get(f"{C}?offset=now")).offset == told["c4"]


async def test_offset_of_what_a_fork_did_not_inherit_is_gone_for_it(client: Client) -> None:
    """CORE 3: 410 on reads and 400 as a fork's offset, never a silent slide into other records."""
    told = await chain(client)
    for path, foreign in ((B, "a3"), (C, "a3"), (C, "b4"), (A, "b3"), (A, "c4"), (B, "c4")):
        gone = await client.get(f"{path}?offset={told[foreign]}")
        assert (gone.status, gone.code) == (410, "OFFSET_GONE"), (path, foreign)
        refused = await make_fork(client, D, path, told[foreign])
        assert (refused.status, refused.code) == (400, "INVALID_OFFSET"), (path, foreign)


async def test_fork_of_a_fork_may_part_anywhere_in_what_it_inherited(client: Client) -> None:
    told = await chain(client)
    expected = {"-1": [], "a1": [0], "a2": [0, 1], "b3": [0, 1, 10], "c4": [0, 1, 10, 20]}
    for number, (name, records) in enumerate(expected.items()):
        path = f"/v1/stream/at-{number}"
        made = await make_fork(client, path, C, told.get(name, name))
        assert (made.status, await read(client, path)) == (201, records)
        await client.post(path, b"99")
        assert await read(client, path) == [*records, 99]


@pytest.mark.parametrize(
    ("anchor", "sub_offset", "records"), [("-1", 0, []), ("-1", 3, [0, 1, 10]), ("a1", 2, [0, 1, 10])]
)
async def test_sub_offset_counts_records_of_a_json_stream_across_a_chain(
    client: Client, anchor: str, sub_offset: int, records: list[int]
) -> None:
    told = await chain(client)
    made = await make_fork(client, D, C, told.get(anchor, anchor), stream_fork_sub_offset=str(sub_offset))
    assert (made.status, await read(client, D)) == (201, records)


async def test_sub_offset_counts_bytes_of_any_other_stream(client: Client) -> None:
    start = (await client.put(A, "text/plain", b"hello")).offset
    await client.post(A, b" world", "text/plain")
    assert (await make_fork(client, B, A, start, stream_fork_sub_offset="3")).status == 201
    await client.post(B, b"!", "text/plain")
    assert (await make_fork(client, C, B, "-1", stream_fork_sub_offset="9")).status == 201
    assert [(await client.get(path)).body for path in (B, C)] == [b"hello wo!", b"hello wo!"]


@pytest.mark.parametrize(
    ("anchor", "sub_offset"),
    [
        ("-1", "5"),
        ("b4", "1"),
        ("a1", "9" * 16),
        ("a1", "-1"),
        ("a1", "x"),
        ("a1", "1.0"),
        ("a1", ""),
        ("a1", "9" * 400),
    ],
)
async def test_sub_offset_beyond_the_tail_or_no_number_is_refused(client: Client, anchor: str, sub_offset: str) -> None:
    told = await chain(client)
    refused = await make_fork(client, D, B, told.get(anchor, anchor), stream_fork_sub_offset=sub_offset)
    assert (refused.status, (await client.get(D)).status) == (400, 404)


async def test_fork_without_an_offset_parts_at_the_tail(client: Client) -> None:
    await chain(client)
    made = await make_fork(client, D, B)
    assert (made.status, await read(client, D)) == (201, [0, 1, 10, 11])
    assert made.offset == (await client.send("HEAD", D)).offset == (await client.send("HEAD", B)).offset


async def test_fork_may_bring_records_of_its_own(client: Client) -> None:
    await chain(client)
    made = await make_fork(client, D, A, "-1", b"[7,8]", stream_fork_sub_offset="1")
    assert (made.status, await read(client, D), made.offset) == (201, [0, 7, 8], (await client.send("HEAD", D)).offset)
    assert await read(client, A) == [0, 1, 2]


async def test_fork_may_be_born_closed(client: Client) -> None:
    await chain(client)
    await make_fork(client, D, A, body=b"[7]", stream_closed="true")
    read_once = await client.get(D)
    assert (read_once.json, read_once.headers["stream-closed"]) == ([0, 1, 2, 7], "true")
    assert (await client.post(D, b"8")).code == "STREAM_CLOSED"
    assert (await client.post(A, b"3")).status == 204


async def test_fork_of_a_closed_stream_is_open(client: Client) -> None:
    """4.2 "Closed stream forking"."""
    await chain(client)
    await client.post(A, b"3", stream_closed="true")
    assert (await make_fork(client, D, A)).status == 201
    assert (await client.post(D, b"4")).status == 204
    assert await read(client, D) == [0, 1, 2, 3, 4]
    assert "stream-closed" not in (await client.send("HEAD", D)).headers


async def test_fork_knows_nothing_of_its_sources_writers(client: Client) -> None:
    """4.2 "Producer state and fork boundaries"."""
    await client.put(A)
    producer = {"producer_id": "p", "producer_epoch": "5", "producer_seq": "0"}
    await client.post(A, b"1", stream_seq="z", **producer)
    await make_fork(client, B, A)
    fresh = await client.post(B, b"1", stream_seq="a", **{**producer, "producer_epoch": "0"})
    assert fresh.status == 200
    assert await read(client, B) == [1, 1]


async def test_reader_that_waits_at_a_fork_hears_what_is_appended_to_it_only(client: Client) -> None:
    """5.7 "Long-poll on forked streams"."""
    told = await chain(client)
    inherited = await client.get(f"{C}?offset={told['a2']}&live=long-poll")
    assert inherited.json == [10, 20]
    waiting = client.begin("GET", f"{C}?offset={inherited.offset}&live=long-poll")
    await asyncio.sleep(0)
    await client.post(B, b"12")
    await client.post(C, b"21")
    answer = await waiting.answer()
    assert (answer.status, answer.json) == (200, [21])


async def test_stored_and_fresh_records_of_a_chain_read_as_one(scene: Scene) -> None:
    """A checkpoint between any two steps changes nothing for readers."""
    client = scene.client
    told = await chain(client)
    await scene.partition.checkpoint()
    await client.post(A, b"3")
    await client.post(C, b"21")
    await make_fork(client, D, C, told["b3"], b"[30]")
    await scene.partition.checkpoint()
    await client.post(D, b"31")
    assert [await read(client, path) for path in (C, D)] == [[0, 1, 10, 20, 21], [0, 1, 10, 30, 31]]


async def test_fork_of_a_sessions_stream_is_a_stream_like_any_other() -> None:
    """CORE 7: a session's stream is written through its API only, but anybody may fork it."""
    async with broker() as client:
        await client.put("/v1/sessions/s", body=b'{"message":{"id":"m","role":"user"}}')
        source = "/v1/stream/sessions/s"
        assert (await make_fork(client, A, source)).status == 201
        await client.post("/v1/sessions/s/messages", b'{"id":"later","role":"user"}')
        await client.post(A, b'{"mine":1}')
        assert [record.get("key", "mine") for record in (await client.get(A)).json] == ["m", "mine"]
        assert (await make_fork(client, "/v1/stream/sessions/t", A)).code == "METHOD_NOT_ALLOWED"
        assert (await client.get("/v1/sessions/s/messages")).json["messages"][1]["id"] == "later"


# -- how long it lives -----------------------------------------------------------------------------------------------


LATE, LATER = "2100-01-01T00:00:00Z", "2100-02-02T00:00:00Z"


@pytest.mark.parametrize("source", [{}, {"stream_ttl": "100"}, {"stream_expires_at": LATE}], ids=str)
@pytest.mark.parametrize("asked", [{}, {"stream_ttl": "200"}, {"stream_expires_at": LATER}], ids=str)
async def test_fork_lives_as_long_as_it_asks_for_or_else_as_its_source(
    client: Client, source: dict[str, Any], asked: dict[str, Any]
) -> None:
    """The table of 4.2."""
    await client.put(A, **source)
    assert (await make_fork(client, B, A, **asked)).status == 201
    headers = (await client.send("HEAD", B)).headers
    found = [headers.get(name) for name in ("stream-ttl", "stream-expires-at")]
    assert found == [(asked or source).get(name) for name in ("stream_ttl", "stream_expires_at")]


async def test_forks_sliding_life_is_its_own(scene: Scene) -> None:
    await scene.client.put(A, body=b"[1]", stream_ttl="10")
    await make_fork(scene.client, B, A)
    scene.journal.time_ms += 9_000
    await scene.client.post(B, b"2")
    scene.journal.time_ms += 9_000
    assert ((await scene.client.get(A)).status, await read(scene.client, B)) == (404, [1, 2])


async def test_source_that_is_overdue_cannot_be_forked(scene: Scene) -> None:
    await scene.client.put(A, stream_ttl="1")
    scene.journal.time_ms += 1_100
    refused = await make_fork(scene.client, B, A)
    assert (refused.status, refused.code) == (404, "STREAM_NOT_FOUND")


async def test_source_that_is_overdue_lives_on_for_its_forks_and_takes_no_new_ones(scene: Scene) -> None:
    await scene.client.put(A, body=b"[1]", stream_ttl="1")
    await make_fork(scene.client, B, A, stream_ttl="1000")
    scene.journal.time_ms += 1_100
    await scene.let_go()
    assert ((await scene.client.get(A)).code, await read(scene.client, B)) == ("STREAM_GONE", [1])
    assert (await make_fork(scene.client, C, A)).code == "FORK_SOURCE_GONE"
    scene.journal.time_ms += 1_100_000
    await scene.let_go()
    await scene.check_that_nothing_is_left()


# -- what may not be -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"stream-forked-from": "/v1/stream/nowhere"}, 404, "STREAM_NOT_FOUND"),
        ({"stream-forked-from": "/v1/stream/__ds/jwks.json"}, 404, "STREAM_NOT_FOUND"),
        ({"stream-forked-from": f"{A}?offset=-1"}, 404, "STREAM_NOT_FOUND"),
        ({"stream-forked-from": "a"}, 400, "INVALID_HEADER"),
        ({"stream-forked-from": ""}, 400, "INVALID_HEADER"),
        ({"stream-forked-from": f"https://elsewhere.test{A}"}, 400, "INVALID_HEADER"),
        ({"stream-forked-from": "/v1/sessions/s"}, 400, "INVALID_HEADER"),
        ({"stream-forked-from": "/v1/stream/"}, 400, "INVALID_PATH"),
        ({"stream-forked-from": "/v1/stream/../a"}, 400, "INVALID_PATH"),
        ({"stream-forked-from": "/v1/stream/%ff"}, 400, "INVALID_PATH"),
        ({"stream-forked-from": "/v1/stream/" + "x" * 2000}, 400, "INVALID_PATH"),
        ({"stream-fork-offset": "-1"}, 400, "INVALID_HEADER"),
        ({"stream-fork-sub-offset": "0"}, 400, "INVALID_HEADER"),
        ({"stream-forked-from": A, "stream-fork-offset": "rubbish"}, 400, "INVALID_OFFSET"),
        ({"stream-forked-from": A, "stream-fork-offset": "now"}, 400, "INVALID_OFFSET"),
        ({"stream-forked-from": A, "stream-fork-offset": "0" * 300}, 400, "INVALID_OFFSET"),
        ({"stream-forked-from": A, "stream-fork-offset": f"{4:016x}_{0:016x}"}, 400, "INVALID_OFFSET"),
        ({"stream-forked-from": A, "stream-fork-offset": f"{1:016x}_{7:016x}"}, 400, "INVALID_OFFSET"),
        ({"stream-forked-from": A, "stream-ttl": "-1"}, 400, "INVALID_HEADER"),
        ({"stream-forked-from": A, "stream-ttl": "1", "stream-expires-at": LATE}, 400, "INVALID_HEADER"),
        ({"stream-forked-from": A, "content-type": "no type"}, 400, "INVALID_CONTENT_TYPE"),
        ({"stream-forked-from": A, "content-type": "text/plain"}, 409, "CONTENT_TYPE_MISMATCH"),
    ],
)
async def test_fork_that_cannot_be_is_refused_and_leaves_nothing(
    scene: Scene, headers: dict[str, str], status: int, code: str
) -> None:
    await scene.client.put(A, body=b"[0,1,2]")
    refused = await scene.client.send("PUT", B, b"", headers)
    assert (refused.status, refused.code) == (status, code)
    assert ((await scene.client.get(B)).status, await scene.children("a")) == (404, [])


@pytest.mark.parametrize("body", [b"[1,", b'"\xff"', b"[" * 200 + b"]" * 200])
async def test_fork_with_a_bad_body_leaves_no_note_at_its_source(scene: Scene, body: bytes) -> None:
    """CORE 8: a PUT refused after its FORK_REF answers once its FORK_UNREF is applied."""
    await scene.client.put(A, body=b"[0]")
    refused = await make_fork(scene.client, B, A, body=body)
    assert (refused.status, refused.code) == (400, "INVALID_JSON")
    assert ((await scene.client.get(B)).status, await scene.children("a")) == (404, [])


async def test_stream_cannot_be_forked_onto_itself_nor_in_a_circle(scene: Scene) -> None:
    client = scene.client
    assert (await make_fork(client, A, A)).status == 404
    await client.put(A, body=b"[0]")
    await make_fork(client, B, A)
    await make_fork(client, C, B)
    for path, source in ((A, A), (A, B), (A, C), (B, B), (B, C)):
        refused = await make_fork(client, path, source)
        assert (refused.status, refused.code) == (409, "STREAM_EXISTS")
    await client.send("DELETE", A)
    for source in (A, B, C):
        assert (await make_fork(client, A, source)).code == "STREAM_EXISTS"
    assert [await scene.children("b"), await read(client, C)] == [["c"], [0]]


async def test_source_with_too_many_forks_takes_no_other(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "FORKS_MAX", 2)
    await scene.client.put(A)
    statuses = [(await make_fork(scene.client, path, A)).status for path in (B, C, D)]
    assert (statuses, await scene.children("a")) == ([201, 201, 429], ["b", "c"])
    refused = await make_fork(scene.client, D, A)
    assert (refused.code, refused.headers["retry-after"]) == ("TOO_MANY_FORKS", "1")
    await scene.client.send("DELETE", B)
    await scene.sweeper.clear_up()
    assert (await make_fork(scene.client, D, A)).status == 201
