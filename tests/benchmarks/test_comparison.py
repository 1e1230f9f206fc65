"""Two runs of the kit: what differs, and what may be chance."""

from pathlib import Path

from click.testing import CliRunner

from benchmarks import pages, results
from benchmarks.command import bench
from benchmarks.comparison import effects, table
from benchmarks.contenders import BARE, STREAMFOLD
from benchmarks.facts import Facts
from benchmarks.results import Measure, Report, Run, Scenario, Subject

RATE = "requests/s"
P99 = "p99 ms"
FACTS = Facts(
    cpu="a", cores=2, system="b", file_system="ext4", fsync_ms=0.1, python="3", uvicorn="0", uvloop="0", httptools="0",
    sqlite="3", commit="c",
)  # fmt: skip


def report(rates: list[float], p99_ms: list[float], floor: list[float] | None = None) -> Report:
    rounds = zip(rates, p99_ms, strict=True)
    subjects = {STREAMFOLD: Subject([Run(n, {RATE: rate, P99: ms}) for n, (rate, ms) in enumerate(rounds)])}
    if floor is not None:
        subjects[BARE] = Subject([Run(n, {RATE: rate}) for n, rate in enumerate(floor)])
    measures = {RATE: Measure("requests/s", more_is_better=True), P99: Measure("ms", more_is_better=False)}
    scenario = Scenario("appends", "Appends", "", measures, [], [], subjects)
    return Report("streamfold bench appends", "today", 1.0, FACTS, {}, [scenario])


def verdicts(before: Report, after: Report) -> dict[str, str]:
    return {effect.measure: effect.verdict for effect in effects(before, after) if effect.subject == STREAMFOLD}


def test_medians_outside_of_the_other_rounds_are_a_difference_in_the_sense_of_the_measure() -> None:
    before, after = report([100, 110, 120], [5, 6, 7]), report([150, 160, 170], [8, 9, 10])
    assert verdicts(before, after) == {RATE: "better", P99: "worse"}
    assert verdicts(after, before) == {RATE: "worse", P99: "better"}


def test_median_within_the_other_rounds_is_no_difference() -> None:
    before, after = report([100, 110, 150], [5, 6, 7]), report([120, 130, 140], [6.5, 6.5, 6.5])
    assert verdicts(before, after) == {RATE: "no difference", P99: "no difference"}


def test_machine_that_was_slower_for_the_floor_as_well_is_no_slower_broker() -> None:
    before = report([100, 110, 120], [5, 6, 7], floor=[1000, 1100, 1200])
    after = report([50, 55, 60], [5, 6, 7], floor=[500, 550, 600])
    assert verdicts(before, after)[RATE] == "no difference"
    assert verdicts(report([100, 110, 120], [5, 6, 7]), report([50, 55, 60], [5, 6, 7]))[RATE] == "worse"


def test_compare_reads_two_folders_of_reports(tmp_path: Path) -> None:
    for name, rates in (("before", [100.0, 110.0, 120.0]), ("after", [150.0, 160.0, 170.0])):
        (tmp_path / name).mkdir()
        results.save(report(rates, [5, 6, 7]), tmp_path / name / pages.RESULTS)
    told = CliRunner().invoke(bench, ["compare", str(tmp_path / "before"), str(tmp_path / "after")])
    assert told.exit_code == 0, told.output
    assert "| appends, streamfold, requests/s | 110 | 160 | 1.45 (1.36 to 1.55) | better |" in told.output
    assert "| no difference |" in told.output


def test_ratio_has_the_spread_of_the_later_run() -> None:
    [effect, _] = effects(report([100, 100, 100], [5, 6, 7]), report([150, 160, 180], [5, 6, 7]))
    assert effect.ratio == (1.6, 1.5, 1.8)
    assert "| 1.60 (1.50 to 1.80) | better |" in table([effect])
