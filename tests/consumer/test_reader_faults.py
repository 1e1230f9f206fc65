"""consumer/reader.py: each record once and in order whatever breaks, also when something holds events back."""

import json
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import anyio
import pytest

from consumer import Reader
from tests.consumer.model import Fault, Model
from tests.consumer.reading import RECORDS, followed, reader, records_of

# -- once and in order, whatever breaks ------------------------------------------------------------------------------


RECORDS_TO_CUT = ("application/json", ["a\u2028", {"b": [1]}, 2])
BYTES_TO_CUT = ("image/png", [b"a\r", b"\0" * 9, b"d"])


@pytest.mark.parametrize(
    ("stream", "how", "step"),
    [
        (RECORDS_TO_CUT, "reset", 1),
        (RECORDS_TO_CUT, "ended", 3),
        (BYTES_TO_CUT, "reset", 7),
        (BYTES_TO_CUT, "ended", 7),
    ],
    ids=["records-reset", "records-ended", "bytes-reset", "bytes-ended"],
)
async def test_a_live_connection_cut_at_any_byte_loses_and_doubles_nothing(
    stream: tuple[str, list[Any]], how: str, step: int
) -> None:
    content_type, records = stream
    async with Model(records[0], content_type=content_type) as model, reader(model) as reading:
        for cut in range(0, 1000, step):
            model.records, model.closed = records[:1], False
            async with aclosing(reading.follow("s")) as batches:
                seen = [await anext(batches)]
                await model.append(*records, *records)
                await model.close()
                model.live_faults.append(Fault(bytes_sent=cut, clean=how == "ended"))
                requests_before = len(model.asked)
                seen += [batch async for batch in batches]
            offsets = [batch.next_offset for batch in seen]
            assert offsets == sorted(set(offsets)), cut
            assert content_of([batch.records for batch in seen]) == content_of([model.records]), cut
            if len(model.asked) == requests_before + 1:  # the cut lies behind the whole answer
                assert cut > 300
                return


def content_of(batches: list[Any]) -> Any:
    """All records, or all bytes, however they are cut into batches."""
    parts = [part for batch in batches for part in ([batch] if isinstance(batch, bytes) else batch)]
    return b"".join(parts) if parts and isinstance(parts[0], bytes) else parts


async def test_a_page_cut_at_any_byte_is_asked_for_again() -> None:
    async with Model(*RECORDS) as model:
        length = len(json.dumps(RECORDS[:2]))
        for cut in range(length):
            model.faults.append(Fault(bytes_sent=cut))
            assert records_of(await followed(model, live=False)) == RECORDS


async def test_a_normal_end_of_a_live_connection_goes_on_at_once_from_the_last_offset() -> None:
    async with (
        Model("a", page_records=1) as model,
        reader(model, backoff_s_initial=20.0, backoff_s_max=20.0) as reading,
        aclosing(reading.follow("s")) as batches,
    ):
        await anext(batches)
        model.live_ends = True
        for record in "bcd":
            await model.append(record)
            assert (await anext(batches)).records == [record]
        model.live_ends = False
        await model.close()
        assert (await anext(batches)).closed

    live = [asked.query for asked in model.asked if "live" in asked.query]
    assert [query["offset"] for query in live] == ["0001", "0002", "0003", "0004"]
    assert [query["cursor"] for query in live] == ["7", "8", "8", "8"]


async def test_a_connection_that_falls_silent_is_given_up() -> None:
    async with (
        Model("a", "b", page_records=1) as model,
        reader(model, silence_s_max=0.1) as reading,
        aclosing(reading.follow("s", "0001")) as batches,
    ):
        model.live_faults.append(Fault(bytes_sent=30, silent=True))
        await anext(batches)
        await model.append("c")
        assert (await anext(batches)).records == ["c"]


async def test_failures_of_the_broker_are_waited_out() -> None:
    async with Model(*RECORDS) as model:
        model.closed = True
        model.faults += [Fault(status=503), Fault(hang_up=True), None, Fault(status=429), Fault(status=408), None]
        assert records_of(await followed(model)) == RECORDS


async def test_it_waits_as_long_as_the_broker_asks() -> None:
    problem = {"status": 503, "code": "OVERLOADED", "title": "", "retryAfterMs": 300}
    async with Model(*RECORDS) as model:
        model.faults.append(Fault(status=503, body=json.dumps(problem).encode()))
        began_s = anyio.current_time()
        await followed(model, live=False)

    assert anyio.current_time() - began_s >= 0.3


async def test_it_does_not_wait_longer_than_its_own_limit() -> None:
    async with Model(*RECORDS) as model:
        model.faults.append(Fault(status=503, headers={"retry-after": "86400"}))
        assert records_of(await followed(model, live=False, retry_after_s_max=0.01)) == RECORDS


# -- when something on the way holds events back ---------------------------------------------------------------------


HELD_BACK = [Fault(bytes_sent=0, silent=True), Fault(mute=True)]
"""By a proxy that passes the head on, and by one that waits for the body first."""


def lives(model: Model) -> list[str | None]:
    """How each request asked, in order."""
    return [asked.query.get("live") for asked in model.asked]


@pytest.mark.parametrize("fault", HELD_BACK, ids=["head", "nothing"])
async def test_events_that_do_not_arrive_though_the_stream_moved_make_it_poll(fault: Fault) -> None:
    async with (
        Model("a") as model,
        reader(model, first_event_s_max=0.1) as reading,
        aclosing(reading.follow("s")) as batches,
    ):
        model.live_faults.append(fault)
        seen = [await anext(batches)]
        await model.append("b")
        seen.append(await anext(batches))
        await model.append("c")
        seen.append(await anext(batches))
        await model.close()
        seen += [batch async for batch in batches]

    assert records_of(seen) == ["a", "b", "c"]
    assert lives(model) == [None, "sse", None, "long-poll", "long-poll"]


async def test_a_held_back_reader_polls_from_the_first_and_tries_events_again_later() -> None:
    async with Model("a") as model, reader(model, first_event_s_max=0.1, polling_s=0.5) as reading:
        model.live_faults.append(HELD_BACK[0])
        await one_record_later(model, reading, "b")
        model.asked.clear()
        await one_record_later(model, reading, "c")
        assert lives(model) == [None, "long-poll"]
        await anyio.sleep(0.5)
        model.asked.clear()
        await one_record_later(model, reading, "d")
        assert lives(model) == [None, "sse"]


async def one_record_later(model: Model, reading: Reader, record: str) -> None:
    """Follow until a record that comes when the end is reached."""
    async with aclosing(reading.follow("s", "now")) as batches:
        await anext(batches)
        await model.append(record)
        assert (await anext(batches)).records == [record]


async def test_silence_on_a_stream_that_did_not_move_is_no_reason_to_poll() -> None:
    async with Model("a") as model, reader(model, first_event_s_max=0.05) as reading:
        model.live_faults += [HELD_BACK[0], HELD_BACK[0]]
        async with aclosing(reading.follow("s")) as batches, anyio.create_task_group() as tasks:
            await anext(batches)
            tasks.start_soon(append_when, model, "b", lambda: lives(model).count("sse") == 3)
            assert (await anext(batches)).records == ["b"]

    assert lives(model) == [None, "sse", None, "sse", None, "sse"]


async def append_when(model: Model, record: str, condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  the model tells what was asked, and rings no bell
        await anyio.sleep(0.005)
    await model.append(record)


async def test_events_that_stop_arriving_though_the_stream_moved_make_it_poll() -> None:
    """The first event came through; then the proxy's buffer was full no more."""
    first = len(f"id: 0001\nevent: control\ndata: {json.dumps(CONTROL)}\n\n")
    async with (
        Model("a") as model,
        reader(model, silence_s_max=0.2) as reading,
        aclosing(reading.follow("s")) as batches,
    ):
        model.live_faults.append(Fault(bytes_sent=first, silent=True))
        await anext(batches)
        await model.append("b")
        assert (await anext(batches)).records == ["b"]
        await model.append("c")
        assert (await anext(batches)).records == ["c"]

    assert lives(model) == [None, "sse", None, "long-poll"]


CONTROL = {"streamNextOffset": "0001", "streamCursor": "8", "upToDate": True}


async def test_who_insists_on_events_gets_events() -> None:
    async with (
        Model("a") as model,
        reader(model, silence_s_max=0.1, first_event_s_max=0.01) as reading,
        aclosing(reading.follow("s", live="sse")) as batches,
    ):
        await anext(batches)
        model.live_faults += [HELD_BACK[0], HELD_BACK[1]]
        await model.append("b")
        assert (await anext(batches)).records == ["b"]

    assert lives(model) == [None, "sse", "sse", "sse"]


@pytest.mark.parametrize("live", ["sse", "long-poll"])
@pytest.mark.parametrize(
    ("content_type", "records"),
    [
        ("application/json", ["a", ["\u2028"], None]),
        ("text/plain", [b"a\n", "\u2028\n\n".encode(), b" b\0"]),
        ("image/png", [b"\r\n", bytes(range(256)), b"\n"]),
    ],
)
async def test_every_content_type_comes_by_either_way(live: Any, content_type: str, records: list[Any]) -> None:
    """PROTOCOL.md 5.7, 5.8."""
    async with (
        Model(content_type=content_type, page_records=1) as model,
        reader(model) as reading,
        aclosing(reading.follow("s", live=live)) as batches,
    ):
        seen = [(await anext(batches)).records]
        for record in records:
            await model.append(record)
            seen.append((await anext(batches)).records)
        await model.close()
        seen += [batch.records async for batch in batches]

    assert content_of(seen) == content_of([model.records])
    assert set(lives(model)) == {None, live}


async def test_events_turn_line_ends_of_text_into_line_feeds() -> None:
    async with (
        Model(content_type="text/plain") as model,
        reader(model) as reading,
        aclosing(reading.follow("s", live="sse")) as batches,
    ):
        await anext(batches)
        await model.append(b"a\r\nb\rc\n")
        assert (await anext(batches)).records == b"a\nb\nc\n"
