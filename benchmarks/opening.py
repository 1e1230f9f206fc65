"""`python -m benchmarks.opening`: opening a long session by its messages, beside replaying it.

Replay is what a reader does that has nothing but the log: every record over HTTP, folded. Opening is `GET /messages`
and a live connection at its offset, until that says that nothing is missing, as a `SessionView` does it; the reader is
made within the time. Both with the consumer library, by turns.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import aclosing, contextmanager
from pathlib import Path
from statistics import median
from typing import Final

import anyio
import click
import msgspec

from benchmarks import contenders, server
from benchmarks.results import Measure, Target
from benchmarks.runner import Absent, Folder, Found, Measuring, Scenario, Setting
from benchmarks.workload import Invalid
from consumer import Reader
from consumer.session import SessionFold
from producer import Producer

SESSION: Final = "long"
STREAM: Final = f"sessions/{SESSION}"
FLOOR: Final = 100.0
"""Opening must be so many times faster."""


class Result(msgspec.Struct, frozen=True):
    """What was measured; seconds are medians."""

    chunks: int
    answers: int
    message_bytes: int
    replay_s: float
    open_s: float
    open_cold_s: float

    @property
    def ratio(self) -> float:
        """How many times faster opening is."""
        return self.replay_s / self.open_s


@click.command()
@click.option("--chunks", default=100_000, show_default=True, help="In the session, all its answers together.")
@click.option("--answers", default=200, show_default=True, help="Messages that the chunks make.")
@click.option("--rounds", default=7, show_default=True, help="How often each way is taken, by turns.")
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    help="Where the broker keeps its data meanwhile. Default: here.",
)
@click.option("--check", is_flag=True, help="Exit with 1 unless the floor was reached.")
def main(*, chunks: int, answers: int, rounds: int, data_dir: Path, check: bool) -> None:
    """Measure opening a long session by its messages, beside replaying it."""
    server.pin_load()
    with tempfile.TemporaryDirectory(prefix="bench-", dir=data_dir) as name:
        result = asyncio.run(_measure(Path(name), chunks, answers, rounds))
    print(
        f"{result.chunks:,} chunks in {result.answers} answers, {result.message_bytes / 1000:,.0f} kB of messages: "
        f"replay {result.replay_s * 1000:,.0f} ms, open {result.open_s * 1000:,.1f} ms "
        f"({result.open_cold_s * 1000:,.1f} ms after a restart of the broker), {result.ratio:,.0f} times faster"
    )
    if check and result.ratio < FLOOR:
        sys.exit(1)


async def _measure(folder: Path, chunks: int, answers: int, rounds: int) -> Result:
    port = server.free_port()
    url, command = f"http://127.0.0.1:{port}", server.streamfold(port, "sqlite", folder / "data")
    with server.running(command, port):
        await write_session(url, chunks, answers)
    replays: list[float] = []
    opens: list[float] = []
    with server.running(command, port):
        opened_s, message_bytes = await open_session(url)
        for _ in range(rounds):
            replays.append(await replay_session(url))
            opens.append((await open_session(url))[0])
    return Result(chunks, answers, message_bytes, median(replays), median(opens), opened_s)


async def write_session(url: str, chunks: int, answers: int) -> None:
    """Write the session, and wait until a checkpoint has its snapshot."""
    async with Producer(url) as producing:
        await producing.create_session(SESSION)
        for answer in range(answers):
            async with producing.generation(SESSION, f"g{answer}") as writing:
                await writing.write({"type": "start"})
                await writing.write({"type": "text-start", "id": "t"})
                for number in range(chunks // answers - 3):
                    await writing.write({"type": "text-delta", "id": "t", "delta": f"w{number % 1000} "})
                await writing.write({"type": "text-end", "id": "t"})
    await anyio.sleep(3)  # three times as long as a checkpoint may let wait


async def replay_session(url: str) -> float:
    fold = SessionFold()
    async with Reader(url) as reader:
        begin = time.perf_counter()
        async with aclosing(reader.follow(STREAM)) as batches:
            async for batch in batches:
                for record in batch.records:
                    fold.add(record)
                if batch.up_to_date:
                    break
        fold.items()
        return time.perf_counter() - begin


async def open_session(url: str) -> tuple[float, int]:
    begin = time.perf_counter()
    async with Reader(url) as reader:
        snapshot = await reader.messages(SESSION)
        fold = SessionFold.of_items(snapshot.messages)
        async with aclosing(reader.follow_session(SESSION, snapshot.offset)) as batches:
            async for batch in batches:
                if batch.up_to_date:
                    break
        took_s = time.perf_counter() - begin
    return took_s, len(msgspec.json.encode(fold.items()))


@contextmanager
def _opened(setting: Setting) -> Generator[Measuring, None, None]:
    chunks, answers = 100_000, 200
    with Folder(setting) as folder:
        port = server.free_port()
        url, command = f"http://127.0.0.1:{port}", server.streamfold(port, "sqlite", folder / "data")
        with server.running(command, port):
            asyncio.run(write_session(url, chunks, answers))
        with server.running(command, port):

            def measure(name: str) -> Found:
                if name == TYPESCRIPT:
                    return Found({"ms": _replayed_by_node(f"{url}/v1/stream/{STREAM}", chunks)})
                took_s = asyncio.run(replay_session(url) if name == REPLAY else _open_s(url))
                return Found({"ms": took_s * 1000})

            yield measure


async def _open_s(url: str) -> float:
    return (await open_session(url))[0]


def _replayed_by_node(url: str, chunks: int) -> float:
    """Milliseconds. Raises Absent."""
    if not (contenders.PEERS / "node_modules").is_dir():
        raise Absent("@durable-streams/client is not installed: deploy/setup --bench")
    command = [str(contenders.NODE), str(contenders.PEERS / "replay.mjs")]
    told = subprocess.run(command, input=f"{url}\n", capture_output=True, text=True, check=True, timeout=300).stdout
    found = msgspec.json.decode(told, type=_Replayed)
    if found.records < chunks:
        raise Invalid(f"the client read {found.records} records of {chunks} chunks")
    return found.ms


class _Replayed(msgspec.Struct):
    ms: float
    records: int


OPEN: Final = "messages, then live"
REPLAY: Final = "replay by this library"
TYPESCRIPT: Final = "replay by the published TypeScript client"

OPENING: Final = Scenario(
    "opening",
    "Opening a long session",
    "A session of 100,000 chunks in 200 answers: its messages and a live connection from "
    "their offset, beside reading every record; this library folds them, the TypeScript client only reads them.",
    {"ms": Measure("ms", more_is_better=False)},
    (OPEN, REPLAY, TYPESCRIPT),
    _opened,
    (Target("ms", OPEN, 0.01, 0.001, against=TYPESCRIPT), Target("ms", OPEN, 1 / FLOOR, against=REPLAY)),
    rounds=5,
)


if __name__ == "__main__":
    main()
