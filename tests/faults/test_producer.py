"""The producer library when what is under it fails: the network, the disks, the clock, and its own twin."""

import random
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from consumer import Reader
from producer import Fenced, Limits, Producer, Unavailable
from tests.faults.cutter import Cutter
from tests.faults.proxy import Proxy, every_first_time
from tests.faults.small_disk import BrokerOnSmallDisk, SmallDisk
from tests.live import Broker, free_port
from tests.producer.spooling_app import app
from tests.program import next_line, program

LIMITS = Limits(
    batch_chunks_max=5, backoff_s_initial=0.02, backoff_s_max=0.2, backoff_s_jitter=0.02, retry_after_s_max=0.2
)
PAD = "x" * 100_000
TWIN_CHUNKS = 200


async def records_of(url: str, session_id: str) -> list[Any]:
    async with Reader(url) as reader:
        return [*(await reader.read(f"sessions/{session_id}")).records]


async def chunks_of(url: str, session_id: str) -> list[Any]:
    return [record["value"]["chunk"] for record in await records_of(url, session_id) if record["type"] == "chunk"]


async def test_every_acknowledgement_lost_once_doubles_nothing(live: Broker) -> None:
    proxy = Proxy(free_port(), live.port, every_first_time())
    url = f"http://127.0.0.1:{proxy.port}"
    async with proxy.serving(), Producer(url, limits=LIMITS, upload="post") as producer:
        await producer.create_session("acks")
        async with producer.generation("acks", "g", format="text") as generation:
            for n in range(60):
                await generation.write(str(n))
    assert proxy.withheld.qsize() >= 10
    assert await chunks_of(live.url, "acks") == [str(n) for n in range(60)]


async def test_r41_error_in_the_middle_makes_the_finish_fail(live: Broker) -> None:
    """R41, R2: the finish never says that all is well when something before it was not delivered."""
    cutter = Cutter(live.port, random.Random(1), 10**9, 10**9)
    async with (
        cutter.serving(),
        Producer(cutter.url, limits=replace(LIMITS, deadline_s=0.3)) as producer,
    ):
        await producer.create_session("middle")
        generation = await producer.generation("middle", "g", format="text", lease_ms=1000).__aenter__()
        await generation.write("a")
        await generation.flush()
        cutter.is_open = False
        cutter.cut_all()
        await generation.write("b")
        with pytest.raises(Unavailable):
            await generation.flush()
        with pytest.raises(Unavailable):
            await generation.finish()
        with pytest.raises(Unavailable):
            await generation.write("c")
    assert producer.metrics().errors == 1
    [end] = [record["value"] for record in await ended(live, "middle") if record["headers"]["operation"] == "update"]
    assert end["status"] == "failed", "the lease ends it, for readers"
    assert await chunks_of(live.url, "middle") == ["a"]


async def ended(live: Broker, session_id: str) -> list[Any]:
    """The records, once a generation has ended."""
    with anyio.fail_after(20):
        while True:
            records = await records_of(live.url, session_id)
            if any(record["value"].get("status") in {"failed", "complete", "aborted"} for record in records):
                return records
            await anyio.sleep(0.05)


@pytest.mark.parametrize(("kind", "path"), [("stream", "twins"), ("generation", "sessions/twins")])
async def test_two_processes_with_one_producer_id_do_not_mix(live: Broker, kind: str, path: str) -> None:
    """They write at the same time: one of them is told, and the log has all of the other, in order, and no more."""
    async with Producer(live.url, limits=LIMITS) as producer:
        await (producer.create_session if kind == "generation" else producer.streams.create)("twins")
    ends = await ends_of_twins(live.url, kind, ["one", "other"])
    [winner] = [name for name, end in ends.items() if end == "whole"]
    [told] = [end for end in ends.values() if end != "whole"]
    assert told in {"PAYLOAD_MISMATCH", "Fenced"}
    async with Reader(live.url) as reader:
        records = [*(await reader.read(path)).records]
    written = records if kind == "stream" else await chunks_of(live.url, "twins")
    assert written == [f"{winner} {n}" for n in range(TWIN_CHUNKS)]


async def ends_of_twins(url: str, kind: str, names: list[str]) -> dict[str, str]:
    """Two applications that begin to write when both are ready; how each of them ended."""
    with ExitStack() as stack:
        twins = {
            name: stack.enter_context(program("tests.faults.twin_app", url, kind, name, TWIN_CHUNKS)) for name in names
        }
        for process in twins.values():
            assert await next_line(process) == "ready"
        for process in twins.values():
            process.stdin.write("go\n")
            process.stdin.flush()
        return {name: await next_line(process) for name, process in twins.items()}


async def test_producer_whose_epoch_was_taken_over_is_kept_out(live: Broker) -> None:
    async with Producer(live.url, limits=LIMITS) as one, Producer(live.url, limits=LIMITS) as other:
        await one.streams.create("taken")
        async with one.streams.producer("taken", "p") as first:
            await first.append("first")
        async with other.streams.producer("taken", "p", auto_claim=True) as second:
            await second.append("a higher epoch")
        with pytest.raises(Fenced):  # noqa: PT012  the error may come from either call
            async with one.streams.producer("taken", "p", next_seq=1) as late:
                await late.append("late")
                await late.flush()
    async with Reader(live.url) as reader:
        assert [*(await reader.read("taken")).records] == ["first", "a higher epoch"]


async def test_step_of_the_wall_clock_changes_nothing(live: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linger, deadlines, leases and retries go by the monotonic clock."""
    steps = iter([10**6, -(10**6), 10**8])
    now = time.time
    async with Producer(live.url, limits=replace(LIMITS, deadline_s=5, linger_ms=1)) as producer:
        await producer.create_session("clock")
        async with producer.generation("clock", "g", format="text", lease_ms=1000) as generation:
            for n in range(60):
                if n % 20 == 0:
                    monkeypatch.setattr(time, "time", partial(stepped, now, next(steps)))
                await generation.write(str(n))
                await anyio.sleep(0.03)
        assert producer.metrics().failed_attempts == 0
    assert await chunks_of(live.url, "clock") == [str(n) for n in range(60)]


def stepped(now: Callable[[], float], step_s: float) -> float:
    return now() + step_s


@pytest.mark.parametrize("upload", ["post", "websocket"])
async def test_full_disk_of_the_broker_loses_nothing(disk: SmallDisk, tmp_path: Path, upload: str) -> None:
    """503, again and again; and when there is room the producer goes on by itself."""
    broker = BrokerOnSmallDisk(disk, tmp_path / "broker.log")
    texts: list[str] = []
    async with broker, Producer(broker.url, limits=LIMITS, upload=upload) as producer:
        await producer.create_session("s")
        async with producer.generation("s", "g", format="text", lease_ms=60_000) as generation:
            with anyio.fail_after(30):
                while producer.metrics().failed_attempts < 3:  # what the journal had set aside is used up first
                    disk.fill()
                    text = f"{len(texts)} {PAD}"
                    texts += [text] if generation.try_write(text) else []
                    await anyio.sleep(0.001)
            disk.free()
            await generation.flush()
        assert await chunks_of(broker.url, "s") == texts


async def test_full_disk_under_the_spool_takes_nothing_and_loses_nothing(disk: SmallDisk, live: Broker) -> None:
    """The application is told with each chunk that has no room, and goes on when there is some."""
    async with Producer(live.url) as producer:
        await producer.create_session("s")
    network = Cutter(live.port, random.Random(1), 10**9, 10**9)
    network.is_open = False  # what is delivered makes room, and the disk might never be full
    disk.fill(but_bytes=1_000_000)
    async with network.serving():
        with app(network.url, disk.path / "spool.sqlite", 120, pad=20_000, enter=tuple(disk.enter)) as process:
            assert await next_line(process) == "kept 0"
            told: list[str] = []
            while (line := await next_line(process)) != "full":
                told.append(line)
            assert 0 < len(told) < 50, "what did not fit was not taken"
            disk.free()
            network.is_open = True
            while (line := await next_line(process)) != "delivered":
                told += [line] if line != "full" else []
    assert told == [*(str(n) for n in range(120)), "finished"]
    texts = "".join(await chunks_of(live.url, "s"))
    assert texts == "".join(f"{n} {'x' * 20_000}" for n in range(120))
