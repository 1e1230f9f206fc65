"""One server under one workload, and what came of it."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from benchmarks import load, server
from benchmarks.load import Load
from benchmarks.server import Command, Server
from benchmarks.workload import ToGenerations, ToNothing, ToStreams, Workload

BARE: Final = "bare ASGI"


class Scenario(msgspec.Struct, frozen=True):
    """A row of the report."""

    engine: str  # or BARE
    workload: Workload
    ratio_min: float | None = None  # of its requests/s to the bare application's in the same round
    chunks_per_s_min: float | None = None

    @property
    def name(self) -> str:
        """What the row is called."""
        work = self.workload
        return f"{self.engine}, {work.name}, {work.chunks} chunks, {work.connections} connections"

    def command(self, port: int, data_dir: Path) -> Command:
        """What starts the server."""
        return server.bare(port) if self.engine == BARE else server.streamfold(port, self.engine, data_dir)


SCENARIOS: Final = (
    Scenario(BARE, ToNothing(10, 32)),
    Scenario("sqlite", ToStreams(10, 32), ratio_min=0.40),
    Scenario("sqlite", ToStreams(1000, 8), chunks_per_s_min=700_000),
    Scenario("sqlite", ToGenerations(10, 32)),
    Scenario("sqlite", ToGenerations(1000, 8)),
    Scenario("memory", ToStreams(10, 32)),
    Scenario("memory", ToStreams(1000, 8)),
)


class Measured(msgspec.Struct, frozen=True):
    """One scenario in one round."""

    requests_per_s: float
    chunks_per_s: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    server_us: float  # of processor time for one request, all threads together
    server_busy: float  # of its core, 0 to 1
    load_busy: float
    others_busy: float  # what everybody else used of these two cores: above a few hundredths, measure again
    audited_batches: int  # found again after a SIGKILL; 0 where nothing is promised


class Busy:
    """How much of their cores the server, this process and all others use from `begin` to `end`.

    `beside` are processes that the server cannot do without: they are none of the others.
    """

    def __init__(self, of: Server, beside: Sequence[int] = ()) -> None:
        self._of = of
        self._beside = beside
        self._begun = (0.0, 0.0, 0.0, 0.0)

    def begin(self) -> None:
        self._begun = self._now()

    def end(self) -> tuple[float, float, float]:
        """Of the server, of this process, and of all others, as shares of a core."""
        elapsed_s, server_s, load_s, all_s = (now - begun for now, begun in zip(self._now(), self._begun, strict=True))
        return server_s / elapsed_s, load_s / elapsed_s, max(0.0, all_s - server_s - load_s) / elapsed_s

    def _now(self) -> tuple[float, float, float, float]:
        beside_s = sum(map(server.cpu_s, self._beside))
        return time.perf_counter(), self._of.cpu_s(), time.process_time(), server.cores_busy_s() - beside_s


def measure(scenario: Scenario, folder: Path, *, warm_up_s: float, measured_s: float) -> Measured:
    """Start the server on an empty folder, load it, kill it, and hold it to what it acknowledged.

    Raises Invalid when a request was refused or something acknowledged is missing, doubled or out of place afterwards.
    """
    data_dir = folder / "data"
    port = server.free_port()
    command = scenario.command(port, data_dir)
    try:
        with server.running(command, port) as running:
            batches = scenario.workload.prepare(port)
            busy = Busy(running)
            seen = load.run(port, batches, warm_up_s=warm_up_s, measured_s=measured_s, measuring=busy.begin)
            shares = busy.end()
        audited = _audit(scenario, command, port, seen) if scenario.engine == "sqlite" else 0
    finally:
        shutil.rmtree(data_dir, ignore_errors=True)
        os.sync()  # what this one leaves to be written must not be in the way of the next
    return measured_of(scenario.workload, seen, shares, audited)


def measured_of(workload: Workload, seen: Load, shares: tuple[float, float, float], audited: int) -> Measured:
    """What a run came to; `shares` as `Busy.end` tells them."""
    server_busy, load_busy, others_busy = shares
    latencies_s = seen.latencies_s()
    requests_per_s = len(latencies_s) / (seen.until_s - seen.from_s)
    return Measured(
        requests_per_s=requests_per_s,
        chunks_per_s=requests_per_s * workload.chunks,
        p50_ms=latencies_s[len(latencies_s) // 2] * 1000,
        p99_ms=latencies_s[len(latencies_s) * 99 // 100] * 1000,
        max_ms=latencies_s[-1] * 1000,
        server_us=server_busy / requests_per_s * 1e6,
        server_busy=server_busy,
        load_busy=load_busy,
        others_busy=others_busy,
        audited_batches=audited,
    )


def _audit(scenario: Scenario, command: Command, port: int, seen: Load) -> int:
    """What was acknowledged must have survived the SIGKILL. The number of batches found."""
    with server.running(command, port):
        scenario.workload.audit(port, seen.acknowledged)
    return sum(seen.acknowledged)
