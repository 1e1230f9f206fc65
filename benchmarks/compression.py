"""`python -m benchmarks.compression`: from what size on it pays to compress a request; the default rests on it.

An answer of varied text is written flat out in batches of one size, by requests, plain and compressed: straight to
`streamfold serve` on SQLite, and through an uplink of a few Mbit/s, which is what a desktop has.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Final

import anyio
import anyio.abc
import click

from benchmarks import facts, server
from producer import Limits, Producer, UploadMode

KIB: Final = 1024
SIZES_KIB: Final = (2, 4, 8, 16, 64, 256)
BYTES: Final = 1024 * KIB
"""Of each answer: enough batches of the largest size to tell."""
SENTENCE_BYTES: Final = 110
"""About, with the JSON around it."""


@dataclass(frozen=True)
class Run:
    """What one answer took."""

    seconds: float
    server_s: float
    client_s: float


@click.command()
@click.option("--mbit", default=10.0, show_default=True, help="Of the uplink, each second.")
@click.option("--rounds", default=5, show_default=True, help="How often each is run, by turns; medians are told.")
def main(*, mbit: float, rounds: int) -> None:
    """Compare plain and compressed batches, by size."""
    server.pin_load()
    with tempfile.TemporaryDirectory(prefix="bench-", dir=Path()) as name:
        print(facts.collect(Path(name)))
        port = server.free_port()
        with server.running(server.streamfold(port, "sqlite", Path(name) / "data"), port) as broker:
            _table("straight", rounds, lambda size, packs: anyio.run(_answer, broker, size, packs, None))
            _table(f"{mbit:g} Mbit/s", rounds, lambda size, packs: anyio.run(_answer, broker, size, packs, mbit))


def _table(title: str, rounds: int, run: Callable[[int, bool], Run]) -> None:
    columns = ["ms a MiB: plain", "compressed", "server ms: plain", "compressed", "client ms: plain", "compressed"]
    print(f"\n| {' | '.join([title, *columns])} |\n{'|---' * (len(columns) + 1)}|")
    runs: dict[tuple[int, bool], list[Run]] = {(size, packs): [] for size in SIZES_KIB for packs in (False, True)}
    for number in range(rounds):
        for (size, packs), found in runs.items():
            found.append(run(size * KIB, packs))
        print(f"{number + 1}/{rounds} {title}", file=sys.stderr)
    for size in SIZES_KIB:
        both = [runs[size, False], runs[size, True]]
        of_each = [
            [1000 * median(one.seconds for one in found) for found in both],
            [1000 * median(one.server_s for one in found) for found in both],
            [1000 * median(one.client_s for one in found) for found in both],
        ]
        print(f"| batches of {size} KiB | {' | '.join(f'{ms:.0f}' for pair in of_each for ms in pair)} |", flush=True)


async def _answer(broker: server.Server, batch_bytes: int, packs: bool, mbit: float | None) -> Run:  # noqa: FBT001  from a table
    limits = replace(
        Limits(), batch_bytes_max=batch_bytes, batch_chunks_max=10_000, compress_bytes_min=1 if packs else None
    )
    async with _uplink(broker.port, mbit) as port:
        url = f"http://127.0.0.1:{port}"
        async with Producer(url, limits=limits, upload=UploadMode.POST) as producer:
            session_id = f"packed-{time.monotonic_ns()}"
            await producer.create_session(session_id)
            began_s, server_s, client_s = time.perf_counter(), broker.cpu_s(), time.process_time()
            async with producer.generation(session_id, "g") as generation:
                for delta in TEXT:
                    await generation.write({"type": "text-delta", "id": "0", "delta": delta})
            return Run(time.perf_counter() - began_s, broker.cpu_s() - server_s, time.process_time() - client_s)


def _deltas() -> list[str]:
    """A sentence each, as adjacent deltas of a model are when they were merged; words as frequent as in texts."""
    chance = random.Random(1)
    words = ["".join(chance.choices("etaoinshrdlu", k=chance.randint(2, 9))) for _ in range(4000)]
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    return [" ".join(chance.choices(words, weights, k=12)) + ". " for _ in range(BYTES // SENTENCE_BYTES)]


TEXT: Final = _deltas()


@asynccontextmanager
async def _uplink(broker_port: int, mbit: float | None) -> AsyncGenerator[int, None]:
    """The port of the broker, or of a relay that lets so much through to it."""
    if mbit is None:
        yield broker_port
        return
    line = _Line(mbit * 1e6 / 8)
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with anyio.create_task_group() as tasks:

        async def relay(client: anyio.abc.SocketStream) -> None:
            broker = await anyio.connect_tcp("127.0.0.1", broker_port)
            async with client, broker, anyio.create_task_group() as both:
                both.start_soon(_pass_on, client, broker, line)
                both.start_soon(_pass_on, broker, client, None)

        tasks.start_soon(listener.serve, relay)
        yield listener.extra(anyio.abc.SocketAttribute.local_port)  # noqa: S610  a socket's, and no database's
        tasks.cancel_scope.cancel()


class _Line:
    """All connections share it."""

    def __init__(self, bytes_per_s: float) -> None:
        self._bytes_per_s = bytes_per_s
        self._free_s = 0.0

    async def carry(self, count: int) -> None:
        now_s = time.perf_counter()
        self._free_s = max(now_s, self._free_s) + count / self._bytes_per_s
        await anyio.sleep(self._free_s - now_s)


async def _pass_on(source: anyio.abc.ByteStream, target: anyio.abc.ByteStream, line: _Line | None) -> None:
    try:
        async for data in source:
            if line is not None:
                await line.carry(len(data))
            await target.send(data)
    except (anyio.BrokenResourceError, anyio.ClosedResourceError):
        pass
    finally:
        with anyio.CancelScope(shield=True):
            await target.aclose()


if __name__ == "__main__":
    main()
