"""Raw streams, one request at a time, against a model of the protocol over real sockets."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest

from consumer.transport import Pool
from consumer.values import Values
from producer import (
    AttemptFailed,
    BadAnswer,
    Closed,
    Conflict,
    HttpTransport,
    Limits,
    NotFound,
    Producer,
    RateLimited,
    Streams,
    Unavailable,
    ValueFailed,
)
from tests.producer.conftest import IMPATIENT
from tests.producer.model import Fault, Stranger, in_turn, serving
from tests.producer.streams_model import StreamsModel


@pytest.fixture
def model() -> StreamsModel:
    return StreamsModel()


@pytest.fixture
async def streams(model: StreamsModel) -> AsyncIterator[Streams]:
    """Of a producer that is not entered: single requests need no tasks."""
    async with serving(model) as url:
        transport = HttpTransport(url, IMPATIENT, Pool(answer_bytes_max=IMPATIENT.answer_bytes_max))
        yield Producer(url, limits=IMPATIENT, transport=transport).streams
        await transport.aclose()


async def test_stream_is_created_written_looked_at_and_deleted(streams: Streams, model: StreamsModel) -> None:
    made = await streams.create("a/b", {"n": 0}, [1])
    receipt = await streams.append("a/b", "two")
    assert model.streams["a/b"].records == [{"n": 0}, [1], "two"]
    closed = await streams.close("a/b")
    head = await streams.head("a/b")
    await streams.delete("a/b")

    assert (made.created, made.closed, made.content_type) == (True, False, "application/json")
    assert (receipt.offset, closed.offset, head.offset) == (head.offset, head.offset, head.offset)
    assert (closed.closed, head.closed) == (True, True)
    assert not model.streams


async def test_stream_of_bytes_takes_bytes_and_text(streams: Streams, model: StreamsModel) -> None:
    await streams.create("s", b"a", "\u00e9", content_type="text/plain")
    await streams.append("s", "b", b"\xff", content_type="text/plain")
    assert model.streams["s"].data == b"a\xc3\xa9b\xff"


async def test_what_a_stream_is_to_be_travels_in_headers(streams: Streams, model: StreamsModel) -> None:
    """PROTOCOL.md 5.1, 4.2."""
    moment = datetime(2030, 1, 2, tzinfo=UTC)
    await streams.create("a", ttl_s=60)
    await streams.create("b", expires_at=moment, closed=True)
    await streams.fork("c", "a b", offset="0001", sub_offset=2, content_type="text/plain")
    names = ("stream-ttl", "stream-expires-at", "stream-closed")
    assert [[sent.get(name) for name in names] for sent in model.headers[:2]] == [
        ["60", None, None],
        [None, "2030-01-02T00:00:00+00:00", "true"],
    ]
    names = ("stream-forked-from", "stream-fork-offset", "stream-fork-sub-offset")
    assert [model.headers[2].get(name) for name in names] == ["/v1/stream/a%20b", "0001", "2"]


async def test_created_again_alike_is_a_success_and_otherwise_a_conflict(streams: Streams) -> None:
    await streams.create("s")
    assert not (await streams.create("s")).created
    with pytest.raises(Conflict):
        await streams.create("s", content_type="text/plain")


async def test_append_behind_the_end_is_closed_and_tells_where_that_is(streams: Streams) -> None:
    await streams.create("s", 1, closed=True)
    with pytest.raises(Closed) as caught:
        await streams.append("s", 2)
    assert (caught.value.status, caught.value.offset) == (409, "00000003")


async def test_stream_that_is_not_there_is_not_found(streams: Streams, model: StreamsModel) -> None:
    for call in (streams.append("s", 1), streams.close("s"), streams.head("s"), streams.delete("s")):
        with pytest.raises(NotFound):
            await call
    assert len(model.requests) == 4, "none was tried again"


# -- retries ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [Fault.RESET, Fault.LOSE_ANSWER, Fault.FAIL_AFTER], ids=lambda fault: fault.name)
async def test_append_that_may_have_arrived_is_not_sent_again(
    streams: Streams, model: StreamsModel, fault: Fault
) -> None:
    await streams.create("s")
    model.fault = in_turn(fault)
    with pytest.raises(Unavailable, match="may have been stored") as caught:
        await streams.append("s", 1)
    assert isinstance(caught.value.__cause__, AttemptFailed)
    assert len(model.requests) == 2
    assert model.streams["s"].records in ([], [1])


async def test_append_that_certainly_did_not_arrive_is_sent_again(streams: Streams, model: StreamsModel) -> None:
    await streams.create("s")
    model.fault = in_turn(Fault.REFUSE, Fault.REFUSE)
    await streams.append("s", 1)
    assert model.streams["s"].records == [1]


async def test_append_with_stream_seq_is_sent_again_and_never_doubled(streams: Streams, model: StreamsModel) -> None:
    await streams.create("s")
    model.fault = in_turn(Fault.RESET, None, Fault.LOSE_ANSWER)
    await streams.append("s", 1, stream_seq="a")
    with pytest.raises(Conflict) as caught:
        await streams.append("s", 2, stream_seq="b")
    assert "its own copy" in caught.value.__notes__[0]
    with pytest.raises(Conflict) as regression:
        await streams.append("s", 3, stream_seq="a")
    assert not hasattr(regression.value, "__notes__")
    assert model.streams["s"].records == [1, 2]


@pytest.mark.parametrize("fault", list(Fault), ids=lambda fault: fault.name)
async def test_what_does_no_harm_twice_is_repeated_whatever_happens(
    streams: Streams, model: StreamsModel, fault: Fault
) -> None:
    model.fault = in_turn(fault, None, fault, None, fault, None, fault, None)
    await streams.create("s")
    assert not (await streams.head("s")).closed
    await streams.close("s")
    await streams.delete("s")
    assert not model.streams
    assert len(model.requests) == 8


async def test_rate_limit_that_lasts_is_its_own_error(model: StreamsModel) -> None:
    async with serving(model) as url, Producer(url, limits=Limits(deadline_s=0.1)) as producer:
        model.fault = lambda _: Stranger.LIMIT
        with pytest.raises(RateLimited) as caught:
            await producer.streams.head("s")
    assert (caught.value.status, caught.value.retry_after_s) == (429, 7.0)


async def test_answer_of_a_captive_portal_acknowledges_nothing() -> None:
    """It answers everything with 200."""
    model = StreamsModel()
    async with serving(model) as url, Producer(url, limits=Limits(deadline_s=0.2)) as producer:
        model.fault = lambda _: Stranger.PORTAL
        with pytest.raises(Unavailable, match="not a broker's"):
            await producer.streams.create("s")
        with pytest.raises(Unavailable, match="not a broker's"):
            await producer.streams.delete("s")


async def test_redirect_is_not_followed(model: StreamsModel) -> None:
    async with serving(model) as url, Producer(url) as producer:
        model.fault = lambda _: Stranger.REDIRECT
        with pytest.raises(BadAnswer):
            await producer.streams.create("s")


# -- headers and parameters ------------------------------------------------------------------------------------------


async def test_functions_are_asked_for_every_request_and_every_retry(model: StreamsModel) -> None:
    tokens = iter(range(100))

    def token() -> str:
        return f"Bearer {next(tokens)}"

    async def tenant() -> str:
        return "t & 1"

    model.fault = in_turn(None, Fault.FAIL_AFTER)
    headers: Values = {"authorization": token, "x-fixed": "f"}
    async with (
        serving(model) as url,
        Producer(url, limits=IMPATIENT, headers=headers, params={"tenant": tenant, "a": "1"}) as producer,
    ):
        await producer.streams.create("s")
        await producer.streams.head("s")
    assert [sent["authorization"] for sent in model.headers] == ["Bearer 0", "Bearer 1", "Bearer 2"]
    assert {sent["x-fixed"] for sent in model.headers} == {"f"}
    assert [list(query.items()) for query in model.queries] == [[("a", "1"), ("tenant", "t & 1")]] * 3


def failing() -> str:
    raise LookupError("no token")


@pytest.mark.parametrize("bad", [failing, lambda: "a\n", lambda: 1], ids=["raises", "line end", "no text"])
async def test_header_that_cannot_be_had_is_a_clear_error_and_nothing_is_sent(model: StreamsModel, bad: Any) -> None:
    async with serving(model) as url, Producer(url, headers={"authorization": bad}) as producer:
        with pytest.raises(ValueFailed, match="authorization"):
            await producer.streams.create("s")
    assert not model.requests


async def test_header_that_cannot_be_had_ends_a_producer_and_not_the_others(model: StreamsModel) -> None:
    broken = False

    def token() -> str:
        return failing() if broken else "t"

    async with serving(model) as url, Producer(url, headers={"authorization": token}) as producer:
        await producer.streams.create("s")
        async with producer.streams.producer("s", "p", content_type="application/json") as writing:
            broken = True
            await writing.append(1)
            with pytest.raises(ValueFailed) as caught:
                await writing.flush()
        assert isinstance(caught.value.__cause__, LookupError)
        broken = False
        assert (await producer.streams.head("s")).offset == "00000000"


@pytest.mark.parametrize(
    "given", [{"headers": {"authorization": "a\n"}}, {"params": {"offset": "1"}}], ids=["line end", "reserved"]
)
def test_value_that_cannot_travel_is_refused_at_once(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"authorization|offset"):
        Producer("http://127.0.0.1:4437", **given)


# -- what cannot be --------------------------------------------------------------------------------------------------


async def test_impossible_arguments_are_value_errors_and_nothing_is_sent(streams: Streams, model: StreamsModel) -> None:
    calls = [
        streams.create("a//b"),
        streams.create("s", ttl_s=1, expires_at="2030-01-01T00:00:00Z"),
        streams.create("s", ttl_s=-1),
        streams.create("s", expires_at=datetime(2030, 1, 1)),  # noqa: DTZ001  that is the mistake
        streams.create("s", content_type="a\nb"),
        streams.fork("s", "..", offset="1"),
        streams.fork("s", "t", sub_offset=-1),
        streams.append("s"),
        streams.append("s", 1, stream_seq=" "),
        streams.head("http://elsewhere/s"),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"."):
            await call
    with pytest.raises(TypeError):
        await streams.append("s", object())
    assert not model.requests


@pytest.mark.parametrize(
    "given",
    [
        {"producer_id": ""},
        {"producer_id": "a\nb"},
        {"epoch": -1},
        {"epoch": 2**53},
        {"next_seq": -1},
        {"next_seq": 1, "auto_claim": True},
    ],
)
async def test_impossible_producer_is_a_value_error(streams: Streams, given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must be|auto_claim"):
        streams.producer("s", **{"producer_id": "p", **given})
