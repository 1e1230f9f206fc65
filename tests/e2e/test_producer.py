"""The producer against a real broker: interruption keeps what was written, crashes on either side change nothing."""

import asyncio
import random
import signal
import sys
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from producer import Fenced, Generation, Limits, Producer, Refused
from tests.eventually import until
from tests.live import Broker

PATIENT = Limits(batch_chunks_max=3, backoff_s_initial=0.01, backoff_s_max=0.2, backoff_s_jitter=0.01)
"""Small batches, so that many are under way when something happens; and soon back after it."""
WRITER = Path(__file__).with_name("writer.py")

pytestmark = pytest.mark.usefixtures("session_s")


def delta(number: int) -> dict[str, Any]:
    return {"type": "text-delta", "id": "0", "delta": f"{number} "}


def answer(count: int) -> list[dict[str, Any]]:
    return [delta(number) for number in range(count)]


async def log(broker: Broker, generation_id: str = "g") -> tuple[list[Any], list[dict[str, Any]]]:
    """What a reader sees of a generation: its chunks, and its generation records, in order."""
    records = await read(broker.url, "s")
    of_it = [record for record in records if record["key"].rpartition(":")[0] == generation_id]
    assert [record["key"] for record in of_it] == [f"{generation_id}:{n}" for n in range(len(of_it))]
    lives = [r["value"] for r in records if r["type"] == "generation" and r["key"] == generation_id]
    return [record["value"]["chunk"] for record in of_it], lives


async def read(url: str, session_id: str) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    offset = "-1"
    async with httpx.AsyncClient(base_url=url) as client:
        while True:
            page = await client.get(f"/v1/stream/sessions/{session_id}", params={"offset": offset})
            page.raise_for_status()
            records += page.json()
            offset = page.headers["stream-next-offset"]
            if "stream-up-to-date" in page.headers:
                return records


async def until_durable(generation: Generation, chunks: int) -> None:
    await until(lambda: generation.durable_chunks >= chunks)


@pytest.mark.parametrize("cut", [0, 1, 2, 5, 40, 200])
async def test_writer_that_is_cancelled_at_any_point_keeps_what_it_wrote(broker: Broker, cut: int) -> None:
    """I1 to I3: natively, as a web framework cancels the task of a request whose client has gone."""

    async def request(producer: Producer) -> None:
        async with producer.generation("s", "g") as generation:
            for chunk in answer(cut):
                await generation.write(chunk)
            reached.set()
            await anyio.sleep_forever()

    reached = asyncio.Event()
    async with Producer(broker.url, limits=PATIENT) as producer:
        task = asyncio.create_task(request(producer))
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        chunks, lives = await log(broker)
    assert chunks == answer(cut)
    assert [life["status"] for life in lives] == ["streaming", "aborted"]


async def test_writer_that_times_out_while_it_waits_for_room_keeps_what_it_wrote(broker: Broker) -> None:
    written: list[Any] = []
    async with Producer(broker.url, limits=Limits(buffer_chunks_max=5, batch_chunks_max=1)) as producer:
        with anyio.move_on_after(0.3):
            async with producer.generation("s", "g") as generation:
                for chunk in answer(100_000):
                    await generation.write(chunk)
                    written.append(chunk)
    chunks, lives = await log(broker)
    assert 0 < len(written) < 100_000
    assert chunks == written
    assert lives[-1]["status"] == "aborted"


async def test_writer_that_fails_keeps_what_it_wrote_and_says_why(broker: Broker) -> None:
    async with Producer(broker.url, limits=PATIENT) as producer:
        with pytest.raises(ZeroDivisionError):  # noqa: PT012  it has to pass through the context
            async with producer.generation("s", "g") as generation:
                for chunk in answer(20):
                    await generation.write(chunk)
                raise ZeroDivisionError("the model did")
    chunks, lives = await log(broker)
    assert chunks == answer(20)
    assert lives[-1]["status"] == "failed"
    assert lives[-1]["error"] == {"type": "ZeroDivisionError", "message": "the model did"}


@pytest.mark.parametrize("seed", range(3))
async def test_broker_that_is_killed_mid_answer_loses_and_doubles_nothing(broker: Broker, seed: int) -> None:
    chance = random.Random(seed)
    count, kills = 400, sorted(chance.sample(range(1, 400), 3))

    async def write(generation: Generation) -> None:
        for chunk in answer(count):
            await generation.write(chunk)
            await anyio.sleep(0.001)

    async with Producer(broker.url, limits=PATIENT) as producer, producer.generation("s", "g") as generation:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write, generation)
            for kill in kills:
                await until_durable(generation, kill)
                await broker.restart()
        await generation.finish(usage={"tokens": count})
    chunks, lives = await log(broker)
    assert chunks == answer(count)
    assert [life["status"] for life in lives] == ["streaming", "complete"]
    assert lives[-1]["usage"] == {"tokens": count}


async def test_second_process_takes_up_what_a_killed_one_has_left(broker: Broker, tmp_path: Path) -> None:
    """Four lives of one program that writes the same answer from its first chunk; three of them end by SIGKILL."""
    count = 300
    program = [sys.executable, str(WRITER), broker.url, "s", "g", str(count)]
    for life in range(3):
        await killed_after([*program, str(tmp_path / f"life-{life}")], chunks=20 * (life + 1))
    chunks, lives = await log(broker)
    assert 0 < len(chunks) < count
    assert [life["status"] for life in lives] == ["streaming"]

    await anyio.run_process([*program, str(tmp_path / "last")])
    chunks, lives = await log(broker)
    assert chunks == answer(count)
    assert [life["status"] for life in lives] == ["streaming", "complete"]


async def killed_after(program: list[str], *, chunks: int) -> None:
    """Run the program, whose last argument is its progress file, until it wrote so many chunks; then SIGKILL."""
    progress = Path(program[-1])
    async with await anyio.open_process(program) as process:
        await until(lambda: process.returncode is not None or lines(progress) >= chunks)
        process.kill()
        await process.wait()
    assert process.returncode == -signal.SIGKILL, "it was killed before it was done"


def lines(path: Path) -> int:
    return len(path.read_bytes().splitlines()) if path.exists() else 0


async def test_generation_that_is_stopped_elsewhere_takes_no_more(broker: Broker) -> None:
    async with Producer(broker.url, limits=PATIENT) as writer, Producer(broker.url) as reader:
        with pytest.raises(Fenced) as caught:  # noqa: PT012  when the answer has come
            async with writer.generation("s", "g") as generation:
                await generation.write(delta(0))
                await generation.flush()
                await reader.stop("s", "g", requested_by="user-1")
                while True:
                    await generation.write(delta(1))
                    await anyio.sleep(0.001)
    assert (caught.value.reason, caught.value.generation_status) == ("stopped", "aborted")
    assert (await log(broker))[0] == [delta(0)]


async def test_newer_generation_in_the_lane_supersedes_the_older(broker: Broker) -> None:
    async with Producer(broker.url, limits=PATIENT) as producer:
        with pytest.raises(Fenced, match="superseded"):  # noqa: PT012  it comes from leaving the older one
            async with producer.generation("s", "g") as older:
                await older.write(delta(0))
                await older.flush()
                async with producer.generation("s", "newer") as newer:
                    await newer.write(delta(1))
    assert (await log(broker))[1][-1]["reason"] == "superseded"
    assert (await log(broker, "newer"))[1][-1]["status"] == "complete"


async def test_quiet_generation_outlives_its_lease(broker: Broker) -> None:
    async with Producer(broker.url) as producer, producer.generation("s", "g", lease_ms=1000) as generation:
        await generation.write(delta(0))
        await anyio.sleep(2.5)  # two leases and a half: the time is what is tested
        await generation.write(delta(1))
    chunks, lives = await log(broker)
    assert chunks == [delta(0), delta(1)]
    assert lives[-1]["status"] == "complete"


async def test_emoji_cut_in_half_arrives_as_its_halves(broker: Broker) -> None:
    chunks = [
        {"type": "text-delta", "id": "0", "delta": "\ud83d"},
        {"type": "text-delta", "id": "0", "delta": "\ude00"},
    ]
    async with Producer(broker.url) as producer, producer.generation("s", "g") as generation:
        for chunk in chunks:
            await generation.write(chunk)
    assert (await log(broker))[0] == chunks


async def test_message_id_that_is_taken_is_refused(broker: Broker) -> None:
    async with Producer(broker.url) as producer:
        await producer.send_message("s", {"id": "m", "role": "user", "parts": []})
        with pytest.raises(Refused) as caught:
            async with producer.generation("s", "g", message_id="m") as generation:
                await generation.write(delta(0))
    assert caught.value.code == "MESSAGE_EXISTS"
