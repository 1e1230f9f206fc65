"""How fast what is stored is read again."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from benchmarks import server, wrk
from benchmarks.contenders import CONTENDERS, NODE_FILE, NODE_MEMORY, RUST_WAL, STREAMFOLD
from benchmarks.results import Measure, Target
from benchmarks.runner import Folder, Found, Measuring, Scenario, Setting
from benchmarks.workload import append, batch, create_streams

CONNECTIONS: Final = 4
STREAMS: Final = 8
BATCHES: Final = 21
CHUNKS: Final = 1000
"""Of each batch: 48 kB, so that a stream is 1 MB, and a page of it."""


@contextmanager
def _opened(setting: Setting) -> Generator[Measuring, None, None]:
    targets = [f"/v1/stream/catch-up/{number}" for number in range(STREAMS)]

    def measure(name: str) -> Found:
        with Folder(setting) as folder:
            port = server.free_port()
            command = CONTENDERS[name].command(port, folder / "data")
            with server.running(command, port) as running:
                create_streams(port, targets)
                for target in targets:
                    for number in range(BATCHES):
                        append(port, target, batch(number, CHUNKS))
                if not CONTENDERS[name].durable:
                    return _read(running, targets, setting.seconds, folder)
            with server.running(command, port) as running:  # what it had in memory is gone
                return _read(running, targets, setting.seconds, folder)

    yield measure


def _read(running: server.Server, targets: list[str], seconds: float, folder: Path) -> Found:
    begun_s = running.cpu_s()
    seen = wrk.run(
        running.port,
        [f"{target}?offset=-1" for target in targets],
        connections=CONNECTIONS,
        seconds=seconds,
        folder=folder,
    )
    read_mb = seen.bytes_per_s / seen.requests_per_s * seen.requests / 1e6
    return Found(
        {
            "MB/s": seen.bytes_per_s / 1e6,
            "p99 ms": seen.p99_ms,
            "server us a MB": (running.cpu_s() - begun_s) / read_mb * 1e6,
        }
    )


CATCH_UP: Final = Scenario(
    "catch-up",
    "Reading what is stored",
    f"Streams of 1 MB in {BATCHES} batches, read from their start over {CONNECTIONS} connections by wrk, after the "
    "server was killed and started again, so that its memory is empty; not so Node in memory, which would lose all.",
    {
        "MB/s": Measure("MB/s", more_is_better=True),
        "p99 ms": Measure("ms", more_is_better=False),
        "server us a MB": Measure("us", more_is_better=False),
    },
    (STREAMFOLD, RUST_WAL, NODE_FILE, NODE_MEMORY),
    _opened,
    (
        Target("MB/s", STREAMFOLD, 10.0, against=NODE_FILE),
        Target("MB/s", STREAMFOLD, 600.0, 1500.0),
    ),
    rounds=5,
)
