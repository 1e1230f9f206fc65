"""`python -m benchmarks.uploads`: how batches should travel, and in what size: what the producer's defaults rest on.

Everything goes through the producer library to `streamfold serve` on SQLite, which has a core to itself. *Flat out* is
one answer written as fast as it is taken; *at cadence* are many answers at once at the pace of a model. Latency is from
`write` to the acknowledgement of the batch, which is after the fsync. Processor time is steadier than the clock when
others are at work on the machine.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Final

import anyio
import click

from benchmarks import cadence, facts, server
from benchmarks.results import Measure
from benchmarks.runner import Folder, Found, Measuring, Scenario, Setting
from producer import Limits, Metrics, Producer, UploadMode

CHUNK: Final = {"type": "text-delta", "id": "0", "delta": "a token or so "}
DEFAULT: Final = Limits()


@dataclass(frozen=True)
class Way:
    """One setting of the producer."""

    name: str
    mode: UploadMode
    limits: Limits = DEFAULT


@dataclass(frozen=True)
class Run:
    """What came of it."""

    seconds: float
    chunks: int
    server_s: float
    client_s: float
    """Of processor time, the writing of the chunks included."""
    metrics: Metrics

    @property
    def chunks_per_s(self) -> float:
        return self.chunks / self.seconds

    @property
    def batches(self) -> int:
        return self.metrics.acknowledged_batches

    @property
    def latency_ms(self) -> float:
        durable = self.metrics.enqueue_to_durable
        return 1000 * durable.total_s / max(1, durable.count)

    def us_a_chunk(self, seconds: float) -> float:
        return 1e6 * seconds / self.chunks


ONE_A_POST: Final = replace(DEFAULT, linger_ms=0, batch_chunks_max=1)
WAYS: Final = [
    Way("one chunk a POST", UploadMode.POST, ONE_A_POST),
    Way("batches by POST", UploadMode.POST),
    Way("NDJSON", UploadMode.NDJSON),
    Way("WebSocket", UploadMode.WEBSOCKET),
]
LINGERS: Final = [Way(f"linger {ms:g} ms", UploadMode.POST, replace(DEFAULT, linger_ms=ms)) for ms in (0, 2, 5, 10, 20)]
WINDOWS: Final = [
    *(Way(f"POST, {n} in flight", UploadMode.POST, replace(DEFAULT, in_flight_max=n)) for n in (1, 2, 4, 8)),
    *(
        Way(f"WebSocket, {n} in flight", UploadMode.WEBSOCKET, replace(DEFAULT, streamed_in_flight_max=n))
        for n in (1, 4, 16, 48)
    ),
]
BATCHES: Final = [
    Way(f"batches of {n}", UploadMode.POST, replace(DEFAULT, batch_chunks_max=n)) for n in (10, 100, 1000, 4000)
]


@click.command()
@click.option("--chunks", default=10_000, show_default=True, help="Of the answer that is written flat out.")
@click.option("--answers", default=20, show_default=True, help="At once, at cadence.")
@click.option("--tokens-per-s", default=50.0, show_default=True, help="Of each answer at cadence.")
@click.option("--seconds", default=4.0, show_default=True, help="How long an answer at cadence goes on.")
@click.option(
    "--rounds", default=3, show_default=True, help="How often each is run, by turns; medians are told, and the range."
)
def main(*, chunks: int, answers: int, tokens_per_s: float, seconds: float, rounds: int) -> None:
    """Compare upload modes, lingers, batch sizes and windows."""
    server.pin_load()
    with tempfile.TemporaryDirectory(prefix="bench-", dir=Path()) as name:
        print(facts.collect(Path(name)))
        port = server.free_port()
        with server.running(server.streamfold(port, "sqlite", Path(name) / "data"), port) as broker:
            flat = [*WAYS, *WINDOWS, *BATCHES]
            _table(
                "flat out",
                flat,
                rounds,
                lambda way: anyio.run(_flat_out, broker, way, chunks),
            )
            at_pace = [*WAYS, *LINGERS, *WINDOWS]
            _table(
                f"{answers} answers of {tokens_per_s:g} tokens/s",
                at_pace,
                rounds,
                lambda way: anyio.run(_at_cadence, broker, way, answers, tokens_per_s, seconds),
            )


def _table(title: str, ways: list[Way], rounds: int, run: Callable[[Way], Run]) -> None:
    columns = ["chunks/s", "range", "batches", "latency ms", "range", "us a chunk: server", "client", "sent again"]
    print(f"\n| {' | '.join([title, *columns])} |\n{'|---' * (len(columns) + 1)}|")
    runs: dict[str, list[Run]] = {way.name: [] for way in ways}
    for number in range(rounds):
        for way in ways:
            runs[way.name].append(run(way))
            print(f"{number + 1}/{rounds} {way.name}", file=sys.stderr)
    for name, found in runs.items():
        rates, latencies = [one.chunks_per_s for one in found], [one.latency_ms for one in found]
        told = [
            *_median_and_range(rates, ",.0f"),
            f"{median(one.batches for one in found):,.0f}",
            *_median_and_range(latencies, ".1f"),
            f"{median(one.us_a_chunk(one.server_s) for one in found):.0f}",
            f"{median(one.us_a_chunk(one.client_s) for one in found):.0f}",
            f"{median(one.metrics.resent_batches for one in found):,.0f}",
        ]
        print(f"| {name} | {' | '.join(told)} |", flush=True)


def _median_and_range(values: list[float], form: str) -> tuple[str, str]:
    """The range says how far a difference between two medians can be believed."""
    return f"{median(values):{form}}", f"{min(values):{form}} to {max(values):{form}}"


class _Clock:
    """Measures from when it is made."""

    def __init__(self, broker: server.Server) -> None:
        self._broker = broker
        self._began_s, self._server_s, self._client_s = time.perf_counter(), broker.cpu_s(), time.process_time()

    def run(self, chunks: int, metrics: Metrics) -> Run:
        return Run(
            time.perf_counter() - self._began_s,
            chunks,
            self._broker.cpu_s() - self._server_s,
            time.process_time() - self._client_s,
            metrics,
        )


async def _flat_out(broker: server.Server, way: Way, chunks: int) -> Run:
    async with Producer(f"http://127.0.0.1:{broker.port}", limits=way.limits, upload=way.mode) as producer:
        session_id = f"flat-{time.monotonic_ns()}"
        await producer.create_session(session_id)
        clock = _Clock(broker)
        async with producer.generation(session_id, "g") as generation:
            written = chunks // 10 if way.limits is ONE_A_POST else chunks
            for _ in range(written):
                await generation.write(CHUNK)
            await generation.flush()
        return clock.run(written, producer.metrics())


async def _at_cadence(broker: server.Server, way: Way, answers: int, tokens_per_s: float, seconds: float) -> Run:
    due_s = [cadence.due(number, seconds, tokens_per_s) for number in range(answers)]
    async with Producer(f"http://127.0.0.1:{broker.port}", limits=way.limits, upload=way.mode) as producer:
        session_id = f"paced-{time.monotonic_ns()}"
        await producer.create_session(session_id)
        clock = _Clock(broker)

        async def answer(number: int) -> None:
            async with producer.generation(session_id, f"g{number}", lane=f"lane-{number}") as generation:
                started_s = time.perf_counter()
                for n, at_s in enumerate(due_s[number]):
                    await anyio.sleep(max(0.0, started_s + at_s - time.perf_counter()))
                    await generation.write({**CHUNK, "delta": f"token {n} "})

        async with anyio.create_task_group() as tasks:
            for number in range(answers):
                tasks.start_soon(answer, number)
        return clock.run(sum(map(len, due_s)), producer.metrics())


@contextmanager
def _opened(setting: Setting) -> Generator[Measuring, None, None]:
    ways = {way.name: way for way in WAYS}
    chunks, answers, seconds = (4_000, 8, 2.0) if setting.quick else (10_000, 20, 4.0)
    port = server.free_port()
    with (
        Folder(setting) as folder,
        server.running(server.streamfold(port, "sqlite", folder / "data"), port) as broker,
    ):

        def measure(name: str) -> Found:
            flat = anyio.run(_flat_out, broker, ways[name], chunks)
            paced = anyio.run(_at_cadence, broker, ways[name], answers, cadence.TOKENS_PER_S, seconds)
            return Found(
                {
                    "flat out: chunks/s": flat.chunks_per_s,
                    "at cadence: latency ms": paced.latency_ms,
                    "at cadence: batches": float(paced.batches),
                    "at cadence: server us a chunk": paced.us_a_chunk(paced.server_s),
                    "at cadence: client us a chunk": paced.us_a_chunk(paced.client_s),
                }
            )

        yield measure


UPLOADS: Final = Scenario(
    "uploads",
    "How batches should travel",
    "The producer library in each of its modes: one answer as fast as it is taken, then 20 answers at once (quick: 8) "
    "at 50 tokens/s each and a recorded cadence. Latency is the mean from `write` to durable.",
    {
        "flat out: chunks/s": Measure("chunks/s", more_is_better=True),
        "at cadence: latency ms": Measure("ms", more_is_better=False),
        "at cadence: batches": Measure("batches"),
        "at cadence: server us a chunk": Measure("us", more_is_better=False),
        "at cadence: client us a chunk": Measure("us", more_is_better=False),
    },
    tuple(way.name for way in WAYS),
    _opened,
    rounds=3,
)


if __name__ == "__main__":
    main()
