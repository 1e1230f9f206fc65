"""The ways in which batches travel, against a real broker: the same promises, whichever it is."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio
import pytest

from consumer import Reader
from producer import Fenced, Limits, Producer, Refused, UploadMode
from tests.faults.cutter import Cutter
from tests.live import Broker
from tests.producer.conftest import IMPATIENT
from tests.producer.model import ModelBroker

MODES = [*UploadMode]
STREAMING = [UploadMode.NDJSON, UploadMode.WEBSOCKET]
LIMITS = replace(IMPATIENT, backoff_s_initial=0.02, backoff_s_max=0.2, backoff_s_jitter=0.02, batch_chunks_max=5)


@pytest.fixture
def sid() -> str:
    return f"s-{uuid4().hex}"


async def chunks_in(url: str, session_id: str) -> list[Any]:
    """As a reader has them, in the order of the log."""
    async with Reader(url) as reader:
        batch = await reader.read(f"sessions/{session_id}")
    records: list[Any] = [*batch.records]
    return [record["value"]["chunk"] for record in records if record["type"] == "chunk"]


async def ends_in(url: str, session_id: str) -> list[tuple[str, str | None]]:
    async with Reader(url) as reader:
        batch = await reader.read(f"sessions/{session_id}")
    records: list[Any] = [*batch.records]
    ends = [record["value"] for record in records if record["type"] == "generation"]
    return [(end["status"], end.get("reason")) for end in ends if end["status"] != "streaming"]


@pytest.mark.parametrize("mode", MODES)
async def test_every_chunk_arrives_once_and_in_order(live: Broker, sid: str, mode: UploadMode) -> None:
    async with Producer(live.url, limits=LIMITS, upload=mode) as producer:
        await producer.create_session(sid)
        async with producer.generation(sid, "g", format="text") as generation:
            for n in range(500):
                await generation.write(f"{n} é\n")
            receipt = await generation.flush()
            assert receipt is not None
            assert generation.durable_chunks == 500
            ended = await generation.finish(usage={"tokens": 500})
            assert ended is not None
            assert ended.seq == receipt.seq + 1
    assert await chunks_in(live.url, sid) == [f"{n} é\n" for n in range(500)]
    assert await ends_in(live.url, sid) == [("complete", None)]


@pytest.mark.parametrize("mode", STREAMING)
async def test_whole_answer_takes_one_connection(live: Broker, sid: str, mode: UploadMode) -> None:
    cutter = Cutter(live.port, random.Random(1), 10**9, 10**9)
    async with cutter.serving(), Producer(cutter.url, limits=LIMITS, upload=mode) as producer:
        await producer.create_session(sid)
        async with producer.generation(sid, "g", format="text") as generation:
            for n in range(50):
                await generation.write(str(n))
                await generation.flush()
        assert producer.metrics().failed_attempts == 0
    assert cutter.connections <= 2, "one for requests and one for the answer"


@pytest.mark.parametrize("mode", MODES)
async def test_r45_failing_network_loses_and_doubles_nothing(live: Broker, sid: str, mode: UploadMode) -> None:
    """R45: every connection is cut after a few batches, in the middle of a request or of an answer."""
    texts = [f"{n} {'x' * 60}" for n in range(200)]
    cutter = Cutter(live.port, random.Random(5), 1_000, 5_000)
    limits = replace(LIMITS, degraded_after=1_000_000)  # it would go over to single requests
    async with cutter.serving(), Producer(cutter.url, limits=limits, upload=mode) as producer:
        await producer.create_session(sid)
        async with producer.generation(sid, "g", format="text", lease_ms=60_000) as generation:
            for text in texts:
                await generation.write(text)
            await generation.flush()
    assert cutter.cuts > 3
    assert await chunks_in(live.url, sid) == texts
    assert await ends_in(live.url, sid) == [("complete", None)]


@pytest.mark.parametrize("mode", STREAMING)
async def test_killed_broker_is_found_again(live: Broker, sid: str, mode: UploadMode) -> None:
    async with Producer(live.url, limits=LIMITS, upload=mode) as producer:
        await producer.create_session(sid)
        async with producer.generation(sid, "g", format="text") as generation:
            for n in range(100):
                await generation.write(str(n))
                if n == 50:
                    await generation.flush()
                    await live.restart()
    assert await chunks_in(live.url, sid) == [str(n) for n in range(100)]


@pytest.mark.parametrize("mode", STREAMING)
async def test_stop_is_told_while_nothing_is_written(live: Broker, sid: str, mode: UploadMode) -> None:
    """Over the connection: no heartbeat is due for a long time."""
    async with Producer(live.url, limits=LIMITS, upload=mode) as producer:
        await producer.create_session(sid)
        async with producer.generation(sid, "g", format="text", lease_ms=600_000) as generation:
            for text in ("x", "y"):
                await generation.write(text)
                await generation.flush()
            await producer.stop(sid, "g")
            with anyio.fail_after(5):
                await generation.stopped.wait()
            with pytest.raises(Fenced, match="stopped"):
                await generation.write("z")
    assert await chunks_in(live.url, sid) == ["x", "y"]


@pytest.mark.parametrize("mode", MODES)
async def test_newer_generation_fences_the_older(live: Broker, sid: str, mode: UploadMode) -> None:
    async with Producer(live.url, limits=LIMITS, upload=mode) as producer:
        await producer.create_session(sid)
        with pytest.raises(Fenced, match="superseded"):  # noqa: PT012  raised by leaving
            async with producer.generation(sid, "old", format="text") as old:
                await old.write("o")
                await old.flush()
                async with producer.generation(sid, "new", format="text") as new:
                    await new.write("n")
                await old.write("late")
                await old.flush()
    assert await chunks_in(live.url, sid) == ["o", "n"]


@pytest.mark.parametrize("mode", MODES)
async def test_session_that_is_not_there_is_a_refusal(live: Broker, mode: UploadMode) -> None:
    async with Producer(live.url, limits=LIMITS, upload=mode) as producer:
        with pytest.raises(Refused, match="SESSION_NOT_FOUND"):
            async with producer.generation("none", "g") as generation:
                await generation.write("x")


@pytest.mark.parametrize("mode", STREAMING)
async def test_spool_is_delivered_over_one_connection_too(
    live: Broker, sid: str, tmp_path: Path, mode: UploadMode
) -> None:
    async with Producer(live.url, limits=LIMITS, upload=mode, spool=tmp_path / "spool.sqlite") as producer:
        async with producer.spooled(sid, "g", format="text") as generation:
            for n in range(50):
                await generation.write(f"{n} ")
        await generation.delivered(20)
    assert "".join(await chunks_in(live.url, sid)) == "".join(f"{n} " for n in range(50))


@pytest.mark.parametrize("mode", STREAMING)
async def test_way_that_lets_no_such_connection_through_is_left_for_requests(
    url: str, broker: ModelBroker, mode: UploadMode
) -> None:
    """The model knows no WebSocket, and answers an upload when it has ended: as a proxy that holds requests back."""
    limits = replace(LIMITS, attempt_timeout_s=0.3, batch_chunks_max=1)
    async with Producer(url, limits=limits, upload=mode) as producer:
        for gid in ("g1", "g2"):
            async with producer.generation("s", gid) as generation:
                for n in range(20):
                    await generation.write(n)
                    await generation.flush()
        assert producer.metrics().failed_attempts == 0
    assert (broker.log("s", "g1"), broker.log("s", "g2")) == ([*range(20)], [*range(20)])


@pytest.mark.parametrize("mode", STREAMING)
async def test_stop_cancels_what_is_in_flight_at_once(live: Broker, sid: str, mode: UploadMode) -> None:
    """R7: nothing that was written is waited for."""
    async with Producer(live.url, limits=Limits(), upload=mode) as producer:
        await producer.create_session(sid)
        async with producer.generation(sid, "g", format="text") as generation:
            await generation.write("x")
            await generation.flush()
            for _ in range(10_000):
                generation.write_nowait("x" * 100)
            with anyio.fail_after(2):
                stopped = await generation.stop()
    assert stopped is not None
    assert stopped.status == "aborted"
