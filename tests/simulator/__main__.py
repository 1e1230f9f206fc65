"""Run many schedules: `python -m tests.simulator --seeds 10000 --jobs 2`, or `make simulate`.

Each seed is one schedule: two to four nodes, clients, and what goes wrong between them (see `world`). What is violated
is printed with the seed, at the first one with the whole trace, and the exit status is 1. A seed makes the same trace
wherever it runs, so the one that a test or a night of this has named is run again, alone, with

    python -m tests.simulator --from SEED --trace

In one schedule of eight logs lose records (see `losses`); `--losing` runs only those: SEEDS of them, from FROM on.
`--plant NAME` runs with a planted bug (see `plants`), to watch how the checks report it.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

from tests.simulator.losses import losing
from tests.simulator.plants import PLANTS
from tests.simulator.world import run

SHARE = 32
"""Seeds that a job takes at a time: about a second."""


class Share(NamedTuple):
    """Some seeds, and the bug that they run with."""

    seeds: range
    plant: str | None


class Ran(NamedTuple):
    """What became of a share."""

    schedules: int
    cpu_s: float
    violations: dict[int, list[str]]


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulator", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1, help="how many schedules (default: 1)")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first seed (default: 0)")
    parser.add_argument("--jobs", type=int, default=1, help="processes that share them (default: 1)")
    parser.add_argument("--plant", choices=sorted(PLANTS), help="run with this bug")
    parser.add_argument("--losing", action="store_true", help="only seeds whose logs lose records")
    parser.add_argument("--trace", action="store_true", help="print the trace of every schedule")
    parser.add_argument("--go-on", action="store_true", help="do not stop at the first violation")
    options = parser.parse_args()
    seeds = range(options.first, options.first + options.seeds)
    if options.losing:
        seeds = losing(options.first, options.seeds)
    shares = [Share(seeds[at : at + SHARE], options.plant) for at in range(0, len(seeds), SHARE)]
    began, count, cpu_s, failed = time.monotonic(), 0, 0.0, dict[int, list[str]]()
    with _ran(shares, options.jobs) as rans:
        for ran in rans:
            if options.trace:
                _print_traces(shares[count // SHARE])
            for seed, violations in ran.violations.items():
                if not failed and not options.trace:
                    _print_traces(Share(range(seed, seed + 1), options.plant))
                print(f"seed {seed}:", *violations, sep="\n  ")
            count, cpu_s, failed = count + ran.schedules, cpu_s + ran.cpu_s, failed | ran.violations
            if failed and not options.go_on:
                break
    took_s = time.monotonic() - began
    print(
        f"{count} schedules in {took_s:.1f} s, {len(failed)} with violations: {60 * count / took_s:.0f} a minute,"
        f" {1000 * cpu_s / count:.1f} ms of processor time each"
    )
    return 1 if failed else 0


@contextmanager
def _ran(shares: list[Share], jobs: int) -> Iterator[Iterable[Ran]]:
    """What becomes of each, in their order."""
    if jobs == 1:
        _spare_the_collector()
        yield map(_run, shares)
        return
    with ProcessPoolExecutor(jobs, initializer=_spare_the_collector) as pool:
        try:
            yield pool.map(_run, shares)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _run(share: Share) -> Ran:
    began = time.process_time()
    with _planted(share):
        rans = map(run, share.seeds)
        violations = {ran.seed: ran.violations for ran in rans if ran.violations}
    return Ran(len(share.seeds), time.process_time() - began, violations)


def _print_traces(share: Share) -> None:
    """Another run of each makes the same."""
    with _planted(share):
        for seed in share.seeds:
            print(*run(seed).trace, sep="\n")


def _planted(share: Share) -> AbstractContextManager[object]:
    return PLANTS[share.plant]() if share.plant else nullcontext()


def _spare_the_collector() -> None:
    """What a schedule leaves is little: to look through all modules for it, time and again, would cost a tenth."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)


if __name__ == "__main__":
    sys.exit(main())
