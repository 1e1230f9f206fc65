"""A real nginx that caches, in front of a real broker: many readers cost it about as much as one (PROTOCOL.md 10)."""

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import NamedTuple, Self, TypeVar

import anyio
import anyio.abc
import httpx
import pytest

from tests.e2e.clients.node import program
from tests.eventually import eventually
from tests.live import HOST, Broker
from tests.nginx import Nginx

READERS = 50
WAIT_S_MAX = 20.0
"""The longest that any one thing here may take."""
RECORD = b'{"filler": "%b"}' % (b"x" * 400_000)
RECORDS = 7
"""Enough for some pages: one is about 1 MiB."""
STREAM = "/v1/stream/numbers"
T = TypeVar("T")

# A reader that waits on the lock comes back every half second; the lock outlasts a long-poll, or it would not collapse.
CONFIG = """\
daemon off;
master_process off;
pid {folder}/nginx.pid;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {folder}/bodies;
    proxy_temp_path {folder}/answers;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    proxy_cache_path {folder}/cache levels=1:2 keys_zone=streams:1m max_size=100m;
    server {{
        listen {host}:{port};
        location = /nginx {{ stub_status; }}
        location / {{
            proxy_pass http://{host}:{broker_port};
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_cache streams;
            proxy_cache_lock on;
            proxy_cache_lock_age 40s;
            proxy_cache_lock_timeout 40s;
            add_header X-Cache $upstream_cache_status always;
        }}
    }}
}}
"""


class Cache(Nginx):
    """An nginx that keeps what it may."""

    def __init__(self, broker: Broker, folder: Path) -> None:
        super().__init__(broker, folder)
        self._configuration = CONFIG.format(folder=folder, host=HOST, port=self._port, broker_port=broker.port)


class Proxy(NamedTuple):
    """An nginx that runs, and a client of it and of the broker behind it."""

    broker: Broker
    url: str
    http: httpx.AsyncClient

    async def get(self, target: str, **parameters: str) -> httpx.Response:
        """GET through nginx. Its `X-Cache` says HIT, or that the broker was asked."""
        return await self.http.get(f"{self.url}{target}", params=parameters)

    async def send(self, method: str, target: str, content: bytes = b"", **headers: str) -> None:
        """A write, straight to the broker."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = await self.http.request(
            method,
            f"{self.broker.url}{target}",
            content=content,
            headers={"content-type": "application/json", **named},
        )
        answer.raise_for_status()

    async def busy(self) -> int:
        """How many requests nginx is answering right now, this one not counted."""
        status = await self.http.get(f"{self.url}/nginx")
        found = re.search(r"Writing: (\d+)", status.text)
        assert found
        return int(found[1]) - 1

    async def waiting_at_broker(self) -> int:
        """How many long-polls wait at the broker."""
        metrics = await self.http.get(f"{self.broker.url}/metrics")
        found = re.search(r'^streamfold_live_readers\{mode="long-poll"\} (\d+)', metrics.text, re.MULTILINE)
        assert found
        return int(found[1])


class Pages(NamedTuple):
    """What a reader got that caught up."""

    body: bytes
    x_cache: list[str]

    @classmethod
    async def of(cls, proxy: Proxy, target: str) -> Self:
        pages = [await proxy.get(target, offset="-1")]
        while "stream-up-to-date" not in pages[-1].headers:
            pages.append(await proxy.get(target, offset=next_offset(pages[-1])))
        return cls(b"".join(page.content for page in pages), [page.headers["x-cache"] for page in pages])


@pytest.fixture
async def proxy(tmp_path: Path) -> AsyncIterator[Proxy]:
    limits = httpx.Limits(max_connections=None)
    async with (
        Broker(tmp_path / "data") as broker,
        Cache(broker, tmp_path / "nginx") as nginx,
        httpx.AsyncClient(timeout=WAIT_S_MAX, limits=limits) as http,
    ):
        running = Proxy(broker, nginx.url, http)
        yield running


async def at_once(reader: Callable[[], Awaitable[T]], times: int = READERS) -> list[T]:
    """What so many readers get that come at once."""
    results: list[T] = []

    async def read() -> None:
        results.append(await reader())

    async with anyio.create_task_group() as tasks:
        for _ in range(times):
            tasks.start_soon(read)
    return results


def next_offset(answer: httpx.Response) -> str:
    return str(answer.headers["stream-next-offset"])


def misses(x_cache: Iterable[str]) -> int:
    """How many of these answers were not nginx's own."""
    return sum(status != "HIT" for status in x_cache)


async def test_readers_that_catch_up_cost_the_broker_one_request_a_page(proxy: Proxy) -> None:
    await proxy.send("PUT", STREAM)
    for _ in range(RECORDS):
        await proxy.send("POST", STREAM, RECORD)

    read = await at_once(lambda: Pages.of(proxy, STREAM))

    assert read[0].body.count(RECORD) == RECORDS
    assert {pages.body for pages in read} == {read[0].body}
    pages_each = len(read[0].x_cache)
    assert pages_each > 1
    assert misses(status for pages in read for status in pages.x_cache) == pages_each


async def test_readers_that_wait_at_one_place_cost_the_broker_one_request(proxy: Proxy) -> None:
    await proxy.send("PUT", STREAM, b"[1]")
    place = await tail_of(proxy)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(append_once_all_wait, proxy)
        answered = await at_once(lambda: proxy.get(STREAM, **place))

    assert {(answer.content, next_offset(answer)) for answer in answered} == {(b"[2]", next_offset(answered[0]))}
    assert len({answer.headers["stream-cursor"] for answer in answered}) == 1
    assert misses(answer.headers["x-cache"] for answer in answered) == 1


async def append_once_all_wait(proxy: Proxy) -> None:
    await until_all_wait(proxy)
    assert await proxy.waiting_at_broker() == 1
    await proxy.send("POST", STREAM, b"2")


async def until_all_wait(proxy: Proxy) -> None:
    async def all_wait() -> bool:
        return await proxy.busy() == READERS and await proxy.waiting_at_broker() > 0

    await eventually(all_wait)


async def tail_of(proxy: Proxy) -> dict[str, str]:
    """The parameters of a long-poll for what comes next, as all have them that have read so far by long-poll."""
    last = await proxy.get(STREAM, offset="-1", live="long-poll")
    return {"offset": next_offset(last), "live": "long-poll", "cursor": last.headers["stream-cursor"]}


async def test_readers_that_wait_when_a_stream_is_closed_all_learn_of_it(proxy: Proxy) -> None:
    await proxy.send("PUT", STREAM, b"[1]")
    place = await tail_of(proxy)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(close_once_all_wait, proxy)
        answered = await at_once(lambda: proxy.get(STREAM, **place))

    assert {(answer.status_code, answer.headers.get("stream-closed")) for answer in answered} == {(204, "true")}
    assert misses(answer.headers["x-cache"] for answer in answered) == 1


async def close_once_all_wait(proxy: Proxy) -> None:
    await until_all_wait(proxy)
    await proxy.send("POST", STREAM, stream_closed="true")


@pytest.mark.parametrize("final", [b"", b"3"], ids=["with nothing more", "with a last record"])
@pytest.mark.parametrize("live", ["long-poll", "sse"])
async def test_a_reader_whose_last_page_was_cached_before_the_end_learns_of_the_end(
    proxy: Proxy, live: str, final: bytes
) -> None:
    await proxy.send("PUT", STREAM, b"[1, 2]")
    first, again = await proxy.get(STREAM, offset="-1"), await proxy.get(STREAM, offset="-1")
    assert (first.headers["x-cache"], again.headers["x-cache"]) == ("MISS", "HIT")

    async with program("follow.mjs", f"{proxy.url}{STREAM}", live) as early:
        assert await early.heard("records") == 2
        await proxy.send("POST", STREAM, final, stream_closed="true")
        told = [await early.heard("result")]
    stale = await proxy.get(STREAM, offset="-1")
    async with program("follow.mjs", f"{proxy.url}{STREAM}", live) as late:
        told.append(await late.heard("result"))

    assert (stale.headers["x-cache"], "stream-closed" in stale.headers) == ("HIT", False)
    assert [end["records"] for end in told] == [[1, 2, *([3] if final else [])]] * 2
    assert [end["interruptions"] for end in told] == [0, 0]


async def test_now_is_asked_of_the_broker_every_time(proxy: Proxy) -> None:
    await proxy.send("PUT", STREAM, b"[1]")
    for live in ({}, {"live": "long-poll"}):
        for record in (b"2", b"3"):
            async with anyio.create_task_group() as tasks:
                if live:
                    tasks.start_soon(append_once_one_waits, proxy, record)
                now = await proxy.get(STREAM, offset="now", **live)
            assert now.content == (b"[%b]" % record if live else b"[]")
            assert now.headers["x-cache"] == "MISS"
    await proxy.send("POST", STREAM, stream_closed="true")
    ends = [await proxy.get(STREAM, offset="now", **live) for live in ({}, {"live": "long-poll"}) for _ in range(2)]
    assert [(end.headers["x-cache"], end.headers["stream-closed"]) for end in ends] == [("MISS", "true")] * 4


async def append_once_one_waits(proxy: Proxy, record: bytes) -> None:
    async def one_waits() -> bool:
        return await proxy.waiting_at_broker() == 1

    await eventually(one_waits)
    await proxy.send("POST", STREAM, record)


async def test_the_end_of_a_catch_up_is_asked_for_until_the_stream_is_closed_and_then_kept(proxy: Proxy) -> None:
    await proxy.send("PUT", STREAM, b"[1]")
    tail = next_offset(await proxy.get(STREAM, offset="-1"))

    still_open = [await proxy.get(STREAM, offset=tail) for _ in range(2)]
    await proxy.send("POST", STREAM, stream_closed="true")
    closed = [await proxy.get(STREAM, offset=tail) for _ in range(2)]

    assert [answer.headers["x-cache"] for answer in (*still_open, *closed)] == ["MISS", "MISS", "MISS", "HIT"]
    assert [answer.headers.get("stream-closed") for answer in (*still_open, *closed)] == [None, None, "true", "true"]


async def test_a_session_and_its_messages_are_never_kept_by_a_shared_cache(proxy: Proxy) -> None:
    await proxy.send("PUT", "/v1/sessions/s", b'{"message": {"id": "m", "role": "user"}}')

    for target in ("/v1/stream/sessions/s", "/v1/sessions/s", "/v1/sessions/s/messages"):
        for _ in range(2):
            answer = await proxy.get(target)
            assert (answer.status_code, answer.headers["x-cache"]) == (200, "MISS"), target


async def test_a_stream_that_was_asked_for_too_early_is_found_once_it_is_there(proxy: Proxy) -> None:
    missing = await proxy.get(STREAM, offset="-1")
    await proxy.send("PUT", STREAM, b"[1]")
    found = await proxy.get(STREAM, offset="-1")

    assert (missing.status_code, found.status_code, found.json()) == (404, 200, [1])
