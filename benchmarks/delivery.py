"""How long it takes from an append to its arrival at every reader."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final, cast

import uvloop

from benchmarks import contenders
from benchmarks.contenders import CONTENDERS, NODE_FILE, NODE_MEMORY, RUST_WAL, STREAMFOLD
from benchmarks.load import is_whole
from benchmarks.percentiles import Latencies
from benchmarks.reader_load import Readers
from benchmarks.results import Measure, Plot, Target
from benchmarks.runner import Folder, Found, Measuring, Scenario, Setting
from benchmarks.workload import Batches, Invalid, create_streams

READERS: Final = {1: 10, 100: 5, 1000: 5}
"""So many readers, and how many times as long as in other scenarios COMPARED are measured. A latency is one event's: of
the 40 of two seconds the slowest hundredth is the one that was slowest, which is luck."""
COMPARED: Final = (STREAMFOLD, RUST_WAL)
"""By a target."""
EVENTS_PER_S: Final = 20.0
ARRIVAL_S_MAX: Final = 10.0
"""How long after the last append its last arrival may take."""


class _Writer(asyncio.Protocol):
    """Appends one at a time, each at its time; what is due while one is under way waits for it."""

    _transport: asyncio.WriteTransport

    def __init__(self, batches: Batches) -> None:
        self.failed = ""
        self._batches = batches
        self._waiting: deque[int] = deque()
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)  # uvloop's is one without saying so

    def append(self, number: int) -> None:
        self._waiting.append(number)
        if len(self._waiting) == 1:
            self._transport.writelines(self._batches.request(number))

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not is_whole(self._received):
            return
        if self._received[9:10] != b"2":
            self.failed = self._received[:300].decode(errors="replace")
        self._received = b""
        self._waiting.popleft()
        if self._waiting:
            self._transport.writelines(self._batches.request(self._waiting[0]))

    def close(self) -> None:
        self._transport.abort()


class _Arrivals:
    """What arrived, counted from when its append was due."""

    def __init__(self, events: int, readers: int, first: int) -> None:
        self.latencies = Latencies()
        self.whole = asyncio.Event()
        self.due_s = [number / EVENTS_PER_S for number in range(events)]
        self._first = first  # the numbers before are the warm-up's
        self._missing = events * readers

    def begin(self) -> None:
        """All readers are there: the first append is due now."""
        begun_s = time.perf_counter()
        self.due_s = [begun_s + due_s for due_s in self.due_s]

    def note(self, number: int, now_s: float) -> None:
        if number >= self._first:
            self.latencies.record(now_s - self.due_s[number])
        self._missing -= 1
        if not self._missing:
            self.whole.set()


async def _delivered(port: int, target: str, readers: int, *, warm_up_s: float, measured_s: float) -> Latencies:
    """Raises Invalid when something does not arrive, or a connection is lost."""
    loop = asyncio.get_running_loop()
    writer = _Writer(Batches(target, 1))
    await loop.create_connection(lambda: writer, "127.0.0.1", port)
    events, first = round((warm_up_s + measured_s) * EVENTS_PER_S), round(warm_up_s * EVENTS_PER_S)
    arrivals = _Arrivals(events, readers, first)
    try:
        async with Readers(port, target, readers, arrivals.note) as reading:
            arrivals.begin()
            for number, due_s in enumerate(arrivals.due_s):
                await asyncio.sleep(due_s - time.perf_counter())
                writer.append(number)
            async with asyncio.timeout(ARRIVAL_S_MAX):
                await arrivals.whole.wait()
            reading.require_whole()
    except TimeoutError:
        raise Invalid(writer.failed or f"not everything had arrived {ARRIVAL_S_MAX:g} s later") from None
    finally:
        writer.close()
    return arrivals.latencies


@contextmanager
def _opened(setting: Setting) -> Generator[Measuring, None, None]:
    def measure(name: str) -> Found:
        found = Found({})
        p50, p99 = found.series.setdefault("p50 ms", []), found.series.setdefault("p99 ms", [])
        with Folder(setting) as folder, contenders.serving(name, folder / "data") as running:
            for readers, times in READERS.items():
                try:
                    measured_s = setting.seconds * (times if name in COMPARED else 1)
                    seen = _run(running.port, readers, setting.warm_up_s, measured_s)
                except Invalid as error:
                    if CONTENDERS[name].ours:
                        raise
                    found.notes.append(f"{readers:,} readers: left out: {error}")
                    break
                found.numbers[f"{readers:,} readers: p50 ms"] = seen.ms(50)
                found.numbers[f"{readers:,} readers: p99 ms"] = seen.ms(99)
                found.histograms[f"{readers:,} readers"] = seen.encoded()
                p50.append((readers, seen.ms(50)))
                p99.append((readers, seen.ms(99)))
        return found

    yield measure


def _run(port: int, readers: int, warm_up_s: float, measured_s: float) -> Latencies:
    target = f"/v1/stream/delivery/{readers}"
    create_streams(port, [target])
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_delivered(port, target, readers, warm_up_s=warm_up_s, measured_s=measured_s))


DELIVERY: Final = Scenario(
    "delivery",
    "From an append to its arrival at all readers",
    f"{EVENTS_PER_S:g} appends/s to one stream, at fixed times, and its readers over SSE. A latency counts from when "
    "the append was due to when a reader has the event: the commit, the wake-up and the way to the last reader "
    "are all in it. Readers and writer are one process on one core, the same for everyone. A round has 400 events for "
    f"one reader and 200 for more, of {' and '.join(COMPARED)}; 40 of the others.",
    {
        f"{readers:,} readers: {text} ms": Measure("ms", more_is_better=False)
        for readers in READERS
        for text in ("p50", "p99")
    },
    (*COMPARED, NODE_FILE, NODE_MEMORY),
    _opened,
    tuple(Target(f"{readers:,} readers: p99 ms", STREAMFOLD, 1.3, 1.0, against=RUST_WAL) for readers in READERS),
    (
        Plot("p99 ms", "99 of 100 events have arrived within", "readers", "ms", log_x=True, log_y=True),
        Plot("p50 ms", "half of the events have arrived within", "readers", "ms", log_x=True, log_y=True),
    ),
)
