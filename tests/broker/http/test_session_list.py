"""`GET /v1/sessions`: pages by last activity, and a live tail of what changes."""

import asyncio
import json
import sqlite3
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from broker import Settings, create_app, limits
from broker.recent import Recent
from tests.broker.http.asgi import Client, Exchange, broker
from tests.kafka.cluster import KafkaCluster

LIST = "/v1/sessions"


async def touch(client: Client, session_id: str) -> None:
    """Something happens in the session, which may be new. Later than what happened before: times are milliseconds."""
    await asyncio.sleep(0.002)
    await client.put(f"{LIST}/{session_id}")
    answer = await client.post(f"{LIST}/{session_id}/records", b'{"type":"presence","key":"k","value":{}}')
    assert answer.status == 201


async def ids(client: Client, query: str = "") -> list[str]:
    return [session["sessionId"] for session in (await client.get(f"{LIST}?{query}")).json["sessions"]]


class Tail:
    """A live reader of the list."""

    def __init__(self, client: Client, query: str = "", **headers: str) -> None:
        self._exchange: Exchange = client.begin("GET", f"{LIST}?live=sse{query}", headers=headers)
        self._text = ""

    async def begin(self) -> None:
        """Its response has begun."""
        start = await self._exchange.next()
        assert start["status"] == 200
        assert (b"content-type", b"text/event-stream") in start["headers"]

    async def event(self) -> dict[str, str]:
        """The next event or comment, by field."""
        while "\n\n" not in self._text:
            self._text += await self._exchange.chunk()
        event, _, self._text = self._text.partition("\n\n")
        return {name: value for name, _, value in (line.partition(": ") for line in event.split("\n"))}

    async def session(self) -> Any:
        """The next that tells of a session."""
        while True:
            event = await self.event()
            if event.get("event") == "session":
                return json.loads(event["data"]) | {"cursor": event["id"]}

    async def until(self, client: Client, session_id: str) -> Any:
        """The event that tells of a session as it is now."""
        now = (await client.get(f"{LIST}/{session_id}")).json
        while (told := await self.session()) | {"cursor": ""} != now | {"cursor": ""}:
            pass
        return told

    async def leave(self) -> None:
        self._exchange.leave()
        await self._exchange.task


# -- pages -----------------------------------------------------------------------------------------------------------


async def test_list_has_the_latest_activity_first(client: Client) -> None:
    for session_id in ("a", "b", "c", "a"):
        await touch(client, session_id)
    assert await ids(client) == ["a", "c", "b"]


async def test_item_of_the_list_says_what_the_session_itself_says(client: Client) -> None:
    await client.put(f"{LIST}/s", body=b'{"metadata":{"title":"t"}}')
    await client.post(f"{LIST}/s/generations/g/chunks", b'"x"', producer_seq="0")
    (item,) = (await client.get(LIST)).json["sessions"]
    assert item == (await client.get(f"{LIST}/s")).json
    assert (item["status"], item["metadata"], item["generations"][0]["generationId"]) == (
        "streaming", {"title": "t"}, "g"
    )  # fmt: skip


async def test_empty_list_is_a_list(client: Client) -> None:
    answer = await client.get(LIST)
    assert (answer.json["sessions"], answer.json["next"]) == ([], None)


@pytest.mark.parametrize("stored", [False, True])
async def test_pages_follow_each_other_to_the_end(client: Client, *, stored: bool) -> None:
    """Whether the sessions are in memory only, in the store, or some here and some there."""
    for number in range(7):
        await touch(client, f"s{number}")
        if stored and number == 4:
            await client.app.partition.checkpoint()
    await touch(client, "s1")
    await client.send("DELETE", f"{LIST}/s3")
    pages, after = [], ""
    while True:
        page = (await client.get(f"{LIST}?limit=2{after}")).json
        pages.append([session["sessionId"] for session in page["sessions"]])
        if page["next"] is None:
            break
        after = f"&after={page['next']}"
    assert pages == [["s1", "s6"], ["s5", "s4"], ["s2", "s0"]]


async def test_session_that_moves_while_pages_are_read_is_told_by_the_tail(client: Client) -> None:
    for session_id in ("a", "b", "c"):
        await touch(client, session_id)
    first = (await client.get(f"{LIST}?limit=1")).json
    await touch(client, "a")
    assert await ids(client, f"after={first['next']}") == ["b"]
    tail = Tail(client, f"&cursor={first['cursor']}")
    await tail.begin()
    assert (await tail.session())["sessionId"] == "a"
    await tail.leave()


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=501",
        "limit=x",
        "after=x",
        "after=1_a%20b",
        "after=1_",
        "lmit=1",
        "cursor=x",
        "live=long-poll",
        "live=sse&limit=1",
        "live=sse&cursor=x",
        "live=sse&after=1_a",
    ],
)
async def test_query_that_makes_no_sense_is_refused(client: Client, query: str) -> None:
    answer = await client.get(f"{LIST}?{query}")
    assert (answer.status, answer.code) == (400, "INVALID_PARAMETER")


async def test_list_is_only_read(client: Client) -> None:
    answer = await client.send("POST", LIST)
    assert (answer.status, answer.code, answer.headers["allow"]) == (405, "METHOD_NOT_ALLOWED", "GET, OPTIONS")
    assert (await client.get("/v1/sessionsx")).status == 404


async def test_page_of_very_many_sessions_costs_what_is_on_it(tmp_path: Path) -> None:
    """The store has an index by last activity: no other row is looked at."""
    app = create_app(Settings(data_dir=tmp_path / "data"))
    async with app.running():
        client = Client(app)
        await asyncio.gather(*(client.put(f"{LIST}/s{number}") for number in range(500)))
        await app.partition.checkpoint()
        assert len(await ids(client, "limit=500")) == 500
    with sqlite3.connect(tmp_path / "data" / "store.sqlite") as store:
        plan = store.execute(
            """EXPLAIN QUERY PLAN SELECT active_ms, key FROM row
            WHERE active_ms IS NOT NULL AND (active_ms, key) < (?, ?) ORDER BY active_ms DESC, key DESC LIMIT ?""",
            (1, b"", 1),
        ).fetchall()
    assert [step[3].split("(")[0] for step in plan] == ["SEARCH row USING COVERING INDEX active "]


async def test_list_survives_a_restart(tmp_path: Path) -> None:
    seen = []
    for session_id in ("a", "b"):
        app = create_app(Settings(data_dir=tmp_path / "data"))
        async with app.running():
            await touch(Client(app), session_id)
            seen.append(await ids(Client(app)))
    assert seen == [["a"], ["b", "a"]]


# -- the tail --------------------------------------------------------------------------------------------------------


async def test_s8_change_is_told_within_half_a_second(client: Client) -> None:
    """S8: recent sessions update within 500 ms of a message."""
    tail = Tail(client)
    await tail.begin()
    assert "id" in await tail.event()
    for session_id in ("a", "b", "a"):
        await touch(client, session_id)
        async with asyncio.timeout(0.5):
            await tail.until(client, session_id)
    await tail.leave()


async def test_what_changed_often_is_told_once_as_it_is_now(client: Client) -> None:
    tail = Tail(client)
    await tail.begin()
    await touch(client, "a")
    first = await tail.until(client, "a")
    for number in range(20):
        await client.post(f"{LIST}/a/generations/g/chunks", b'"x"', producer_seq=str(number))
    told = await tail.until(client, "a")
    assert told["status"] == "streaming"
    assert first["cursor"] != told["cursor"]
    await client.send("DELETE", f"{LIST}/a")
    gone = await tail.session()
    assert (gone["sessionId"], gone["deleted"]) == ("a", True)
    await tail.leave()


async def test_reader_goes_on_at_another_node_where_it_was(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Nothing is missed, and nothing of what it has seen told again: a balancer may send it anywhere."""
    topic = f"test-{uuid4().hex}"
    engine = {"engine": "kafka", "kafka_bootstrap": kafka.bootstrap, "kafka_topic": topic, "kafka_partitions": 3}
    async with broker(data_dir=tmp_path / "1", **engine) as one, broker(data_dir=tmp_path / "2", **engine) as two:
        for session_id in ("a", "b", "c"):
            await touch(one, session_id)
        cursor = (await one.get(LIST)).json["cursor"]
        await touch(one, "d")
        await touch(two, "b")
        tail = Tail(two, f"&cursor={cursor}")
        await tail.begin()
        missed = [await tail.session() for _ in range(2)]
        assert {session["sessionId"] for session in missed} == {"b", "d"}
        await tail.leave()
        await touch(two, "e")
        again = Tail(one, f"&cursor={missed[-1]['cursor']}")
        await again.begin()
        assert (await again.session())["sessionId"] == "e"
        await again.leave()
        elsewhere = cursor.replace(cursor[:16], "0" * 16)
        assert (await two.get(f"{LIST}?live=sse&cursor={elsewhere}")).code == "OFFSET_GONE"
        assert (await two.get(f"{LIST}?live=sse&cursor={cursor}0")).code == "OFFSET_GONE"


@pytest.mark.parametrize("way", ["cursor", "header"])
async def test_reader_that_comes_back_is_told_what_it_missed(client: Client, way: str) -> None:
    tail = Tail(client)
    await tail.begin()
    await touch(client, "a")
    seen = await tail.until(client, "a")
    await tail.leave()
    await touch(client, "b")
    await touch(client, "c")
    cursor = seen["cursor"]
    again = Tail(client, f"&cursor={cursor}") if way == "cursor" else Tail(client, **{"last-event-id": cursor})
    await again.begin()
    assert [(await again.session())["sessionId"] for _ in range(2)] == ["b", "c"]
    await again.leave()


async def test_cursor_of_another_process_is_gone(client: Client) -> None:
    cursor = (await client.get(LIST)).json["cursor"]
    async with broker() as other:
        answer = await other.get(f"{LIST}?live=sse&cursor={cursor}")
        assert (answer.status, answer.code) == (410, "OFFSET_GONE")


async def test_cursor_from_too_long_ago_is_gone(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    cursor = (await client.get(LIST)).json["cursor"]
    monkeypatch.setattr(client.app.partition.recent, "_changed_max", 2)
    for session_id in ("a", "b", "c"):
        await touch(client, session_id)
    assert (await client.get(f"{LIST}?live=sse&cursor={cursor}")).code == "OFFSET_GONE"


async def test_tail_ends_with_the_broker_and_says_when_to_come_back(client: Client) -> None:
    tail = Tail(client)
    await tail.begin()
    await tail.event()
    client.app.drain()
    assert (await tail.event())["retry"] == "1000"


async def test_quiet_tail_is_kept_alive() -> None:
    async with broker(sse_keepalive_s=0.05) as client:
        tail = Tail(client)
        await tail.begin()
        await tail.event()
        assert "" in await tail.event()
        await tail.leave()


async def test_followers_count_as_live_readers() -> None:
    async with broker(live_readers_max=1) as client:
        tail = Tail(client)
        await tail.begin()
        await tail.event()
        refused = await client.get(f"{LIST}?live=sse")
        assert (refused.status, refused.code) == (503, "OVERLOADED")
        await tail.leave()


# -- what is remembered ----------------------------------------------------------------------------------------------


def test_changes_are_told_in_their_order_and_each_session_once() -> None:
    recent = Recent()
    for path in ("a", "b", "a", "c"):
        recent.change(path)
    assert [(change.number, change.path) for change in recent.since(0)] == [(2, "b"), (3, "a"), (4, "c")]
    assert [change.path for change in recent.since(3)] == ["c"]
    assert recent.since(4) == []


def test_place_in_each_partition_tells_what_was_missed_on_any_node() -> None:
    """Two nodes come upon the same changes in another order; one of them began late."""
    one, two = Recent(), Recent()
    for recent, changes in ((one, "a0 b0 x1 a0 y1"), (two, "x1 a0 y1 b0 a0")):
        recent.begin(0, 10, b"the same log")
        recent.begin(1, 20, b"the same log")
        indexes = [10, 20]
        for change in changes.split():
            partition = int(change[1])
            indexes[partition] += 1
            recent.change(change[0], partition, indexes[partition])
    assert one.life == two.life

    def missed(recent: Recent, indexes: list[int]) -> set[str] | None:
        number = recent.behind(indexes)
        if number is None:
            return None
        return {change.path for change in recent.since(number) if change.entry_index > indexes[change.partition]}

    assert missed(one, [11, 21]) == missed(two, [11, 21]) == {"a", "b", "y"}
    assert missed(one, [13, 22]) == missed(two, [13, 22]) == set()
    assert missed(one, [9, 21]) is None
    assert missed(two, [10, 19]) is None


def test_memory_of_changes_is_bounded_and_knows_what_it_forgot() -> None:
    recent = Recent(changed_max=2)
    for path in ("a", "b", "c"):
        recent.change(path)
    assert (recent.forgotten, [change.path for change in recent.since(recent.forgotten)]) == (1, ["b", "c"])
    assert limits.SESSIONS_CHANGED_MAX >= 1_000
