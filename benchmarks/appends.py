"""How many durable appends a core carries, in a closed loop."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from benchmarks import contenders, wrk
from benchmarks.contenders import (
    BARE,
    CONTENDERS,
    NODE_FILE,
    NODE_MEMORY,
    RUST_WAL,
    STREAMFOLD,
    STREAMFOLD_ASGI,
)
from benchmarks.results import Measure, Target
from benchmarks.runner import Folder, Found, Measuring, Scenario, Setting
from benchmarks.server import Server
from benchmarks.workload import Invalid, batch, create_streams


class Cell(NamedTuple):
    """One kind of append."""

    chunks: int
    connections: int

    @property
    def name(self) -> str:
        """As its numbers begin."""
        return f"{self.chunks:,} a POST, {self.connections} conns"


CELLS: Final = (Cell(1, 32), Cell(10, 1), Cell(10, 32), Cell(10, 128), Cell(1000, 8))


def per_s(cell: Cell) -> str:
    """The name of its requests/s."""
    return f"{cell.name}: requests/s"


@contextmanager
def _opened(setting: Setting) -> Generator[Measuring, None, None]:
    def measure(name: str) -> Found:
        found = Found({})
        with Folder(setting) as folder, contenders.serving(name, folder / "data") as running:
            for number, cell in enumerate(CELLS):
                try:
                    found.numbers.update(_measured(name, running, cell, f"appends-{number}", setting.seconds, folder))
                except Invalid:
                    if CONTENDERS[name].ours:
                        raise
                    found.notes.append(f"{cell.name}: left out, as it refused some of the requests")
        return found

    yield measure


def _measured(name: str, running: Server, cell: Cell, stream: str, seconds: float, folder: Path) -> dict[str, float]:
    targets = [f"{CONTENDERS[name].prefix}/v1/stream/{stream}/{connection}" for connection in range(cell.connections)]
    if CONTENDERS[name].keeps:
        create_streams(running.port, targets)
    begun_s, body = running.cpu_s(), batch(0, cell.chunks)
    seen = wrk.run(running.port, targets, connections=cell.connections, seconds=seconds, folder=folder, body=body)
    return {
        per_s(cell): seen.requests_per_s,
        f"{cell.name}: p50 ms": seen.p50_ms,
        f"{cell.name}: p99 ms": seen.p99_ms,
        f"{cell.name}: server us": (running.cpu_s() - begun_s) / seen.requests * 1e6,
    }


def _measures(cell: Cell) -> dict[str, Measure]:
    return {
        per_s(cell): Measure("requests/s", more_is_better=True),
        f"{cell.name}: p50 ms": Measure("ms", more_is_better=False),
        f"{cell.name}: p99 ms": Measure("ms", more_is_better=False),
        f"{cell.name}: server us": Measure("us", more_is_better=False),
    }


def _targets() -> tuple[Target, ...]:
    found = []
    for cell in (Cell(10, 32), Cell(10, 128)):
        found.append(Target(per_s(cell), STREAMFOLD, 0.65, 1.0, against=RUST_WAL))
        found.append(Target(per_s(cell), STREAMFOLD, 6.0, against=NODE_FILE))
    found.append(Target(per_s(Cell(10, 32)), STREAMFOLD_ASGI, 0.5, 0.8, against=BARE))
    found.append(Target(per_s(Cell(1000, 8)), STREAMFOLD, 0.5, 0.8, against=RUST_WAL))
    found.append(Target(per_s(Cell(1000, 8)), STREAMFOLD, 2.0, against=NODE_FILE))
    return tuple(found)


APPENDS: Final = Scenario(
    "appends",
    "Durable appends, as many as go",
    "JSON batches to a stream for each connection, in a closed loop by wrk: what throughput there is. The latency of "
    "a closed loop flatters a server that stalls; `latency` has it as one sees it who sends when he has something. "
    "`server us` is the processor time of one request, all threads together.",
    {name: measure for cell in CELLS for name, measure in _measures(cell).items()},
    (STREAMFOLD, STREAMFOLD_ASGI, RUST_WAL, NODE_FILE, NODE_MEMORY, BARE),
    _opened,
    _targets(),
)
