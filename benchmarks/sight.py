"""When people see an answer begin, stop, and have again what they missed: producer and reader in two processes."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from itertools import pairwise
from typing import Final

import anyio
import anyio.abc
import msgspec
from anyio.streams.buffered import BufferedByteReceiveStream

from benchmarks import cadence, contenders
from benchmarks.contenders import STREAMFOLD
from benchmarks.percentiles import Latencies
from benchmarks.results import Measure, Target
from benchmarks.runner import Folder, Found, Measuring, Scenario, Setting
from benchmarks.viewer import Sight
from consumer import Reader
from consumer.errors import ClientError
from producer import Generation, Producer

SESSION: Final = "s"
STREAM: Final = f"sessions/{SESSION}"
TOKENS: Final = 40
STOPPED_AFTER: Final = 15
"""Tokens of an answer that is stopped; its producer knows nothing of that and goes on."""
SILENCE_S: Final = 0.3
"""How long nothing has to come before it counts as silence."""
WAIT_S_MAX: Final = 30.0

FIRST: Final = "first token"
LATER: Final = "later token"
SILENCE: Final = "stop to silence"
STOP_SEEN: Final = "stop to its status in the view"
RESUME: Final = "resume to caught up"


class _Viewer:
    """What the other process has shown."""

    def __init__(self) -> None:
        self.seen: dict[str, list[Sight]] = defaultdict(list)
        self._changed = anyio.Event()

    async def listen(self, lines: anyio.abc.ByteReceiveStream) -> None:
        buffered = BufferedByteReceiveStream(lines)
        with suppress(anyio.IncompleteRead):
            while True:
                sight = msgspec.json.decode(await buffered.receive_until(b"\n", 65536), type=Sight)
                self.seen[sight.message_id].append(sight)
                self._changed.set()
                self._changed = anyio.Event()

    async def first(self, message_id: str, is_it: Callable[[Sight], bool]) -> Sight:
        """The first sight of a message that is what is waited for."""
        with anyio.fail_after(WAIT_S_MAX):
            while True:
                for sight in self.seen[message_id]:
                    if is_it(sight):
                        return sight
                await self._changed.wait()


@asynccontextmanager
async def _viewing(url: str) -> AsyncGenerator[_Viewer, None]:
    command = [sys.executable, "-m", "benchmarks.viewer", url, SESSION]
    viewer = _Viewer()
    async with await anyio.open_process(command, stderr=subprocess.DEVNULL, cwd=contenders.ROOT) as process:
        assert process.stdout is not None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(viewer.listen, process.stdout)
            await viewer.first("", lambda _: True)  # it is up to date
            yield viewer
            process.kill()
            tasks.cancel_scope.cancel()


async def _measured(url: str, answers: int) -> dict[str, Latencies]:
    took = {name: Latencies() for name in (FIRST, LATER, SILENCE, STOP_SEEN, RESUME)}
    async with Producer(url) as producing, Producer(url) as stopping:
        await producing.create_session(SESSION)
        async with _viewing(url) as viewer:
            for number in range(answers):
                begun = await _end(url)
                if number % 2:
                    await _stopped(producing, stopping, viewer, number, took)
                else:
                    await _answered(producing, viewer, number, took)
                took[RESUME].record(await _caught_up_s(url, begun))
    return took


async def _answered(producing: Producer, viewer: _Viewer, number: int, took: dict[str, Latencies]) -> None:
    """A whole answer; how soon each of its tokens was seen."""
    written_s: list[float] = []
    async with producing.generation(SESSION, f"g{number}", format="text") as writing:
        await _write(writing, number, written_s, TOKENS)
        await viewer.first(f"g{number}", lambda sight: sight.tokens == TOKENS)
    for token, at_s in enumerate(written_s, start=1):
        seen = await viewer.first(f"g{number}", lambda sight, token=token: sight.tokens >= token)  # type: ignore[misc] # a lambda with a default
        took[FIRST if token == 1 else LATER].record(seen.at_s - at_s)


async def _stopped(
    producing: Producer, stopping: Producer, viewer: _Viewer, number: int, took: dict[str, Latencies]
) -> None:
    """An answer that somebody else stops; how long tokens went on to be seen."""
    message_id = f"g{number}"
    async with anyio.create_task_group() as tasks:

        async def write() -> None:
            with suppress(ClientError):
                async with producing.generation(SESSION, message_id, format="text") as writing:
                    await _write(writing, number, [], 100 * TOKENS)

        tasks.start_soon(write)
        await viewer.first(message_id, lambda sight: sight.tokens >= STOPPED_AFTER)
        stopped_s = time.monotonic()
        await stopping.stop(SESSION, message_id)
    aborted = await viewer.first(message_id, lambda sight: sight.status == "aborted")
    await anyio.sleep(SILENCE_S)
    sights = viewer.seen[message_id]
    last_s = max((after.at_s for before, after in pairwise(sights) if after.tokens > before.tokens))
    took[SILENCE].record(max(0.0, last_s - stopped_s))
    took[STOP_SEEN].record(aborted.at_s - stopped_s)


async def _write(writing: Generation, number: int, written_s: list[float], tokens: int) -> None:
    due_s = time.monotonic()
    for _, gap_s in zip(range(tokens), cadence.gaps_s(number), strict=False):
        await anyio.sleep(max(0.0, due_s - time.monotonic()))
        written_s.append(time.monotonic())
        await writing.write("x")
        due_s += gap_s


async def _end(url: str) -> str:
    """The offset of the session's present end."""
    async with Reader(url) as reader, aclosing(reader.follow(STREAM, "now")) as batches:
        async for batch in batches:
            return batch.next_offset
    raise AssertionError("a live read of an open stream does not end")


async def _caught_up_s(url: str, offset: str) -> float:
    """From opening a reader at an offset until it has everything that came since."""
    async with Reader(url) as reader:
        begun_s = time.monotonic()
        async with aclosing(reader.follow(STREAM, offset)) as batches:
            async for batch in batches:
                if batch.up_to_date:
                    return time.monotonic() - begun_s
    raise AssertionError("a live read of an open stream does not end")


@contextmanager
def _opened(setting: Setting) -> Generator[Measuring, None, None]:
    def measure(name: str) -> Found:
        with Folder(setting) as folder, contenders.serving(name, folder / "data") as running:
            took = anyio.run(_measured, f"http://127.0.0.1:{running.port}", 6 if setting.quick else 12)
        return Found(
            {
                f"{what}: {text} ms": one.ms(percentile)
                for what, one in took.items()
                for text, percentile in (("p50", 50.0), ("p99", 99.0))
            },
            histograms={what: one.encoded() for what, one in took.items()},
        )

    yield measure


SIGHT: Final = Scenario(
    "sight",
    "What people see of an answer, and when",
    "From `write` of the producer library to a `SessionView` in another process, at a recorded cadence of 50 tokens/s; "
    "from somebody's stop to the last token that is seen of a producer that goes on; from opening a reader at an old "
    f"offset until it has the {TOKENS} tokens that came since. 12 answers a round (quick: 6), half of them stopped.",
    {
        f"{what}: {text} ms": Measure("ms", more_is_better=False)
        for what in (FIRST, LATER, SILENCE, STOP_SEEN, RESUME)
        for text in ("p50", "p99")
    },
    (STREAMFOLD,),
    _opened,
    (
        Target(f"{FIRST}: p99 ms", STREAMFOLD, 10.0, 5.0),
        Target(f"{SILENCE}: p99 ms", STREAMFOLD, 50.0, 20.0),
        Target(f"{RESUME}: p99 ms", STREAMFOLD, 50.0, 20.0),
    ),
    rounds=5,
)
