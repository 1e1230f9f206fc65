"""`python -m benchmarks`: measure, compare with the floors, report."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from statistics import median

import click

from benchmarks import facts, load, report, scenario, server, wrk
from benchmarks.scenario import BARE, SCENARIOS, Measured, Scenario
from benchmarks.workload import Invalid


@click.command()
@click.option("--rounds", default=5, show_default=True, help="How often each scenario runs, in turn with the others.")
@click.option("--seconds", default=4.0, show_default=True, help="Measured in each run.")
@click.option("--warm-up", default=1.0, show_default=True, help="Seconds before that.")
@click.option("--only", multiple=True, help="Leave out scenarios without this in their name; may be repeated.")
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    help="Where the servers keep their data meanwhile: a folder on a real disk. Default: here.",
)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Write all results there as JSON.")
@click.option("--check", is_flag=True, help="Exit with 1 unless every floor was reached, on a quiet machine.")
def main(
    *,
    rounds: int,
    seconds: float,
    warm_up: float,
    only: tuple[str, ...],
    data_dir: Path,
    output: Path | None,
    check: bool,
) -> None:
    """Measure the broker beside a bare ASGI application, each on one core, the load on another."""
    wanted = [one for one in SCENARIOS if one.engine == BARE or not only or any(part in one.name for part in only)]
    server.pin_load()
    with tempfile.TemporaryDirectory(prefix="bench-", dir=data_dir) as name:
        folder = Path(name)
        machine = facts.collect(folder)
        print(machine)
        if not machine.durable:
            print("This folder is in memory: nothing in it is durable, and its numbers mean nothing.", file=sys.stderr)
        try:
            found = _measure(wanted, folder, rounds, warm_up, seconds)
            wrk_ratio = _wrk_ratio(folder, rounds, warm_up, seconds)
        except Invalid as error:
            sys.exit(f"invalid: {error}")
    print("\n" + report.table(found))
    if disturbed := report.disturbance(found):
        print(f"\n{disturbed}")
    if wrk_ratio is not None:
        print(f"\nwrk gets {wrk_ratio:.2f} times as many requests/s out of the bare application as this load.")
    if output is not None:
        output.write_bytes(report.raw(machine, found, wrk_ratio))
    if check and not all(row.passed for row in found):
        sys.exit(1)


def _measure(
    wanted: list[Scenario], folder: Path, rounds: int, warm_up_s: float, measured_s: float
) -> list[report.Row]:
    """All scenarios in turn, and again: what changes on the machine meanwhile changes for all of them."""
    results: list[list[Measured]] = []
    for number in range(1, rounds + 1):
        results.append([])
        for one in wanted:
            measured = scenario.measure(one, folder, warm_up_s=warm_up_s, measured_s=measured_s)
            results[-1].append(measured)
            print(f"{number}/{rounds} {one.name}: {measured.requests_per_s:,.0f} requests/s", file=sys.stderr)
    return report.rows(wanted, results)


def _wrk_ratio(folder: Path, rounds: int, warm_up_s: float, measured_s: float) -> float | None:
    """What wrk gets out of the bare application, as a multiple of what we get, in turn; None where there is no wrk."""
    if not wrk.installed():
        return None
    workload, port, ratios = SCENARIOS[0].workload, server.free_port(), []
    with server.running(server.bare(port), port):
        batches = workload.prepare(port)
        for _ in range(rounds):
            seen = load.run(port, batches, warm_up_s=warm_up_s, measured_s=measured_s)
            wrk_per_s = wrk.requests_per_s(port, batches[0], workload.connections, measured_s, folder)
            ratios.append(wrk_per_s / (len(seen.latencies_s()) / measured_s))
    return median(ratios)


if __name__ == "__main__":
    main()
