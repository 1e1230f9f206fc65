"""`python -m benchmarks.profile [PATH …]`: where a microsecond goes on each path of the broker.

First whole rounds without a stopwatch: processor time of the event loop's thread, and of all threads. Then rounds with
one in each stage (`benchmarks.stopwatch`), whose own cost is taken off. Numbers are of one walk, medians of the rounds.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean, median
from typing import Final, NamedTuple

import click
import msgspec
import uvloop

from benchmarks import facts, server
from benchmarks.paths import WALKS, Round, Walk
from benchmarks.stopwatch import Stage, Stopwatch, cost

_REST: Final = "the rest: event loop, tasks, futures, calls into the system"
COST_MAX: Final = 2.0
"""What a stopwatch costs in use, at most, as a multiple of what it costs in a tight loop. Where few calls take long the
difference of two rounds is chance."""
ROUND_S: Final = 0.02
"""A round is repeated until it has taken this long: clocks of processor time are coarse."""


class Line(msgspec.Struct, frozen=True):
    """What a stage takes of one walk, in us of processor time."""

    stage: str
    us: float
    calls: float
    beside: bool


class Profile(msgspec.Struct, frozen=True):
    """One path; `loop_us` is the event loop's thread, `all_us` all threads, without a stopwatch."""

    path: str
    what: str
    loop_us: float
    all_us: float
    lines: list[Line]


class OfOneWalk(NamedTuple):
    """A lap, divided by how often the path was walked."""

    own_us: float
    calls: float
    inner_calls: float


class Took(NamedTuple):
    """What one walk took in a round: processor time of the event loop's thread, of all threads, and by stage."""

    loop_us: float
    all_us: float
    laps: dict[str, OfOneWalk]


@click.command()
@click.argument("paths", nargs=-1, type=click.Choice(list(WALKS)))
@click.option("--rounds", default=40, show_default=True, help="How often each is measured.")
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    help="Where the broker keeps its data meanwhile. Default: here.",
)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Write the numbers as JSON, too.")
def main(*, paths: tuple[str, ...], rounds: int, data_dir: Path, output: Path | None) -> None:
    """Say where a microsecond goes on PATHS; on all of them when none is named."""
    server.pin_load()
    _say_machine(data_dir)
    found = []
    for name in paths or tuple(WALKS):
        with (
            tempfile.TemporaryDirectory(prefix="profile-", dir=data_dir) as folder,
            asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        ):
            found.append(runner.run(profile(name, Path(folder), rounds)))
        print(told(found[-1]))
    if output is not None:
        output.write_bytes(msgspec.json.format(msgspec.json.encode(found)))


async def profile(name: str, folder: Path, rounds: int) -> Profile:
    """Walk one path."""
    walk = WALKS[name]
    async with walk.prepared(folder / name) as round_:
        await _measured(round_)  # what is done once
        gc.collect()
        gc.freeze()
        try:
            return await _profiled(name, walk, round_, rounds)
        finally:
            gc.unfreeze()


async def _profiled(name: str, walk: Walk, round_: Round, rounds: int) -> Profile:
    """With and without a stopwatch in turns, so that what changes on the machine meanwhile changes for both."""
    stopwatch, costs = Stopwatch(walk.stages), cost()
    plain: list[Took] = []
    timed: list[Took] = []
    for _ in range(rounds):
        plain.append(await _measured(round_))
        with stopwatch.running():
            stopwatch.reset()
            timed.append(await _measured(round_, stopwatch))
    loop_us, more_us = (median(took.loop_us for took in all_of_them) for all_of_them in (plain, timed))
    laps = {stage.name: _median_lap([took.laps[stage.name] for took in timed], stage) for stage in walk.stages}
    # The stopwatch's cost with each call: by it a round in the event loop's thread is longer than one without.
    calls = sum(laps[stage.name].calls for stage in walk.stages if not stage.beside)
    cost_us = min(max((more_us - loop_us) / calls, costs.us), COST_MAX * costs.us)
    lines = [
        Line(stage.name, _without(cost_us, costs.inside, laps[stage.name]), laps[stage.name].calls, stage.beside)
        for stage in walk.stages
    ]
    return Profile(name, walk.what, loop_us, median(took.all_us for took in plain), lines)


async def _measured(round_: Round, stopwatch: Stopwatch | None = None) -> Took:
    begun_s, begun_all_s, walks = time.thread_time(), time.process_time(), 0
    while not walks or time.process_time() - begun_all_s < ROUND_S:
        walks += await round_()
    loop_s, all_s = time.thread_time() - begun_s, time.process_time() - begun_all_s
    laps = {} if stopwatch is None else stopwatch.laps
    return Took(
        loop_s / walks * 1e6,
        all_s / walks * 1e6,
        {
            name: OfOneWalk(lap.own_ns / walks / 1e3, lap.calls / walks, lap.inner_calls / walks)
            for name, lap in laps.items()
        },
    )


def _without(cost_us: float, inside: float, lap: OfOneWalk) -> float:
    """What a stage takes when nobody measures it."""
    return max(0.0, lap.own_us - cost_us * (lap.calls * inside + lap.inner_calls * (1 - inside)))


def _median_lap(laps: list[OfOneWalk], stage: Stage) -> OfOneWalk:
    # A checkpoint is not in every round: of what runs beside, the mean says more than the median.
    middle = mean if stage.beside else median
    return OfOneWalk(*(middle(numbers) for numbers in zip(*laps, strict=True)))


def told(profile: Profile) -> str:
    """A table in Markdown."""
    inside = sum(line.us for line in profile.lines if not line.beside)
    rows = [(line.stage, line) for line in profile.lines if not line.beside]
    text = [
        "",
        f"## {profile.path}: {profile.what}",
        "",
        f"| {profile.loop_us:.1f} us in the event loop's thread, {profile.all_us:.1f} us in all threads | us | share |",
        "|---|---|---|",
        *(f"| {name} | {line.us:.2f} | {line.us / profile.loop_us:.0%} |" for name, line in rows),
        f"| {_REST} | {profile.loop_us - inside:.2f} | {1 - inside / profile.loop_us:.0%} |",
        *(f"| *beside*, {line.stage} | {line.us:.2f} | |" for line in profile.lines if line.beside),
    ]
    return "\n".join(text)


def _say_machine(data_dir: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="profile-", dir=data_dir) as folder:
        print(facts.collect(Path(folder)))


if __name__ == "__main__":
    sys.exit(main())
