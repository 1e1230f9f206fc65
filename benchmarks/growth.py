"""`python -m benchmarks.growth`: what one more of everything costs a broker, while there are more and more of them.

Processor time of all threads of the broker, in one process and without sockets (`benchmarks.paths`). What is good here
stays the same from row to row.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

import click
import uvloop

from benchmarks import facts, server
from benchmarks.in_process import Client, opened
from benchmarks.paths import CHUNKS, CONNECTIONS, Round, fan_out
from benchmarks.workload import batch
from broker.core.entry import CreateOptions, Entry, Kind, encode_options

ROUND_S: Final = 0.05
AT_ONCE: Final = 1_000
"""Entries proposed together while something is made large."""
BATCH: Final = 1_000


class Growth(NamedTuple):
    """What is measured, of how many what."""

    what: str
    of: str
    counts: tuple[int, ...]
    prepared: Callable[[Path, int], AbstractAsyncContextManager[Round]]


@asynccontextmanager
async def among_streams(folder: Path, streams: int) -> AsyncGenerator[Round]:
    """Appends to streams that lie as far apart as they can, CONNECTIONS at a time."""
    async with opened(folder) as app:
        client, options = Client(app), encode_options(CreateOptions("application/json"))
        for begin in range(0, streams, AT_ONCE):
            names = (f"grow/{n}" for n in range(begin, min(streams, begin + AT_ONCE)))
            await asyncio.gather(*(app.partition.propose(Entry(Kind.CREATE, name, options=options)) for name in names))
        await app.partition.checkpoint()
        body, at, step = batch(0, CHUNKS), 0, max(1, streams // CONNECTIONS - 1)

        async def round_() -> int:
            nonlocal at
            at += CONNECTIONS * step
            wanted = [f"/v1/stream/grow/{(at + n * step) % streams}" for n in range(CONNECTIONS)]
            await asyncio.gather(*(client.call("POST", path, body) for path in wanted))
            return CONNECTIONS

        yield round_


async def _long(client: Client, records: int) -> str:
    path = "/v1/stream/long"
    await client.call("PUT", path)
    for n in range(records // BATCH):
        await client.call("POST", path, batch(n, BATCH))
    return path


@asynccontextmanager
async def to_a_long_stream(folder: Path, records: int) -> AsyncGenerator[Round]:
    """Appends to one stream, CONNECTIONS at a time."""
    async with opened(folder) as app:
        client = Client(app)
        path = await _long(client, records)
        await app.partition.checkpoint()
        body = batch(0, CHUNKS)

        async def round_() -> int:
            await asyncio.gather(*(client.call("POST", path, body) for _ in range(CONNECTIONS)))
            return CONNECTIONS

        yield round_


@asynccontextmanager
async def from_the_midst(folder: Path, records: int) -> AsyncGenerator[Round]:
    """A full response from its middle."""
    async with opened(folder) as app:
        client = Client(app)
        path = await _long(client, records)
        await app.partition.checkpoint()
        stream = await app.partition.stream("long")
        if stream is None:
            raise RuntimeError("the stream is gone")
        query = f"offset={stream.offset(records // 2)}".encode()

        async def round_() -> int:
            await client.call("GET", path, query=query)
            return 1

        yield round_


@asynccontextmanager
async def in_a_long_answer(folder: Path, chunks: int) -> AsyncGenerator[Round]:
    """Batches of one answer that has so many chunks already: its fold is held up to date."""
    async with opened(folder) as app:
        client, path, seq = Client(app), "/v1/sessions/long/generations/answer/chunks", 0
        await client.call("PUT", "/v1/sessions/long")
        await client.call("POST", path, b'[{"type":"start"},{"type":"text-start","id":"0"}]', producer_seq="0")
        for n in range(chunks // BATCH):
            seq += 1
            await client.call("POST", path, batch(n, BATCH), producer_seq=str(seq))
        body = batch(0, CHUNKS)

        async def round_() -> int:
            nonlocal seq
            seq += 1
            await client.call("POST", path, body, producer_seq=str(seq))
            return 1

        yield round_


@asynccontextmanager
async def among_sessions(folder: Path, sessions: int) -> AsyncGenerator[Round]:
    """Batches of as many open answers, CONNECTIONS at a time."""
    async with opened(folder) as app:
        client, seq = Client(app), 0
        first = b'[{"type":"start"},{"type":"text-start","id":"0"}]'
        paths = [f"/v1/sessions/grow-{n}/generations/answer/chunks" for n in range(sessions)]
        for begin in range(0, sessions, AT_ONCE):
            some = range(begin, min(sessions, begin + AT_ONCE))
            await asyncio.gather(*(client.call("PUT", f"/v1/sessions/grow-{n}") for n in some))
            await asyncio.gather(*(client.call("POST", paths[n], first, producer_seq="0") for n in some))
        body, at = batch(0, CHUNKS), 0

        async def round_() -> int:
            nonlocal at, seq
            if at % sessions == 0:
                seq += 1
            wanted = paths[at % sessions : at % sessions + CONNECTIONS]
            at += len(wanted)
            await asyncio.gather(*(client.call("POST", path, body, producer_seq=str(seq)) for path in wanted))
            return len(wanted)

        yield round_


GROWTHS: Final = (
    Growth("append of 10 chunks", "streams", (32, 1_000, 100_000), among_streams),
    Growth("append of 10 chunks", "records in the stream", (1_000, 100_000, 1_000_000), to_a_long_stream),
    Growth("catch-up read of 1 MB", "records in the stream", (50_000, 200_000, 1_000_000), from_the_midst),
    Growth("append of 10 chunks to an answer", "open answers", (32, 320, 3_200), among_sessions),
    Growth("append of 10 chunks to an answer", "chunks in the answer", (1_000, 10_000, 100_000), in_a_long_answer),
    Growth("event to one SSE reader", "readers of the stream", (1, 10, 100, 1_000), fan_out),
)


@click.command()
@click.option("--rounds", default=15, show_default=True, help="How often each is measured.")
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    help="Where the broker keeps its data meanwhile. Default: here.",
)
def main(*, rounds: int, data_dir: Path) -> None:
    """Say what one more costs while there are more and more."""
    server.pin_load()
    with tempfile.TemporaryDirectory(prefix="growth-", dir=data_dir) as folder:
        print(facts.collect(Path(folder)))
    for growth in GROWTHS:
        print(f"\n| {growth.of} | us: {growth.what} |\n|---|---|")
        for count in growth.counts:
            with (
                tempfile.TemporaryDirectory(prefix="growth-", dir=data_dir) as folder,
                asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
            ):
                print(f"| {count:,} | {runner.run(_measured(growth, Path(folder), count, rounds)):,.1f} |")


async def _measured(growth: Growth, folder: Path, count: int, rounds: int) -> float:
    async with growth.prepared(folder / "data", count) as round_:
        await _round_us(round_)
        gc.collect()
        gc.freeze()
        try:
            return median([await _round_us(round_) for _ in range(rounds)])
        finally:
            gc.unfreeze()


async def _round_us(round_: Round) -> float:
    begun_s, walks = time.process_time(), 0
    while not walks or time.process_time() - begun_s < ROUND_S:
        walks += await round_()
    return (time.process_time() - begun_s) / walks * 1e6


if __name__ == "__main__":
    sys.exit(main())
