"""`python -m benchmarks.guard`: fails when appends have become much slower than they were, on whatever machine this is.

What is compared are ratios to a bare ASGI application that runs beside the broker, by turns, in the same seconds: never
a time. Two for each way: requests/s, and the processor time of a request. The bounds lie far from what is measured on a
quiet machine, so that only a large regression fails. A run in which somebody else used the cores is made once more; if
that is disturbed as well, the clock is not asked, and only the processor time counts.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

import click

from benchmarks import load, server
from benchmarks.results import DISTURBED
from benchmarks.scenario import Busy
from benchmarks.server import Command, Server
from benchmarks.workload import Batches, ToNothing, ToStreams, Workload

ROUNDS: Final = 5
SECONDS: Final = 0.5
WARM_UP_S: Final = 0.1


class Way(NamedTuple):
    """One way in, and what it may not fall below."""

    name: str
    options: tuple[str, ...]
    workload: Workload
    rate_min: float
    """Its requests/s, as a multiple of the bare application's."""
    cpu_max: float
    """The processor time of one of its requests, as a multiple of the bare application's."""


WAYS: Final = (
    Way("appends of 10 chunks", (), ToStreams(10, 32), rate_min=0.18, cpu_max=4.5),
    Way("the same through ASGI", ("--no-fast-path",), ToStreams(10, 32), rate_min=0.11, cpu_max=7.0),
)
FLOOR: Final = ToNothing(10, 32)


class Seen(NamedTuple):
    """One way in one round, beside the bare application."""

    rate: float
    cpu: float
    others_busy: float


class Verdict(NamedTuple):
    """One way over all rounds."""

    way: Way
    seen: list[Seen]

    @property
    def rate(self) -> float:
        return median(one.rate for one in self.seen)

    @property
    def cpu(self) -> float:
        return median(one.cpu for one in self.seen)

    @property
    def disturbed(self) -> bool:
        """Whether others were at work in most of its rounds."""
        return median(one.others_busy for one in self.seen) >= DISTURBED

    @property
    def passed(self) -> bool:
        """A clock that others disturbed says nothing."""
        return self.cpu <= self.way.cpu_max and (self.disturbed or self.rate >= self.way.rate_min)

    def __str__(self) -> str:
        return (
            f"{self.way.name}: {self.rate:.2f} x the requests/s of bare ASGI (at least {self.way.rate_min:.2f}"
            f"{', not judged: others were at work' if self.disturbed else ''}), {self.cpu:.1f} x its processor time "
            f"(at most {self.way.cpu_max:.1f}): {'passed' if self.passed else 'FAILED'}"
        )


def watched(folder: Path, ways: Sequence[Way] = WAYS) -> list[Verdict]:
    """Measure; once more what did not pass or was disturbed."""
    found = _measured(folder / "first", ways)
    again = [one.way for one in found if not one.passed or one.disturbed]
    if not again:
        return found
    second = {one.way.name: one for one in _measured(folder / "second", again)}
    return [second.get(one.way.name, one) for one in found]


def _measured(folder: Path, ways: Sequence[Way]) -> list[Verdict]:
    """All servers stand there at once, and idle while it is another's turn."""
    with ExitStack() as stack:
        floor = _started(stack, server.bare)
        brokers = [
            _started(stack, partial(_broker, folder / str(number), way.options)) for number, way in enumerate(ways)
        ]
        floor_batches = FLOOR.prepare(floor.port)
        batches = [way.workload.prepare(broker.port) for way, broker in zip(ways, brokers, strict=True)]
        rounds = []
        for _ in range(ROUNDS):
            bare = _turn(floor, floor_batches)
            rounds.append([_beside(_turn(*one), bare) for one in zip(brokers, batches, strict=True)])
    return [Verdict(way, [one[number] for one in rounds]) for number, way in enumerate(ways)]


def _started(stack: ExitStack, command: Callable[[int], Command]) -> Server:
    port = server.free_port()
    return stack.enter_context(server.running(command(port), port))


def _broker(data_dir: Path, options: Sequence[str], port: int) -> Command:
    return server.streamfold(port, "sqlite", data_dir, *options)


class _Turn(NamedTuple):
    requests_per_s: float
    cpu_s: float
    """Of one request."""
    others_busy: float


def _turn(running: Server, batches: list[Batches]) -> _Turn:
    busy = Busy(running)
    seen = load.run(running.port, batches, warm_up_s=WARM_UP_S, measured_s=SECONDS, measuring=busy.begin)
    server_busy, _, others_busy = busy.end()
    for one, count in zip(batches, seen.acknowledged, strict=True):
        one.first += count
    requests_per_s = len(seen.latencies_s()) / SECONDS
    return _Turn(requests_per_s, server_busy / requests_per_s, others_busy)


def _beside(ours: _Turn, bare: _Turn) -> Seen:
    return Seen(
        ours.requests_per_s / bare.requests_per_s,
        ours.cpu_s / bare.cpu_s,
        max(ours.others_busy, bare.others_busy),
    )


@click.command()
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, exists=True, path_type=Path),
    default=Path(),
    help="Where the brokers keep their data meanwhile. Default: here.",
)
def main(*, data_dir: Path) -> None:
    """Fail when appends have become much slower, beside a bare ASGI application."""
    server.pin_load()
    with tempfile.TemporaryDirectory(prefix="bench-", dir=data_dir) as folder:
        found = watched(Path(folder).resolve())
    for one in found:
        print(one)
    sys.exit(any(not one.passed for one in found))


if __name__ == "__main__":
    main()
