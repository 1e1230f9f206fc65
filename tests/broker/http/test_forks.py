"""Forks over HTTP (PROTOCOL.md 4.2; CORE 3 and 8): what a fork reads, what becomes of its source, and what heals."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest
from hypothesis import given, settings, strategies as st

from broker import App, Settings, create_app, limits
from broker.core.entry import Kind
from broker.core.offset import START_TOKEN, parse_offset
from broker.http import stream_api
from broker.http.bodies import Bodies
from broker.http.endpoint import Endpoint
from broker.http.live_readers import LiveReaders
from broker.http.stream_api import StreamApi
from broker.http.traffic import Traffic
from broker.partition import Partition
from broker.sweeper import Sweeper
from tests.broker.core.entries import delete, fork, fork_ref
from tests.broker.http.asgi import Answer, Client, broker
from tests.broker.test_partition import HeldJournal, HeldStore, blocked, opened, until

A, B, C, D = "/v1/stream/a", "/v1/stream/b", "/v1/stream/c", "/v1/stream/d"


class Scene(NamedTuple):
    """A broker whose time and whose sweeper are the test's own."""

    journal: HeldJournal
    partition: Partition
    store: HeldStore
    client: Client
    sweeper: Sweeper

    async def children(self, path: str) -> list[str]:
        """The paths of the forks that a stream notes."""
        stream = await self.partition.stream(path)
        assert stream is not None
        return [child.path for child in stream.children]

    async def let_go(self) -> None:
        """Let everything be swept that may be."""
        await self.sweeper.clear_up()
        await self.partition.checkpoint()
        while await self.partition.sweep():
            pass

    async def check_that_nothing_is_left(self) -> None:
        """No row, no page, nothing to sweep."""
        assert await self.store.keys(b"", b"", 10) == []
        for life in {life for checkpoint in self.store.written for life, _ in checkpoint.pages}:
            assert await self.store.read(life, 0, 100) == []


@asynccontextmanager
async def staged() -> AsyncIterator[Scene]:
    journal, store = HeldJournal(), HeldStore()
    async with opened(journal, store) as partition:
        live = LiveReaders(10)
        settings = Settings(engine="memory", long_poll_s=0.05)
        api = StreamApi(partition, settings, Bodies(settings.body_bytes_max), live)
        client = Client(cast("App", Endpoint(stream_api.PREFIX, api.respond, Traffic(live))))
        yield Scene(journal, partition, store, client, Sweeper(partition))


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    async with staged() as scene:
        yield scene


@pytest.fixture
def client(scene: Scene) -> Client:
    return scene.client


async def make_fork(
    client: Client, path: str, source: str, offset: str | None = None, body: bytes = b"", **headers: str
) -> Answer:
    """Ask for a fork as a client that says no more than it has to."""
    told = {name.replace("_", "-"): value for name, value in headers.items()}
    if offset is not None:
        told["stream-fork-offset"] = offset
    return await client.send("PUT", path, body, {"stream-forked-from": source, **told})


async def read(client: Client, path: str, offset: str = "-1") -> list[int]:
    found: list[int] = (await client.get(f"{path}?offset={offset}")).json
    return found


async def chain(client: Client) -> dict[str, str]:
    """a: 0 1 2, b: its first two and 10 11, c: the first three of b and 20. The offsets by what was told them."""
    told = {"a1": (await client.put(A, body=b"[0]")).offset}
    told |= {f"a{n + 1}": (await client.post(A, b"%d" % n)).offset for n in (1, 2)}
    told["b2"] = (await make_fork(client, B, A, told["a2"])).offset
    told |= {f"b{n - 7}": (await client.post(B, b"%d" % n)).offset for n in (10, 11)}
    told["c3"] = (await make_fork(client, C, B, told["b3"])).offset
    told["c4"] = (await client.post(C, b"20")).offset
    return told


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


# -- the same fork again ---------------------------------------------------------------------------------------------


async def test_same_fork_again_is_confirmed_and_noted_once(scene: Scene) -> None:
    client = scene.client
    told = await chain(client)
    asked: dict[str, Any] = {"offset": told["a1"], "stream_fork_sub_offset": "1", "stream_ttl": "60"}
    first = await make_fork(client, D, B, **asked)
    await client.post(D, b"9")
    again = await make_fork(client, D, B, **asked)
    assert [first.status, again.status, again.offset] == [201, 200, (await client.send("HEAD", D)).offset]
    assert [await scene.children("b"), await read(client, D)] == [["c", "d"], [0, 1, 9]]
    for changed in (
        {"stream_fork_sub_offset": "0"},
        {"offset": told["b3"]},
        {"stream_ttl": "61"},
        {"stream_closed": "true"},
    ):
        refused = await make_fork(client, D, B, **{**asked, **changed})
        assert (refused.status, refused.code) == (409, "STREAM_EXISTS")
    assert (await make_fork(client, D, A, told["a2"], stream_ttl="60")).status == 409
    assert (await client.put(D, stream_ttl="60")).status == 409


async def test_two_who_make_the_same_fork_at_once_both_get_it(scene: Scene) -> None:
    await scene.client.put(A, body=b"[0]")
    answers = await asyncio.gather(*(make_fork(scene.client, B, A) for _ in range(5)))
    assert sorted(answer.status for answer in answers) == [200, 200, 200, 200, 201]
    assert (await scene.children("a"), await read(scene.client, B)) == (["b"], [0])


async def test_fork_is_confirmed_also_after_its_source_was_deleted(client: Client) -> None:
    await client.put(A, body=b"[0]")
    offset = (await make_fork(client, B, A)).offset
    await client.send("DELETE", A)
    assert (await make_fork(client, B, A, offset)).status == 200
    assert (await make_fork(client, C, A, offset)).code == "FORK_SOURCE_GONE"


async def test_path_that_is_taken_is_not_forked_onto(scene: Scene) -> None:
    await scene.client.put(A, body=b"[0]")
    await scene.client.put(B, body=b"[5]")
    assert (await make_fork(scene.client, B, A)).code == "STREAM_EXISTS"
    assert (await scene.children("a"), await read(scene.client, B)) == ([], [5])


async def test_path_that_is_taken_while_the_source_is_asked_leaves_no_note(scene: Scene) -> None:
    await scene.client.put(A, body=b"[0]")
    scene.journal.held = True
    forking = scene.client.begin("PUT", B, headers={"stream-forked-from": A})
    await until(lambda: scene.journal.waiting)
    creating = scene.client.begin("PUT", B, headers={"content-type": "application/json"})
    await until(lambda: len(scene.journal.waiting) == 2)
    scene.journal.held = False
    scene.journal.commit()
    assert [(await creating.answer()).status, (await forking.answer()).code] == [201, "STREAM_EXISTS"]
    assert await scene.children("a") == []


# -- soft delete -----------------------------------------------------------------------------------------------------


async def test_deleted_source_is_gone_for_everybody_but_its_forks(scene: Scene) -> None:
    """4.2 "Soft-delete and lifecycle"."""
    client = scene.client
    await client.put(A, body=b"[0,1]")
    await make_fork(client, B, A)
    assert (await client.send("DELETE", A)).status == 204
    for method in ("GET", "HEAD", "POST", "DELETE"):
        answer = await client.send(method, A, b"[2]" if method == "POST" else b"", {"content-type": "application/json"})
        assert (method, answer.status) == (method, 410)
    assert (await client.get(f"{A}?offset=-1&live=sse")).code == "STREAM_GONE"
    blocked_put = await client.put(A)
    assert (blocked_put.status, blocked_put.code) == (409, "STREAM_EXISTS")
    await scene.let_go()
    assert await read(client, B) == [0, 1]
    await client.send("DELETE", B)
    await scene.let_go()
    assert [(await client.get(A)).status, (await client.put(A)).status, await read(client, A)] == [404, 201, []]


async def test_reader_that_waits_is_told_when_the_source_is_deleted(client: Client) -> None:
    offset = (await client.put(A, body=b"[0]")).offset
    await make_fork(client, B, A)
    waiting = client.begin("GET", f"{A}?offset={offset}&live=long-poll")
    await asyncio.sleep(0)
    await client.send("DELETE", A)
    assert (await waiting.answer()).code == "STREAM_GONE"


async def test_last_fork_takes_the_whole_chain_of_deleted_sources_with_it(scene: Scene) -> None:
    await chain(scene.client)
    for path in (A, B):
        await scene.client.send("DELETE", path)
    await scene.let_go()
    assert await read(scene.client, C) == [0, 1, 10, 20]
    await scene.client.send("DELETE", C)
    await scene.let_go()
    await scene.check_that_nothing_is_left()


# -- what heals ------------------------------------------------------------------------------------------------------

CHILD = 0xC


async def test_note_of_a_fork_that_never_came_is_taken_away_after_its_deadline(scene: Scene) -> None:
    """CORE 8: a crash between FORK_REF and FORK heals."""
    await scene.client.put(A, body=b"[0]")
    deadline_ms = scene.journal.time_ms + 500
    await scene.partition.propose(fork_ref("b", CHILD, path="a", deadline_ms=deadline_ms))
    await scene.client.send("DELETE", A)
    await scene.sweeper.look_at_sources()
    assert await scene.children("a") == ["b"]
    scene.journal.time_ms = deadline_ms + 1
    await scene.sweeper.look_at_sources()
    assert (await scene.client.get(A)).status == 404


async def test_fork_on_its_way_past_its_deadline_keeps_its_note(scene: Scene) -> None:
    """A commit from before the deadline is handed back after it: the fork comes, and needs the records."""
    await scene.client.put(A, body=b"[0]")
    source = await scene.partition.stream("a")
    assert source is not None
    deadline_ms = scene.journal.time_ms + 500
    await scene.partition.propose(fork_ref("b", CHILD, path="a", deadline_ms=deadline_ms))
    scene.journal.held = True
    coming = scene.partition.propose_nowait(
        fork(path="b", child=CHILD, lineage=(("a", source.incarnation, 1),), source_path="a", deadline_ms=deadline_ms)
    )
    scene.journal.time_ms = deadline_ms + 1
    looking = asyncio.create_task(scene.sweeper.look_at_sources())
    await until(lambda: len(scene.journal.waiting) == 2)
    assert await blocked(looking)
    scene.journal.time_ms = deadline_ms - 1
    scene.journal.held = False
    scene.journal.commit()
    await asyncio.gather(coming, looking)
    assert (await scene.children("a"), await read(scene.client, B)) == (["b"], [0])


async def test_fork_cannot_come_later_than_its_source_was_told(scene: Scene) -> None:
    """Else the sweeper takes the note away first, and the fork comes to records that nobody keeps."""
    await scene.client.put(A, body=b"[0]")
    scene.journal.held = True
    forking = scene.client.begin("PUT", B, headers={"stream-forked-from": A})
    await until(lambda: scene.journal.waiting)
    scene.journal.time_ms += limits.FORK_MS_MAX - 1
    scene.journal.commit()
    await until(lambda: scene.journal.waiting)
    assert [entry.kind for entry in scene.journal.waiting] == [Kind.FORK]
    scene.journal.time_ms += 2
    scene.journal.held = False
    scene.journal.commit()
    late = await forking.answer()
    assert (late.status, late.code, late.headers["retry-after"]) == (503, "UNAVAILABLE", "1")
    assert ((await scene.client.get(B)).status, await scene.children("a")) == (404, [])


async def test_overdue_fork_that_was_not_taken_away_yet_still_counts(scene: Scene) -> None:
    """Its own forks inherit through it: a look at the sources just then must not lose them their records."""
    client = scene.client
    await client.put(A, body=b"[0]")
    await make_fork(client, B, A, stream_ttl="100")
    await make_fork(client, C, B, stream_ttl="1000")
    await client.send("DELETE", A)
    scene.journal.time_ms += 110_000
    await scene.sweeper.look_at_sources()
    await scene.let_go()
    assert (await read(client, C), await scene.children("a")) == ([0], ["b"])


async def test_fork_that_went_unseen_is_missed_after_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that saw it go had no time to tell the source."""
    monkeypatch.setattr(limits, "FORK_MS_MAX", 100)
    for life in range(2):
        app = create_app(Settings(data_dir=tmp_path / "data"))
        await app.partition.open()  # without its lifespan: nobody sweeps but the test
        try:
            client = Client(app)
            if life == 0:
                await client.put(A, body=b"[0]")
                assert (await make_fork(client, B, A)).status == 201
                await client.send("DELETE", A)
                await client.send("DELETE", B)
                continue
            assert (await client.get(A)).status == 410
            assert app.partition.orphans == []
            sweeper = Sweeper(app.partition)
            while (await client.get(A)).status == 410:
                await sweeper.look_at_sources()
                await asyncio.sleep(0.01)
            assert (await client.put(A)).status == 201
        finally:
            await app.partition.aclose()


async def test_source_that_cannot_be_told_is_told_next_time(scene: Scene) -> None:
    await scene.client.put(A, body=b"[0]")
    await make_fork(scene.client, B, A)
    await scene.client.send("DELETE", B)
    scene.journal.held = True
    telling = asyncio.create_task(scene.sweeper.clear_up())
    await until(lambda: scene.journal.waiting)
    scene.journal.refuse(OSError("disk full"))
    with pytest.raises(OSError, match="disk full"):
        await telling
    scene.journal.held = False
    assert await scene.children("a") == ["b"]
    await scene.sweeper.clear_up()
    assert await scene.children("a") == []


async def test_two_notes_for_one_path_are_told_apart(scene: Scene) -> None:
    """A fork that was deleted and made anew: what is told of the first must not lose the second its records."""
    await scene.client.put(A, body=b"[0]")
    await make_fork(scene.client, B, A)
    await scene.partition.propose(delete(path="b"))
    assert (await make_fork(scene.client, B, A)).status == 201
    assert await scene.children("a") == ["b", "b"]
    await scene.sweeper.clear_up()
    assert await scene.children("a") == ["b"]
    await scene.client.send("DELETE", A)
    await scene.let_go()
    assert await read(scene.client, B) == [0]


# -- against a model -------------------------------------------------------------------------------------------------

NAMES = ("p", "q", "r", "s", "t")


class Family:
    """What there should be: lists. A deleted stream stays in `parents` for as long as it has children there."""

    def __init__(self) -> None:
        self.records: dict[str, list[int]] = {}  # of those that live
        self.parents: dict[str, str | None] = {}

    def let_go(self) -> None:
        while gone := self.parents.keys() - self.records.keys() - set(self.parents.values()):
            for name in gone:
                del self.parents[name]


class Play:
    """Random steps, and after each of them everything is read."""

    def __init__(self, scene: Scene, data: st.DataObject) -> None:
        self.scene = scene
        self.client = scene.client
        self.data = data
        self.family = Family()
        self.number = 0

    async def run(self) -> None:
        steps = (self.create, self.append, self.append, self.fork, self.fork, self.delete, self.let_go)
        for number in range(1, self.data.draw(st.integers(2, 25))):
            self.number = number
            step = self.data.draw(st.sampled_from(steps))
            await step(self.data.draw(st.sampled_from(NAMES)))
            await self.compare()
        for name in NAMES:
            await self.delete(name)
        await self.scene.let_go()

    def gone(self, name: str) -> int:
        """What anything but a PUT is told of a stream that does not live."""
        return 410 if name in self.family.parents else 404

    async def create(self, name: str) -> None:
        answer = await self.client.put(_path(name), body=b"[%d]" % self.number)
        if name not in self.family.parents:
            assert answer.status == 201
            self.family.records[name], self.family.parents[name] = [self.number], None

    async def append(self, name: str) -> None:
        records = self.family.records.get(name)
        answer = await self.client.post(_path(name), b"[%d,%d]" % (self.number, -self.number))
        assert answer.status == (self.gone(name) if records is None else 204)
        if records is not None:
            records += [self.number, -self.number]

    async def fork(self, name: str) -> None:
        source = self.data.draw(st.sampled_from(NAMES))
        inherited = self.family.records.get(source)
        position = self.data.draw(st.integers(0, len(inherited or ())))
        anchor, sub_offset = self.data.draw(st.sampled_from(await self.anchors(source, position)))
        answer = await make_fork(
            self.client, _path(name), _path(source), anchor, stream_fork_sub_offset=str(sub_offset)
        )
        if name in self.family.parents:
            assert answer.status in {200, 409}
        elif inherited is None:
            assert answer.status == (409 if source in self.family.parents else 404)
        else:
            assert answer.status == 201
            self.family.records[name], self.family.parents[name] = inherited[:position], source

    async def anchors(self, source: str, position: int) -> list[tuple[str, int]]:
        """Ways to name a position: from the start, or by the offset where a read of all has ended."""
        head = await self.client.send("HEAD", _path(source))
        at_tail = head.status == 200 and parse_offset(head.offset)[0] == position
        return [("-1", position), (head.offset, 0)] if at_tail else [("-1", position)]

    async def delete(self, name: str) -> None:
        answer = await self.client.send("DELETE", _path(name))
        assert answer.status == (204 if name in self.family.records else self.gone(name))
        self.family.records.pop(name, None)
        await self.scene.sweeper.clear_up()
        self.family.let_go()

    async def let_go(self, _name: str) -> None:
        await self.scene.let_go()

    async def compare(self) -> None:
        for name in NAMES:
            answer = await self.client.get(_path(name))
            if name in self.family.records:
                assert (name, answer.status, answer.json) == (name, 200, self.family.records[name])
                assert parse_offset(answer.offset)[0] == len(self.family.records[name])
                assert await read(self.client, _path(name), answer.offset) == []
            else:
                assert (name, answer.status) == (name, self.gone(name))


def _path(name: str) -> str:
    return f"/v1/stream/{name}"


@settings(max_examples=60)
@given(st.data())
def test_trees_of_forks_read_as_lists_do_and_leave_nothing_behind(data: st.DataObject) -> None:
    async def run() -> None:
        async with staged() as scene:
            await Play(scene, data).run()
            await scene.check_that_nothing_is_left()

    asyncio.run(run())
