"""Run many schedules: `python -m tests.simulator --seeds 1000 --from 0`.

Each seed is one schedule: two to four nodes, clients, and what goes wrong between them (see `world`). What is violated
is printed with the seed, at the first one with the whole trace, and the exit status is 1. A seed makes the same trace
wherever it runs, so the one that a test or a night of this has named is run again, alone, with

    python -m tests.simulator --from SEED --trace

`--plant NAME` runs with a planted bug (see `plants`), to watch how the checks report it.
"""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import nullcontext

from tests.simulator.plants import PLANTS
from tests.simulator.world import run


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulator", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1, help="how many schedules (default: 1)")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first seed (default: 0)")
    parser.add_argument("--plant", choices=sorted(PLANTS), help="run with this bug")
    parser.add_argument("--trace", action="store_true", help="print the trace of every schedule")
    parser.add_argument("--go-on", action="store_true", help="do not stop at the first violation")
    options = parser.parse_args()
    began, failed, count = time.monotonic(), 0, 0
    with PLANTS[options.plant]() if options.plant else nullcontext():
        for seed in range(options.first, options.first + options.seeds):
            ran, count = run(seed), count + 1
            if options.trace or (ran.violations and not failed):
                print(*ran.trace, sep="\n")
            if ran.violations:
                failed += 1
                print(f"seed {seed}:", *ran.violations, sep="\n  ")
                if not options.go_on:
                    break
    print(f"{count} schedules in {time.monotonic() - began:.1f} s, {failed} with violations")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
