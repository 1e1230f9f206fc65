"""consumer/reader.py: what it hands out, what goes with its requests, and how it gives up."""

import json
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from consumer import (
    AccessDenied,
    BadAnswer,
    BadRequest,
    Batch,
    Gone,
    NotFound,
    RateLimited,
    Reader,
    Refused,
    TooLarge,
    Unavailable,
    ValueFailed,
)
from consumer.errors import AttemptFailed
from tests.consumer.model import Fault, Model
from tests.consumer.reading import HASTY, RECORDS, followed, reader, records_of

# -- what it hands out -----------------------------------------------------------------------------------------------


async def test_without_live_it_ends_at_the_present_end() -> None:
    async with Model(*RECORDS) as model:
        batches = await followed(model, live=False)

    assert records_of(batches) == RECORDS
    assert [(batch.next_offset, batch.up_to_date) for batch in batches] == [
        ("0002", False),
        ("0004", False),
        ("0005", True),
    ]
    assert [asked.query for asked in model.asked] == [{"offset": "-1"}, {"offset": "0002"}, {"offset": "0004"}]


async def test_what_comes_later_comes_live_until_the_stream_is_closed() -> None:
    async with Model(*RECORDS) as model, reader(model) as reading, anyio.create_task_group() as tasks:
        batches = []
        async for batch in reading.follow("s"):
            batches.append(batch)
            if batch.next_offset == "0005":
                tasks.start_soon(model.append, "a", "b", "c")
            if batch.next_offset == "0008":
                tasks.start_soon(model.close)

    assert records_of(batches) == [*RECORDS, "a", "b", "c"]
    assert batches[-1] == Batch([], "0008", up_to_date=True, closed=True, cursor="8")


async def test_a_closed_stream_ends_with_its_last_page() -> None:
    async with Model(*RECORDS) as model:
        model.closed = True
        batches = await followed(model)

    assert records_of(batches) == RECORDS
    assert batches[-1].closed
    assert not any("live" in asked.query for asked in model.asked)


async def test_an_empty_stream_tells_that_it_has_nothing_more() -> None:
    async with Model() as model:
        assert await followed(model, live=False) == [Batch([], "0000", up_to_date=True, closed=False, cursor="7")]


async def test_from_now_only_what_comes_is_told() -> None:
    async with Model(*RECORDS) as model, reader(model) as reading, anyio.create_task_group() as tasks:
        batches = []
        async for batch in reading.follow("s", "now"):
            batches.append(batch)
            if not batch.records:
                tasks.start_soon(model.append, "new")
                tasks.start_soon(model.close)

    assert batches[0] == Batch([], "0005", up_to_date=True, closed=False, cursor="7")
    assert records_of(batches) == ["new"]


async def test_another_reader_goes_on_where_one_stopped() -> None:
    async with Model(*RECORDS) as model:
        model.closed = True
        async with reader(model) as first, aclosing(first.follow("s")) as batches:
            seen = await anext(batches)
        rest = await followed(model, seen.next_offset)

    assert [*seen.records, *records_of(rest)] == RECORDS


async def test_a_byte_stream_comes_as_its_bytes() -> None:
    data = [bytes(range(256)), b"", b"\r\n", b"\xff" * 7]
    async with Model(*data, content_type="image/png", page_records=1) as model, reader(model) as reading:
        async with aclosing(reading.follow("s", "now")) as batches:
            await anext(batches)
            await model.append(*data)
            await model.close()
            live = [batch.records async for batch in batches]
        caught_up = await reading.read("s")

    assert b"".join(live) == b"".join(data)  # type: ignore[arg-type]  # a byte stream's records are bytes
    assert caught_up.records == b"".join(data) * 2


async def test_text_keeps_its_line_ends_while_it_is_followed() -> None:
    async with (
        Model(b"a\r", content_type="text/plain; charset=utf-8") as model,
        reader(model) as reading,
        aclosing(reading.follow("s")) as batches,
    ):
        seen = [(await anext(batches)).records]
        await model.append(b"\nb\n\n", b"\rc\xc3")
        seen.append((await anext(batches)).records)
        await model.close()
        seen += [batch.records async for batch in batches]

    assert b"".join(seen) == b"a\r\nb\n\n\rc\xc3"  # type: ignore[arg-type]  # as above
    assert {asked.query.get("live") for asked in model.asked} == {None, "long-poll"}


async def test_half_a_surrogate_pair_comes_through_pages_and_live() -> None:
    async with Model("\ud83d") as model, reader(model) as reading, aclosing(reading.follow("s")) as batches:
        caught_up = await anext(batches)
        model.escapes = True
        await model.append("\ude00")
        live = await anext(batches)

    assert [caught_up.records, live.records] == [["\ud83d"], ["\ude00"]]


async def test_read_gives_all_pages_as_one_batch() -> None:
    async with Model(*RECORDS) as model, reader(model) as reading:
        assert await reading.read("s", "0001") == Batch(RECORDS[1:], "0005", up_to_date=True, closed=False, cursor="7")


async def test_messages_gives_the_snapshot_and_its_offset() -> None:
    async with Model() as model, reader(model) as reading:
        model.messages, model.messages_offset = [{"id": "m", "text": "\ud83d"}], "0042"
        snapshot = await reading.messages("s")

    assert (snapshot.messages, snapshot.offset, snapshot.session_id) == (model.messages, "0042", "s")
    assert model.asked[0].path == "/v1/sessions/s/messages"


async def test_headers_go_with_every_request() -> None:
    async with Model("a") as model:
        model.closed = True
        async with Reader(model.url, headers={"authorization": "Bearer t"}) as reading:
            await reading.read("s")
            await reading.messages("s")

    assert {asked.headers["authorization"] for asked in model.asked} == {"Bearer t"}


# -- headers and parameters ------------------------------------------------------------------------------------------


async def test_functions_are_asked_for_every_request_and_every_retry() -> None:
    tokens = iter(range(100))

    async def token() -> str:
        return f"Bearer {next(tokens)}"

    async with Model("a") as model:
        model.faults.append(Fault(status=503))
        async with Reader(
            model.url, headers={"authorization": token}, params={"tenant": lambda: "t & 1"}, limits=HASTY
        ) as reading:
            async with aclosing(reading.follow("s")) as batches:
                await anext(batches)
                await model.append("b")
                await anext(batches)
            await reading.messages("s")

    assert [asked.headers["authorization"] for asked in model.asked] == [f"Bearer {n}" for n in range(4)]
    assert {asked.query["tenant"] for asked in model.asked} == {"t & 1"}
    assert list(model.asked[2].query) == ["cursor", "live", "offset", "tenant"], "in order, for caches"


async def test_a_header_that_cannot_be_had_is_a_clear_error_and_not_tried_again() -> None:
    def token() -> str:
        raise LookupError("no token")

    async with Model("a") as model, Reader(model.url, headers={"authorization": token}) as reading:
        with pytest.raises(ValueFailed, match="LookupError"):
            await reading.read("s")

    assert not model.asked


async def test_a_function_that_hangs_is_given_up() -> None:
    async def token() -> str:
        await anyio.sleep_forever()
        raise AssertionError

    limits = replace(HASTY, attempt_timeout_s=0.05)
    async with Model("a") as model, Reader(model.url, headers={"authorization": token}, limits=limits) as reading:
        with pytest.raises(ValueFailed, match="Timeout"):
            await reading.read("s")


@pytest.mark.parametrize("name", ["offset", "live", "cursor"])
def test_a_parameter_of_the_protocol_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        Reader(params={name: "x"})


# -- how it gives up -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, BadRequest),
        (401, AccessDenied),
        (403, AccessDenied),
        (404, NotFound),
        (405, BadRequest),
        (410, Gone),
    ],
)
@pytest.mark.parametrize("phase", ["page", "live"])
async def test_a_refusal_is_a_typed_error_with_the_problem_and_is_not_repeated(
    status: int, error: type[Refused], phase: str
) -> None:
    problem = {"status": status, "code": "SOME_CODE", "title": "No", "detail": "why", "requestId": "r"}
    async with Model(*RECORDS) as model:
        faults = model.faults if phase == "page" else model.live_faults
        faults.append(Fault(status=status, body=json.dumps(problem).encode()))
        with pytest.raises(error, match="SOME_CODE: No: why") as raised:
            await followed(model)

    assert (raised.value.code, raised.value.status, raised.value.problem.request_id) == ("SOME_CODE", status, "r")
    assert not faults


async def test_a_refusal_by_a_proxy_is_told_as_it_is() -> None:
    async with Model() as model:
        model.faults.append(Fault(status=404, body=b"<html>nothing here"))
        with pytest.raises(NotFound, match=r"HTTP_404.*<html>nothing here"):
            await followed(model)


async def test_a_rate_limit_that_lasts_is_its_own_error() -> None:
    async with Model("a") as model, reader(model, deadline_s=0.05, retry_after_s_max=0.01) as reading:
        model.faults += [Fault(status=429, headers={"retry-after": "7"})] * 100
        with pytest.raises(RateLimited) as raised:
            await reading.read("s")

    assert (raised.value.status, raised.value.retry_after_s) == (429, 7.0)


async def test_no_broker_ends_a_one_shot_read_at_its_deadline() -> None:
    async with Model() as model:
        url = model.url
    async with Reader(url, limits=replace(HASTY, deadline_s=0.05)) as reading:
        with pytest.raises(Unavailable) as raised:
            await reading.read("s")

    assert isinstance(raised.value.__cause__, AttemptFailed)
    assert raised.value.retryable
    assert raised.value.offset == "-1"


async def test_an_error_tells_where_to_go_on() -> None:
    """Behind what was handed out: a `read` that fails has handed out nothing."""
    async with Model(*RECORDS) as model, reader(model, deadline_s=0.05) as reading:
        model.faults += [None, *[Fault(status=503)] * 1000]
        async with aclosing(reading.follow("s", live=False)) as batches:
            await anext(batches)
            with pytest.raises(Unavailable) as raised:
                await anext(batches)
        assert raised.value.offset == "0002"
        model.faults.appendleft(None)
        with pytest.raises(Unavailable) as raised:
            await reading.read("s", "0001")
        assert raised.value.offset == "0001"


async def test_a_server_that_hangs_up_at_once_counts_as_failing() -> None:
    async with Model("a") as model:
        model.live_ends = True
        with pytest.raises(Unavailable, match="ended at once"):
            await followed(model, follow_deadline_s=0.05, life_s_min=5.0)

    assert len(model.asked) < 50


async def test_a_page_above_the_limit_is_refused() -> None:
    async with Model("x" * 1000) as model:
        with pytest.raises(TooLarge, match="500 bytes"):
            await followed(model, batch_bytes_max=500)


async def test_a_live_batch_above_the_limit_is_refused_before_it_is_whole() -> None:
    async with (
        Model("a") as model,
        reader(model, batch_bytes_max=10_000) as reading,
        aclosing(reading.follow("s")) as batches,
    ):
        await anext(batches)
        await model.append("x" * 9_000)
        assert (await anext(batches)).up_to_date
        await model.append("y" * 9_000)  # what was handed out does not count
        assert (await anext(batches)).up_to_date
        await model.append("z" * 100_000)
        with pytest.raises(TooLarge):
            await anext(batches)


async def test_a_stream_above_the_limit_is_not_read_whole() -> None:
    async with Model(*["x" * 100] * 20) as model, reader(model, read_bytes_max=1000) as reading:
        with pytest.raises(TooLarge, match="1000 bytes"):
            await reading.read("s")


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=200, body=b"[]"),
        Fault(status=200, headers={"stream-next-offset": "0001", "content-type": "application/json"}, body=b"{}"),
        Fault(status=200, headers={"stream-next-offset": "0001", "content-type": "application/json"}, body=b"[1"),
        Fault(status=200, headers={"stream-next-offset": "-1", "content-type": "application/json"}, body=b"[]"),
        Fault(status=302, headers={"location": "http://127.0.0.1:1/"}),
    ],
    ids=["no offset", "no array", "no JSON", "leads nowhere", "redirect"],
)
async def test_a_page_that_no_broker_sends_is_an_error(fault: Fault) -> None:
    async with Model("a") as model:
        model.faults.append(fault)
        with pytest.raises(BadAnswer):
            await followed(model)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=200, headers={"content-type": "text/html"}, body=b"<html>"),
        Fault(status=200, headers={"content-type": "text/event-stream"}, body=b"event: control\ndata: {}\n\n"),
        Fault(
            status=200,
            headers={"content-type": "text/event-stream"},
            body=b'event: data\ndata: {}\n\nevent: control\ndata: {"streamNextOffset":"2"}\n\n',
        ),
        Fault(status=200, headers={"content-type": "text/event-stream"}, body=b'event: data\ndata: ["\xff"]\n\n'),
        Fault(status=200, headers={"content-type": "text/event-stream", "stream-sse-data-encoding": "base32"}),
        Fault(
            status=200,
            headers={"content-type": "text/event-stream"},
            body=b'event: data\ndata: [1\n\nevent: control\ndata: {"streamNextOffset":"2"}\n\n',
        ),
    ],
    ids=["no events", "no offset", "no array", "no UTF-8", "no such encoding", "no JSON"],
)
async def test_live_events_that_no_broker_sends_are_an_error(fault: Fault) -> None:
    async with Model("a") as model:
        model.live_faults.append(fault)
        with pytest.raises(BadAnswer):
            await followed(model)


async def test_bytes_that_come_without_base64_are_an_error() -> None:
    async with Model(b"a", content_type="image/png") as model:
        model.live_faults.append(Fault(status=200, headers={"content-type": "text/event-stream"}))
        with pytest.raises(BadAnswer, match="base64"):
            await followed(model)


# -- what it needs ---------------------------------------------------------------------------------------------------


async def test_a_broker_by_http_is_read_where_there_are_no_certificates(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """They take longer to read than a session takes to open."""
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError):
        Reader("https://broker.test")
    async with Model(*RECORDS) as model:
        assert records_of(await followed(model, live=False)) == RECORDS
