"""What a million streams cost that nobody uses: memory, the start, every append to others; and an idle reader."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Generator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Final

import uvloop

from benchmarks import contenders, server, wrk
from benchmarks.contenders import NODE_FILE, RUST_WAL, STREAMFOLD
from benchmarks.memory import resident_bytes
from benchmarks.reader_load import Readers
from benchmarks.results import Measure, Target
from benchmarks.runner import Folder, Found, Measuring, Scenario, Setting
from benchmarks.server import Server
from benchmarks.workload import Invalid, batch, create_streams
from broker import Settings, create_app
from broker.core.outcome import Result
from broker.core.state import stream_key
from broker.http.request import Request
from broker.http.streams import entry_of
from broker.partition import Partition

FEW: Final = 1_000
CONNECTIONS: Final = 32
START_S_MAX: Final = 120.0
READERS: Final = 1_000
CACHE: Final = contenders.ROOT / ".cache" / "bench"
AT_ONCE: Final = 2_000
"""Streams that are created at the same time."""


async def create(data_dir: Path, streams: int) -> None:
    """So many streams of a record, made by the broker itself: a million requests over HTTP would take minutes."""
    app = create_app(Settings(data_dir=data_dir))
    partition = app.partition
    assert isinstance(partition, Partition)
    async with app.running():
        for first in range(0, streams, AT_ONCE):
            paths = [f"stored/{number}" for number in range(first, min(first + AT_ONCE, streams))]
            entries = [entry_of(Request("PUT", path, {b"content-type": b"application/json"}), b"[0]") for path in paths]
            await partition.wait_for_room(entries[0])
            await partition._rows.load([stream_key(path) for path in paths])  # noqa: SLF001 -- one look for all
            outcomes = await asyncio.gather(*map(partition.propose_nowait, entries))
            if any(outcome.result is not Result.CREATED for outcome in outcomes):
                raise Invalid("a stream was not created")


def _stored(streams: int) -> Path:
    """A data folder with so many streams, all of them checkpointed; made once, as a million take a minute."""
    folder = CACHE / f"streams-{streams}"
    if not folder.exists():
        making = CACHE / f"streams-{streams}.making"
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(parents=True)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(create(making / "data", streams))
        making.rename(folder)
    return folder / "data"


@contextmanager
def _opened(setting: Setting) -> Generator[Measuring, None, None]:
    many = 100_000 if setting.quick else 1_000_000
    few_bytes: list[int] = []

    def measure(name: str) -> Found:
        streams = FEW if name == FEW_NAME else many
        with Folder(setting) as folder:
            shutil.copytree(_stored(streams), folder / "data")
            port, begun_s = server.free_port(), time.perf_counter()
            with server.running(server.streamfold(port, "sqlite", folder / "data"), port) as running:
                _until_ready(port)
                numbers = {"start s": time.perf_counter() - begun_s}
                resident = resident_bytes(running.pid)
                numbers |= _appended(running, folder, setting.seconds)
        numbers["resident MiB at the start"] = resident / 2**20
        if name == FEW_NAME:
            few_bytes.append(resident)
        elif few_bytes:
            numbers["bytes in memory for each stream"] = max(0.0, (resident - few_bytes[-1]) / (many - FEW))
        return Found(numbers, notes=[] if streams in {FEW, 1_000_000} else [f"{streams:,} streams, as this is quick"])

    yield measure


def _until_ready(port: int) -> None:
    deadline_s = time.monotonic() + START_S_MAX
    while time.monotonic() < deadline_s:
        connection = HTTPConnection("127.0.0.1", port, timeout=START_S_MAX)
        try:
            connection.request("GET", "/ready")
            if connection.getresponse().status == 200:
                return
        finally:
            connection.close()
        time.sleep(0.005)  # it asks until the broker is ready; a start is told in steps of this
    raise Invalid(f"not ready after {START_S_MAX:g} s")


def _appended(running: Server, folder: Path, seconds: float) -> dict[str, float]:
    targets = [f"/v1/stream/used/{number}" for number in range(CONNECTIONS)]
    create_streams(running.port, targets)
    begun_s = running.cpu_s()
    seen = wrk.run(running.port, targets, connections=CONNECTIONS, seconds=seconds, folder=folder, body=batch(0, 10))
    return {
        "appends/s": seen.requests_per_s,
        "server us an append": (running.cpu_s() - begun_s) / seen.requests * 1e6,
    }


FEW_NAME: Final = "1,000 streams"
MANY_NAME: Final = "1,000,000 streams"

STORED_STREAMS: Final = Scenario(
    "stored-streams",
    "A million streams that nobody uses",
    "A broker is started over so many stored streams, each with a record, then gets appends of 10 chunks to 32 others. "
    "The folder is made once and kept in .cache/bench. Quick: 100,000.",
    {
        "start s": Measure("s", more_is_better=False),
        "appends/s": Measure("requests/s", more_is_better=True),
        "server us an append": Measure("us", more_is_better=False),
        "resident MiB at the start": Measure("MiB", more_is_better=False),
        "bytes in memory for each stream": Measure("bytes", more_is_better=False),
    },
    (FEW_NAME, MANY_NAME),
    _opened,
    (
        Target("start s", MANY_NAME, 2.0, 0.5),
        Target("server us an append", MANY_NAME, 1.3, 1.05, against=FEW_NAME),
        Target("bytes in memory for each stream", MANY_NAME, 200.0, 0.0),
    ),
)


# -- idle readers ------------------------------------------------------------------------------------------------------


@contextmanager
def _idle_opened(setting: Setting) -> Generator[Measuring, None, None]:
    def measure(name: str) -> Found:
        target = "/v1/stream/idle/readers"
        with Folder(setting) as folder, contenders.serving(name, folder / "data") as running:
            create_streams(running.port, [target])
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                each_bytes = runner.run(_each_reader_bytes(running, target))
        return Found({"KiB for each reader": each_bytes / 1024})

    yield measure


async def _each_reader_bytes(running: Server, target: str) -> float:
    def ignore(_number: int, _now_s: float) -> None:
        """Nothing is appended."""

    async with Readers(running.port, target, 100, ignore):  # what only the first ones cost
        before = resident_bytes(running.pid)
        async with Readers(running.port, target, READERS, ignore):
            await asyncio.sleep(0.5)
            return (resident_bytes(running.pid) - before) / READERS


IDLE_READERS: Final = Scenario(
    "idle-readers",
    "What a reader costs who waits",
    f"Resident memory of the server before and after {READERS:,} readers over SSE have come to one stream in which "
    "nothing happens, beside the first hundred.",
    {"KiB for each reader": Measure("KiB", more_is_better=False)},
    (STREAMFOLD, RUST_WAL, NODE_FILE),
    _idle_opened,
    (Target("KiB for each reader", STREAMFOLD, 20.0, 8.0),),
    rounds=3,
)
