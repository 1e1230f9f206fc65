"""`python -m benchmarks.opening`: opening a long session by its messages, beside replaying it.

Replay is what a reader does that has nothing but the log: every record over HTTP, folded. Opening is `GET /messages`
and a live connection at its offset, until that says that nothing is missing. Both with the consumer library, by turns.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from contextlib import aclosing
from pathlib import Path
from statistics import median
from typing import Final

import anyio
import click
import msgspec

from benchmarks import server
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
        await _write(url, chunks, answers)
    replays: list[float] = []
    opens: list[float] = []
    with server.running(command, port):
        opened_s, message_bytes = await _open(url)
        for _ in range(rounds):
            replays.append(await _replay(url))
            opens.append((await _open(url))[0])
    return Result(chunks, answers, message_bytes, median(replays), median(opens), opened_s)


async def _write(url: str, chunks: int, answers: int) -> None:
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


async def _replay(url: str) -> float:
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


async def _open(url: str) -> tuple[float, int]:
    async with Reader(url) as reader:
        begin = time.perf_counter()
        snapshot = await reader.messages(SESSION)
        fold = SessionFold.of_items(snapshot.messages)
        async with aclosing(reader.follow(STREAM, snapshot.offset)) as batches:
            async for batch in batches:
                if batch.up_to_date:
                    break
        took_s = time.perf_counter() - begin
    return took_s, len(msgspec.json.encode(fold.items()))


if __name__ == "__main__":
    main()
