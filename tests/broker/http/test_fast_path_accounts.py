"""What a broker counts, logs and refuses is the same on the fast path and on the usual one."""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest
from msgspec.structs import replace

from broker import Settings, limits
from broker.errors import EngineStopped
from broker.http import fast_path, streams
from broker.partition import Partition
from tests.broker.http.served import CRLF, IN_MEMORY, JSON, Answer, Served, exchange, request, serving

Found = TypeVar("Found")
P0 = {**JSON, "producer-id": "p", "producer-epoch": "0", "producer-seq": "0"}
STORY = [
    request("PUT", "/v1/stream/a", b"", JSON),
    request("POST", "/v1/stream/a", b"[1,2]", JSON),
    request("POST", "/v1/stream/a", b"[3]", P0),
    request("POST", "/v1/stream/a", b"[3]", P0),  # a copy
    request("POST", "/v1/stream/a", b"[4]", {**P0, "producer-seq": "7"}),  # a gap
    request("POST", "/v1/stream/a", b"[", JSON),
    request("POST", "/v1/stream/a", b"text", {"content-type": "text/plain"}),
    request("POST", "/v1/stream/none", b"[1]", JSON),
    request("POST", "/v1/stream/a", b"[5]", {**JSON, "stream-closed": "true"}),
    request("POST", "/v1/stream/a", b"[6]", JSON),
]
"""Everything that an append can come to."""
STATUSES = [201, 204, 200, 204, 409, 400, 409, 404, 204, 409]
BATCHES = "/v1/sessions/s/generations/g/chunks"
STORY += [
    request("PUT", "/v1/sessions/s", b"", {}),
    request("POST", BATCHES, b"[1,2]", {**JSON, "producer-seq": "0"}),
    request("POST", BATCHES, b"3", {**JSON, "producer-seq": "1", "txid": "t"}),
    request("POST", BATCHES, b"3", {**JSON, "producer-seq": "1"}),  # a copy
    request("POST", BATCHES, b"4", {**JSON, "producer-seq": "1"}),  # no copy
    request("POST", BATCHES, b"5", {**JSON, "producer-seq": "7"}),  # a gap
    request("POST", BATCHES, b"[]", {**JSON, "producer-seq": "2"}),
    request("POST", BATCHES, b"6", JSON),
    request("POST", "/v1/sessions/none/generations/g/chunks", b"7", {**JSON, "producer-seq": "0"}),
    request("POST", "/v1/sessions/s/generations/other/chunks", b"8", {**JSON, "producer-seq": "0"}),  # takes over
    request("POST", BATCHES, b"9", {**JSON, "producer-seq": "2"}),
]
STATUSES += [201, 200, 200, 200, 409, 409, 400, 400, 404, 200, 403]
NOT_THE_SAME = re.compile(r"streamfold_(checkpoints|unstored_bytes|commits|records_folded|folded)")
"""Metrics that depend on when a checkpoint was, or a round of the materializer."""


async def scraped(port: int) -> list[str]:
    """The metrics, but for those that differ between any two brokers."""
    [(status, _, body)] = await exchange(port, request("GET", "/metrics", b"", {}))
    assert status == 200
    return [line for line in body.decode().splitlines() if not NOT_THE_SAME.search(line)]


async def on_both(ask: Callable[[Served], Awaitable[Found]], settings: Settings = IN_MEMORY) -> Found:
    """What is found on a broker with the stream `a`, which is the same on a fast and on a plain one."""
    found = []
    for fast in (True, False):
        async with serving(fast=fast, settings=settings) as served:
            await exchange(served.port, STORY[0])
            found.append(await ask(served))
    assert found[0] == found[1]
    return found[0]


async def test_both_ways_are_counted_the_same() -> None:
    async def ask(served: Served) -> tuple[list[Answer], list[str]]:
        answers = [(await exchange(served.port, raw))[0] for raw in STORY[1:]]
        return answers, await scraped(served.port)

    answers, counts = await on_both(ask)
    assert [status for status, _, _ in answers] == STATUSES[1:]
    assert 'streamfold_responses_total{status="4xx"} 11.0' in counts
    assert 'streamfold_entries_total{kind="append",result="duplicate"} 1.0' in counts


async def test_a_bug_is_one_500_and_is_logged_and_counted_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def stumble(*_: object) -> None:
        raise ZeroDivisionError

    async def ask(served: Served) -> tuple[Answer, Answer, list[tuple[str, str, str]], list[str]]:
        caplog.clear()
        with monkeypatch.context() as patched:
            for module in (fast_path, streams):
                patched.setattr(module, "answer", stumble)
            raw = request("POST", "/v1/stream/a", b"[1]", {**JSON, "x-request-id": "mine"})
            [bug] = await exchange(served.port, raw)
        [after] = await exchange(served.port, STORY[1])
        told = [(record.name, record.levelname, record.getMessage()) for record in caplog.records]
        return bug, after, told, await scraped(served.port)

    bug, after, told, counts = await on_both(ask)
    assert (bug[0], after[0]) == (500, 204)
    assert told == [("streamfold.http", "ERROR", "request mine failed")]
    assert "streamfold_unexpected_errors_total 1.0" in counts


async def test_neither_way_logs_an_append_that_is_answered(caplog: pytest.LogCaptureFixture) -> None:
    """A line for each would cost more than the append, and could hold what nobody is to read."""
    caplog.set_level(logging.INFO)

    async def ask(served: Served) -> int:
        caplog.clear()
        for raw in STORY:
            await exchange(served.port, raw)
        return len(caplog.records)

    assert await on_both(ask) == 0


@pytest.mark.parametrize(
    ("body_bytes", "status"), [(1_000, 204), (1_001, 413), (70_000, 413)], ids=["at", "above", "far above"]
)
async def test_the_limit_of_a_body_is_the_same(body_bytes: int, status: int) -> None:
    async def ask(served: Served) -> Answer:
        raw = request("POST", "/v1/stream/a", b'"%b"' % (b"x" * (body_bytes - 2)), JSON)
        return (await exchange(served.port, raw))[0]

    assert (await on_both(ask, replace(IN_MEMORY, body_bytes_max=1_000)))[0] == status


async def test_a_broker_without_room_refuses_both_after_the_same_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BACK_PRESSURE_WAIT_S", 0.05)

    async def ask(served: Served) -> tuple[Answer, Answer, list[str]]:
        with monkeypatch.context() as patched:
            patched.setattr(limits, "IN_FLIGHT_ENTRIES_MAX", 0)
            [refused] = await exchange(served.port, STORY[1])
        [taken] = await exchange(served.port, STORY[1])
        return refused, taken, await scraped(served.port)

    refused, taken, _ = await on_both(ask)
    assert (refused[0], taken[0]) == (503, 204)


async def test_an_engine_that_stopped_refuses_both() -> None:
    async def ask(served: Served) -> tuple[list[Answer], list[str]]:
        assert isinstance(served.app.partition, Partition)
        served.app.partition.failure = EngineStopped("the disk is gone")
        return await exchange(served.port, STORY[1] + STORY[1], 2), await scraped(served.port)

    answers, _ = await on_both(ask)
    assert [status for status, _, _ in answers] == [503, 503]


async def test_the_limit_of_connections_is_the_same() -> None:
    async def ask(served: Served) -> bytes:
        idle = [await asyncio.open_connection("127.0.0.1", served.port) for _ in range(2)]
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(STORY[1])
        told = await asyncio.wait_for(reader.readuntil(CRLF), 10)
        for _, open_writer in [*idle, (reader, writer)]:
            open_writer.close()
            await open_writer.wait_closed()
        return told

    assert await on_both(ask, replace(IN_MEMORY, connections_max=3)) == b"HTTP/1.1 503 Service Unavailable\r\n"
