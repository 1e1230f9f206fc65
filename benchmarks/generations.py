"""How many answers at once a core carries, a token at a time, with each token durable in time."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Final, NamedTuple

from benchmarks import cadence, contenders, upload_load
from benchmarks.contenders import RUST_WAL, STREAMFOLD
from benchmarks.percentiles import Latencies
from benchmarks.results import Measure, Target
from benchmarks.runner import Folder, Found, Measuring, Scenario, Setting
from benchmarks.server import Server
from benchmarks.upload_load import NdjsonWriter, PostWriter, StreamPostWriter, WebSocketWriter, WriterOf
from benchmarks.workload import Invalid, create_generations, create_streams

P99_MS_MAX: Final = 50.0
LADDER: Final = tuple(round(8 * 2 ** (step / 4)) for step in range(37))
"""Numbers of answers that are tried: each a fifth more than the one before, from 8 to 4,096."""
FIRST_RUNG: Final = 8
"""32 answers."""
DOUBLE: Final = 4
LOAD_BUSY_MAX: Final = 0.9
"""Share of its core from which it may be the load that is too slow."""


class _Way(NamedTuple):
    """How tokens travel, and to whom."""

    contender: str
    writer_of: WriterOf
    prepared: Callable[[int, str, int], list[str]]
    """Makes what so many answers are written to, under a name, on a port; returns their targets."""


def _generations(suffix: str) -> Callable[[int, str, int], list[str]]:
    def prepare(port: int, name: str, count: int) -> list[str]:
        sessions = [f"{name}-{number}" for number in range(count)]
        create_generations(port, sessions)
        return [f"/v1/sessions/{session}/generations/answer/{suffix}" for session in sessions]

    return prepare


def _streams(port: int, name: str, count: int) -> list[str]:
    targets = [f"/v1/stream/{name}/{number}" for number in range(count)]
    create_streams(port, targets)
    return targets


POST: Final = "streamfold, one POST a token"
NDJSON: Final = "streamfold, NDJSON"
WEBSOCKET: Final = "streamfold, WebSocket"
RUST: Final = "Rust, one POST a token"
WAYS: Final = {
    WEBSOCKET: _Way(STREAMFOLD, WebSocketWriter, _generations("upload")),
    NDJSON: _Way(STREAMFOLD, NdjsonWriter, _generations("chunks")),
    POST: _Way(STREAMFOLD, PostWriter, _generations("chunks")),
    RUST: _Way(RUST_WAL, StreamPostWriter, _streams),
}


class _Try(NamedTuple):
    """So many answers at once, and what came of it."""

    latencies: Latencies
    load_busy: float
    server_us: float = 0.0
    """Of its processor time, for each token."""

    @property
    def is_carried(self) -> bool:
        return self.latencies.ms(99) <= P99_MS_MAX


class _Climb:
    """Looks for the highest rung that a server carries."""

    def __init__(self, tried: Callable[[int], _Try | None]) -> None:
        self._tried = tried
        self.best: _Try | None = None
        self.load_bound = False
        """Whether the load was busy with what was too much."""

    def highest(self, start: int, step: int) -> int | None:
        """The rung; None if not even the lowest. In such steps until it is between two of them, then in halves."""
        rung, carried, lost = start, -1, len(LADDER)
        while carried + 1 < lost:
            found = self._tried(LADDER[rung])
            if found is not None and found.is_carried:
                carried, self.best = rung, found
            else:
                lost, self.load_bound = rung, found is not None and found.load_busy > LOAD_BUSY_MAX
            if lost == len(LADDER):
                rung = min(rung + step, lost - 1)
            elif carried < 0:
                rung = max(0, rung - step)
            else:
                rung = (carried + lost) // 2
            if carried < 0 and lost == 0:
                return None
        return carried


@contextmanager
def _opened(setting: Setting) -> Generator[Measuring, None, None]:
    starts: dict[str, int] = {}

    def measure(name: str) -> Found:
        way = WAYS[name]
        with Folder(setting) as folder, contenders.serving(way.contender, folder / "data") as running:
            climb = _Climb(lambda count: _tried(way, running, count, setting))
            rung = climb.highest(starts.get(name, FIRST_RUNG), step=1 if name in starts else DOUBLE)
        if rung is None or climb.best is None:
            return Found({"answers": 0.0}, notes=[f"not even {LADDER[0]}"])
        starts[name] = rung
        seen = climb.best.latencies
        numbers = {
            "answers": float(LADDER[rung]),
            "p50 ms": seen.ms(50),
            "p99 ms": seen.ms(99),
            "server us": climb.best.server_us,
            "load busy": climb.best.load_busy,
        }
        notes = ["the load was busy with more: a lower bound"] if climb.load_bound else []
        return Found(numbers, histograms={"durable": seen.encoded()}, notes=notes)

    yield measure


def _tried(way: _Way, running: Server, count: int, setting: Setting) -> _Try | None:
    """What is lost once may be the machine's stall: a number is lost when it is lost twice."""
    first = _attempt(way, running, count, setting)
    return first if first is not None and first.is_carried else _attempt(way, running, count, setting) or first


def _attempt(way: _Way, running: Server, count: int, setting: Setting) -> _Try | None:
    """None when it is not carried at all."""
    try:
        targets = way.prepared(running.port, f"at-once-{time.monotonic_ns()}", count)
        used_s = running.cpu_s()
        seen = upload_load.run(
            running.port, targets, way.writer_of, warm_up_s=setting.warm_up_s, measured_s=setting.seconds
        )
    except Invalid:
        return None
    return _Try(seen.latencies, seen.load_busy, (running.cpu_s() - used_s) / seen.tokens * 1e6)


GENERATIONS: Final = Scenario(
    "generations",
    "Answers at once",
    f"The most answers at once, one token a write, {cadence.TOKENS_PER_S:g} tokens/s each at a recorded cadence, of "
    f"which 99 of 100 tokens are durable within {P99_MS_MAX:g} ms from when their model sent them. The percentiles are "
    "those at that number.",
    {
        "answers": Measure("at once", more_is_better=True),
        "p50 ms": Measure("ms"),
        "p99 ms": Measure("ms"),
        "server us": Measure("us a token"),
        "load busy": Measure("of a core"),
    },
    tuple(WAYS),
    _opened,
    (Target("answers", NDJSON, 1.0, 2.0, against=RUST), Target("answers", WEBSOCKET, 1.0, 2.0, against=RUST)),
)
