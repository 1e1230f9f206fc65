"""`streamfold bench`: measure the broker, beside what others made of the same protocol, and report."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import click

from benchmarks import comparison, contenders, facts, pages, results, runner, server, wrk
from benchmarks.catalogue import SCENARIOS
from benchmarks.results import Report
from benchmarks.runner import Scenario, Setting

_OPTIONS = (
    click.option("--quick", is_flag=True, help="Less of everything: for a look."),
    click.option(
        "--rounds",
        type=click.IntRange(min=1),
        help="How often each is run. [default: 1 to 5, as long as it takes]",
    ),
    click.option("--subject", multiple=True, help="Only subjects with this in their name; may be repeated."),
    click.option(
        "--data-dir",
        type=click.Path(file_okay=False, exists=True, path_type=Path),
        default=Path(),
        help="Where servers keep their data meanwhile: a folder on a real disk. [default: here]",
    ),
    click.option(
        "--report",
        "report_dir",
        type=click.Path(file_okay=False, path_type=Path),
        help="Write results.json, report.md, report.html and pictures into this folder.",
    ),
    click.option("--check", is_flag=True, help="Exit with 1 unless every target was reached, on a quiet machine."),
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def bench() -> None:
    """Measure the broker, beside what others made of the same protocol.

    Servers get one core, the load another; subjects take turns in rounds; medians are told, with the lowest and highest
    round. `deploy/setup --bench` installs the peers.
    """


def _measuring(name: str, scenarios: Sequence[Scenario], short_help: str, text: str) -> None:
    """Add a command that measures these."""

    @bench.command(name, short_help=short_help, help=text)
    def measure(
        *,
        quick: bool,
        rounds: int | None,
        subject: tuple[str, ...],
        data_dir: Path,
        report_dir: Path | None,
        check: bool,
        leave_out: tuple[str, ...] = (),
    ) -> None:
        wanted = [scenario for scenario in scenarios if scenario.name not in leave_out]
        report = _measured(wanted, data_dir, subject, quick=quick, rounds=rounds)
        print("\n" + pages.markdown(report, {}))
        if report_dir is not None:
            pages.write(report, report_dir)
        if report.invalid:
            raise click.ClickException("\n".join(report.invalid))
        if check and (report.disturbed or not report.passed):
            sys.exit(1)

    options = _OPTIONS if len(scenarios) == 1 else (*_OPTIONS, click.option("--leave-out", multiple=True))
    for option in reversed(options):
        option(measure)


_measuring("all", SCENARIOS, "Everything there is.", "Run all scenarios, and tell about the targets.")
for _one in SCENARIOS:
    _measuring(_one.name, [_one], _one.title, f"{_one.title}.\n\n{_one.about}")


@bench.command(short_help="What a change did.")
@click.argument("before", type=click.Path(exists=True, path_type=Path))
@click.argument("after", type=click.Path(exists=True, path_type=Path))
def compare(*, before: Path, after: Path) -> None:
    """Compare two runs: the folders of their reports, or their results.json.

    A number differs when the median of either run lies outside of all rounds of the other.
    """
    try:
        first, second = (results.load(path / pages.RESULTS if path.is_dir() else path) for path in (before, after))
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    for name, report in (("before", first), ("after", second)):
        print(
            f"{name}: {report.facts.commit}, {report.began_at}, {report.command}. {pages.disturbance(report)}".strip()
        )
    print("\n" + comparison.table(comparison.effects(first, second)))


def _measured(
    scenarios: Sequence[Scenario], data_dir: Path, subjects: Sequence[str], *, quick: bool, rounds: int | None
) -> Report:
    server.pin_load()
    began_at, begun_s = datetime.now(UTC), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bench-", dir=data_dir.resolve()) as name:
        setting = Setting(Path(name), quick=quick, rounds=rounds)
        machine = facts.collect(setting.folder)
        print(machine, file=sys.stderr)
        if not machine.durable:
            print("This folder is in memory: nothing in it is durable, and its numbers mean nothing.", file=sys.stderr)
        found = [runner.run(scenario, setting, subjects) for scenario in scenarios]
    return Report(
        command=" ".join(["streamfold bench", *sys.argv[2 if sys.argv[1:2] == ["bench"] else 1 :]]),
        began_at=f"{began_at:%Y-%m-%d %H:%M} UTC",
        took_s=round(time.monotonic() - begun_s, 1),
        facts=machine,
        versions=contenders.versions() | ({"wrk": version} if (version := wrk.version()) else {}),
        scenarios=found,
    )
