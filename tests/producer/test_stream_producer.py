"""The idempotent producer of a raw stream, against a model of the protocol over real sockets, and with its faults."""

import random
from dataclasses import replace

import anyio
import pytest

from producer import (
    Appended,
    BodyTooLarge,
    BufferFull,
    ChunkTooLarge,
    Closed,
    Conflict,
    Fenced,
    Finished,
    Gap,
    Limits,
    NotFound,
    Producer,
    StreamProducer,
    Unavailable,
)
from tests.eventually import until
from tests.producer.conftest import IMPATIENT
from tests.producer.model import Fault, in_turn, serving
from tests.producer.streams_model import Stream, StreamsModel

FAULTS = list(Fault)
SMALL = replace(IMPATIENT, batch_chunks_max=3)


@pytest.fixture
def model() -> StreamsModel:
    model = StreamsModel()
    model.streams["s"] = Stream("application/json")
    model.streams["text"] = Stream("text/plain")
    return model


@pytest.fixture
def stream(model: StreamsModel) -> Stream:
    return model.streams["s"]


async def test_records_arrive_in_order_each_once_in_batches_that_are_under_way_together(
    model: StreamsModel, stream: Stream
) -> None:
    model.delay_s = lambda _: 0.01
    async with (
        serving(model) as url,
        Producer(url, limits=SMALL) as producer,
        producer.streams.producer("s", "p") as writing,
    ):
        for n in range(31):
            await writing.append([n])
        receipt = await writing.flush()
        assert writing.durable_records == 31
    assert stream.records == [[n] for n in range(31)]
    offset, seq = stream.headers["stream-next-offset"], stream.producers["p"][1]
    assert receipt == Appended(offset=offset, closed=False, durability="", epoch=0, seq=seq)
    assert 1 < model.concurrent_max <= SMALL.in_flight_max


async def test_pieces_of_text_are_joined(model: StreamsModel) -> None:
    async with serving(model) as url, Producer(url) as producer, producer.streams.producer("text", "p") as writing:
        for piece in ("a", b"\xc3", "", b"\xa9", "\n"):
            await writing.append(piece)
    assert model.streams["text"].data == "a\u00e9\n".encode()
    assert all(body for method, _, body in model.requests if method == "POST")


async def test_close_and_the_last_records_are_one_step_behind_everything(model: StreamsModel, stream: Stream) -> None:
    model.fault = in_turn(None, Fault.LOSE_ANSWER, Fault.LOSE_ANSWER)
    async with (
        serving(model) as url,
        Producer(url, limits=IMPATIENT) as producer,
        producer.streams.producer("s", "p") as writing,
    ):
        await writing.append(1)
        receipt = await writing.close(2, 3)
        with pytest.raises(Finished):
            await writing.append(4)
    assert (stream.records, stream.closed) == ([1, 2, 3], True)
    assert (receipt.closed, receipt.seq) == (True, 1)


async def test_close_without_anything_written_closes(model: StreamsModel, stream: Stream) -> None:
    async with serving(model) as url, Producer(url) as producer, producer.streams.producer("s", "p") as writing:
        await writing.close()
    assert (stream.records, stream.closed) == ([], True)


async def test_leaving_sends_what_was_appended_and_leaves_the_stream_open(model: StreamsModel, stream: Stream) -> None:
    async with serving(model) as url, Producer(url, limits=Limits(linger_ms=60_000)) as producer:
        failing = producer.streams.producer("s", "p", content_type="application/json")
        with pytest.raises(KeyError):
            await append_and_raise(failing, 1, 2)
        with anyio.move_on_after(0.05):
            async with producer.streams.producer("s", "q", content_type="application/json") as writing:
                await writing.append(3)
                await writing.append(4)
                await anyio.sleep_forever()
        unentered = await producer.streams.producer("s", "r").__aenter__()
        await unentered.append(5)
    assert (stream.records, stream.closed) == ([1, 2, 3, 4, 5], False)


async def append_and_raise(producer: StreamProducer, *records: int) -> None:
    async with producer as writing:
        for record in records:
            await writing.append(record)
        raise KeyError("mine")


async def test_nothing_appended_sends_nothing(model: StreamsModel) -> None:
    async with (
        serving(model) as url,
        Producer(url) as producer,
        producer.streams.producer("s", "p", content_type="application/json") as writing,
    ):
        assert await writing.flush() is None
        assert writing.receipt is None
    assert not model.requests


async def test_full_buffer_and_large_record_are_refused_and_do_no_harm(model: StreamsModel, stream: Stream) -> None:
    model.gate.clear()
    limits = Limits(buffer_chunks_max=2, chunk_bytes_max=10)
    async with (
        serving(model) as url,
        Producer(url, limits=limits) as producer,
        producer.streams.producer("s", "p", content_type="application/json") as writing,
    ):
        writing.append_nowait(1)
        await writing.append(2)
        with pytest.raises(BufferFull):
            writing.append_nowait(3)
        with pytest.raises(ChunkTooLarge):
            await writing.append("x" * 10)
        with pytest.raises(TypeError):
            await writing.append(object())
        model.gate.set()
        await writing.append(3)
    assert stream.records == [1, 2, 3]


# -- exactly once, whatever breaks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("auto_claim", [False, True], ids=["", "auto-claim"])
async def test_records_survive_a_network_that_fails_every_third_request_and_reorders_the_rest(
    model: StreamsModel, stream: Stream, seed: int, *, auto_claim: bool
) -> None:
    chance = random.Random(seed)
    model.fault = lambda _: chance.choice(FAULTS) if chance.random() < 0.3 else None
    model.delay_s = lambda _: chance.random() * 0.01
    limits = replace(SMALL, deadline_s=30, finish_timeout_s=30)
    async with (
        serving(model) as url,
        Producer(url, limits=limits) as producer,
        producer.streams.producer("s", "p", auto_claim=auto_claim) as writing,
    ):
        for n in range(120):
            await writing.append(n)
        await writing.close()
    assert stream.records == list(range(120))


async def test_broker_that_goes_away_and_comes_back_loses_and_doubles_nothing(
    model: StreamsModel, stream: Stream
) -> None:
    async with serving(model) as url:
        producer = await Producer(url, limits=SMALL).__aenter__()
        writing = await producer.streams.producer("s", "p").__aenter__()
        for n in range(50):
            await writing.append(n)
        await until(lambda: writing.durable_records > 0)
    for n in range(50, 100):
        await writing.append(n)
    async with serving(model, int(url.rpartition(":")[2])):
        await writing.close()
        await producer.__aexit__(None, None, None)
    assert stream.records == list(range(100))


# -- epochs ----------------------------------------------------------------------------------------------------------


async def test_higher_epoch_shuts_the_older_life_out(model: StreamsModel, stream: Stream) -> None:
    async with serving(model) as url, Producer(url) as producer, producer.streams.producer("s", "p") as old:
        await old.append("old")
        await old.flush()
        async with producer.streams.producer("s", "p", epoch=1) as new:
            await new.append("new")
        await old.append("late")
        with pytest.raises(Fenced) as caught:
            await old.flush()
        assert old.fenced.is_set()
    assert (caught.value.current_epoch, caught.value.status) == (1, 403)
    assert stream.records == ["old", "new"]


@pytest.mark.parametrize("taken", [(0, 0), (0, 7), (5, 3)], ids=str)
async def test_auto_claim_takes_the_next_epoch_that_is_free(
    model: StreamsModel, stream: Stream, taken: tuple[int, int]
) -> None:
    """PROTOCOL.md 5.2.1. Where the earlier life has epoch 0 as well, the server calls what is new a duplicate."""
    stream.producers["p"] = taken
    async with (
        serving(model) as url,
        Producer(url) as producer,
        producer.streams.producer("s", "p", auto_claim=True) as writing,
    ):
        for n in range(10):
            await writing.append(n)
        await writing.flush()
        assert writing.epoch == taken[0] + 1
    assert stream.records == list(range(10))


async def test_lives_that_claim_one_after_the_other_each_write_all_they_have(
    model: StreamsModel, stream: Stream
) -> None:
    async with serving(model) as url, Producer(url) as producer:
        for life in range(4):
            async with producer.streams.producer("s", "p", auto_claim=True) as writing:
                await writing.append(life)
    assert stream.records == [0, 1, 2, 3]
    assert stream.producers["p"] == (3, 0)


async def test_fence_after_a_first_batch_without_an_answer_is_final(model: StreamsModel, stream: Stream) -> None:
    """It may be in the log already: in another epoch it would come a second time."""

    def lose_and_overtake(_: object) -> Fault | None:
        if stream.records:
            stream.producers["p"] = (4, 0)
            return None
        return Fault.LOSE_ANSWER

    async with (
        serving(model) as url,
        Producer(url, limits=IMPATIENT) as producer,
        producer.streams.producer("s", "p", content_type="application/json", auto_claim=True) as writing,
    ):
        model.fault = lose_and_overtake
        await writing.append(1)
        with pytest.raises(Fenced):
            await writing.flush()
    assert stream.records == [1]


async def test_without_auto_claim_an_older_epoch_is_fenced_at_once(model: StreamsModel, stream: Stream) -> None:
    stream.producers["p"] = (5, 0)
    async with serving(model) as url, Producer(url) as producer, producer.streams.producer("s", "p") as writing:
        await writing.append(1)
        with pytest.raises(Fenced):
            await writing.close()
    assert stream.records == []


async def test_batches_go_on_where_an_earlier_process_counted(model: StreamsModel, stream: Stream) -> None:
    stream.producers["p"] = (2, 7)
    async with (
        serving(model) as url,
        Producer(url) as producer,
        producer.streams.producer("s", "p", epoch=2, next_seq=8) as writing,
    ):
        await writing.append("more")
    assert (stream.records, stream.producers["p"]) == (["more"], (2, 8))


# -- how it ends -----------------------------------------------------------------------------------------------------


async def test_batch_that_the_broker_lost_is_a_gap_and_no_fence(model: StreamsModel, stream: Stream) -> None:
    async with serving(model) as url, Producer(url) as producer, producer.streams.producer("s", "p") as writing:
        await writing.append(1)
        await writing.flush()
        stream.producers.clear()
        await writing.append(2)
        with pytest.raises(Gap) as caught:
            await writing.flush()
        assert not writing.fenced.is_set()
    assert (caught.value.expected_seq, caught.value.received_seq, caught.value.status) == (0, 1, 409)


async def test_stream_that_another_closed_is_told_with_its_end(model: StreamsModel) -> None:
    async with serving(model) as url, Producer(url) as producer, producer.streams.producer("text", "p") as writing:
        await writing.append("abc")
        await writing.flush()
        await producer.streams.close("text")
        await writing.append("d")
        with pytest.raises(Closed) as caught:
            await writing.flush()
        with pytest.raises(Closed):
            await writing.append("e")
    assert caught.value.offset == "00000003"


async def test_error_of_the_ending_is_raised_on_leaving(model: StreamsModel) -> None:
    async with serving(model) as url, Producer(url) as producer:
        writing = await producer.streams.producer("s", "p", content_type="text/plain").__aenter__()
        await writing.append("no JSON")
        with pytest.raises(Conflict):
            await writing.__aexit__(None, None, None)


async def test_body_above_the_brokers_limit_is_told_as_such(model: StreamsModel) -> None:
    model.body_bytes_max = 10
    async with serving(model) as url, Producer(url) as producer, producer.streams.producer("s", "p") as writing:
        await writing.append("x" * 20)
        with pytest.raises(BodyTooLarge):
            await writing.flush()


async def test_broker_that_stays_away_is_unavailable_with_what_is_not_acknowledged(model: StreamsModel) -> None:
    async with serving(model) as url:
        pass
    limits = replace(IMPATIENT, deadline_s=0.1)
    async with (
        Producer(url, limits=limits) as producer,
        producer.streams.producer("s", "p", content_type="application/json") as writing,
    ):
        await writing.append(1)
        with pytest.raises(Unavailable) as caught:
            await writing.flush()
    assert (caught.value.unacknowledged_batches, caught.value.unacknowledged_chunks) == (1, 1)


async def test_stream_that_is_not_there_cannot_be_entered(model: StreamsModel) -> None:
    async with serving(model) as url, Producer(url) as producer:
        with pytest.raises(NotFound):
            await producer.streams.producer("nowhere", "p").__aenter__()


async def test_use_outside_of_its_context_is_a_clear_error(model: StreamsModel) -> None:
    async with serving(model) as url, Producer(url) as producer:
        writing = producer.streams.producer("s", "p")
        with pytest.raises(RuntimeError, match="async with"):
            await writing.append(1)
        async with writing:
            pass
        with pytest.raises(RuntimeError, match="once"):
            await writing.__aenter__()
