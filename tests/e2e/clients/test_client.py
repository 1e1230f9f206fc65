"""`@durable-streams/client`, the protocol's own client for JavaScript."""

import json
from typing import Any

import httpx
import pytest

from tests.e2e.clients.node import program, result
from tests.live import Broker

RECORDS: list[Any] = [{"n": 1}, "two", [3], None, "last"]
TEXT = "onetwo\n\nthree\N{WAVING HAND SIGN}last"
COUNT = 300


@pytest.mark.parametrize(
    ("content_type", "first", "whole", "nothing"),
    [
        ("application/json", RECORDS[:1], RECORDS, []),
        ("text/plain", "one", TEXT, ""),
        ("application/octet-stream", "one", TEXT, ""),
    ],
)
async def test_a_stream_is_made_read_in_every_way_closed_and_deleted(
    broker: Broker, content_type: str, first: object, whole: object, nothing: object
) -> None:
    told = await result("tour.mjs", f"{broker.url}/v1/stream/tour", content_type)

    end = told["finalOffset"]
    assert (told["absent"], told["again"]) == (False, "STREAM_EXISTS")
    assert told["caughtUp"]["content"] == first
    assert (told["caughtUp"]["upToDate"], told["caughtUp"]["closed"]) == (True, False)
    for mode in ("long-poll", "sse"):
        assert told["live"][mode] == {"content": whole, "offset": end, "closed": True}
    assert told["whole"] == {"content": whole, "offset": end, "upToDate": True, "closed": True}
    assert told["atTheEnd"] == {"content": nothing, "offset": end, "upToDate": True, "closed": True}
    assert (told["regression"], told["late"]) == ("STREAM_SEQ_REGRESSION", "STREAM_CLOSED")
    assert (told["head"]["offset"], told["head"]["streamClosed"]) == (end, True)
    assert told["deleted"]


async def test_an_idempotent_producer_writes_each_record_once_while_the_broker_is_killed_under_it(
    broker: Broker,
) -> None:
    url = f"{broker.url}/v1/stream/numbers"

    async with program("write.mjs", url, str(COUNT)) as writer:
        for _ in range(2):
            await writer.heard("acknowledged")
            while await writer.heard("acknowledged") % (COUNT // 3):
                pass
            await broker.restart()
        told = await writer.heard("result")
        await writer.ended()

    assert told["errors"] == []
    assert told["epoch"] == 7
    assert told["inFlightMax"] > 1
    assert told["retries"] > 0
    async with httpx.AsyncClient() as http:
        read = await http.get(url)
    assert (read.headers["stream-closed"], read.headers["stream-next-offset"]) == ("true", told["finalOffset"])
    assert json.loads(read.content) == list(range(COUNT))


async def test_a_producer_that_uses_an_epoch_again_is_told_instead_of_losing_a_record(broker: Broker) -> None:
    url = f"{broker.url}/v1/stream/numbers"

    errors = await result("reuse.mjs", url)

    assert errors == ["SequenceGapError"]
    async with httpx.AsyncClient() as http:
        assert (await http.get(url)).json() == ["former"]


@pytest.mark.parametrize("live", ["long-poll", "sse"])
async def test_a_live_reader_gets_each_record_once_while_the_broker_is_killed_under_it(
    broker: Broker, live: str
) -> None:
    url = f"{broker.url}/v1/stream/numbers"
    async with httpx.AsyncClient() as http:
        (await http.put(url, headers={"content-type": "application/json"})).raise_for_status()

    async with program("follow.mjs", url, live) as reader, program("write.mjs", url, str(COUNT)) as writer:
        for least in (COUNT // 3, 2 * COUNT // 3):
            while await reader.heard("records") < least:
                pass
            await broker.restart()
        told = await reader.heard("result")
        written = await writer.heard("result")
        await reader.ended()

    assert told["records"] == list(range(COUNT))
    assert told["offset"] == written["finalOffset"]
