"""Start-up takes as long as what came after the last checkpoint, however much is stored."""

import asyncio
import json
import statistics
import time
from pathlib import Path

import pytest

from broker.app import create_app
from broker.core.entry import CreateOptions, Entry, Kind, encode_options
from broker.core.page import pack_lengths
from broker.settings import Settings

FEW, MANY = 1_000, 50_000
RECORDS_EACH = 2
AT_ONCE = 8_000
STARTS = 7
RATIO_MAX = 3.0
NOISE_S = 0.01
"""What two starts of the same folder differ by on a busy machine."""

RECORD = json.dumps({"text": "x" * 50}).encode()


@pytest.mark.timeout(180)
async def test_start_with_fifty_times_as_much_stored_takes_about_as_long(tmp_path: Path) -> None:
    few, many = tmp_path / "few", tmp_path / "many"
    await store(few, FEW)
    await store(many, MANY)
    assert size_bytes(many) > 20 * size_bytes(few)

    starts = [(await start_s(few), await start_s(many)) for _ in range(STARTS)]  # in turns, so that noise hits both

    few_s, many_s = (statistics.median(times) for times in zip(*starts, strict=True))
    print(f"start-up with {FEW} streams {few_s * 1000:.1f} ms, with {MANY} {many_s * 1000:.1f} ms")
    assert many_s < RATIO_MAX * few_s + NOISE_S


async def store(data_dir: Path, streams: int) -> None:
    """Fill a data folder with streams of a few records each, all of it checkpointed."""
    app = create_app(Settings(data_dir=data_dir))
    async with app.running():
        for first in range(0, streams, AT_ONCE):
            numbers = range(first, min(first + AT_ONCE, streams))
            await asyncio.gather(*(app.partition.propose(creation(number)) for number in numbers))


def creation(number: int) -> Entry:
    return Entry(
        Kind.CREATE,
        f"stream/{number}",
        options=encode_options(CreateOptions("application/json")),
        lengths=pack_lengths([len(RECORD)] * RECORDS_EACH),
        body=b",".join([RECORD] * RECORDS_EACH),
    )


async def start_s(data_dir: Path) -> float:
    """How long the engine takes to open. What the interpreter takes before that is always the same."""
    app = create_app(Settings(data_dir=data_dir))
    began_at = time.perf_counter()
    async with app.running():
        took_s = time.perf_counter() - began_at
        stored = await app.partition.stream("stream/0")
        assert stored is not None
        assert stored.tail == RECORDS_EACH
    return took_s


def size_bytes(data_dir: Path) -> int:
    return sum(path.stat().st_size for path in data_dir.iterdir())
