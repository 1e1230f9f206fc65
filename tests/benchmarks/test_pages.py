"""A report that people read: targets, numbers, what was left out, pictures."""

from pathlib import Path

import pytest

from benchmarks import pages, results
from benchmarks.results import Measure, Plot, Report, Run, Scenario, Subject, Target
from tests.benchmarks.test_comparison import FACTS

MEASURES = {"requests/s": Measure("requests/s", more_is_better=True), "p99 ms": Measure("ms", more_is_better=False)}


def rounds(*numbers: tuple[float, float], others_busy: float = 0.0) -> Subject:
    runs = [
        Run(n, {"requests/s": rate, "p99 ms": p99_ms}, others_busy, {"p99 ms": [(50, p99_ms), (90, p99_ms * 2)]})
        for n, (rate, p99_ms) in enumerate(numbers)
    ]
    return Subject(runs)


def report(ours: Subject) -> Report:
    subjects = {"ours": ours, "theirs": rounds((100, 1), (100, 1), (100, 1)), "gone": Subject(absent="not installed")}
    targets = [
        Target("requests/s", "ours", 0.65, 1.0, against="theirs"),
        Target("p99 ms", "ours", 5.0),
        Target("requests/s", "ours", 2.0, against="gone"),
    ]
    plots = [Plot("p99 ms", "p99 by load", "load (%)", "ms", log_y=True)]
    scenario = Scenario("appends", "Appends & more", "About <them>.", MEASURES, targets, plots, subjects)
    return Report("streamfold bench appends", "today", 60.0, FACTS, {"peer": "1.2"}, [scenario])


def test_target_is_judged_by_the_median_of_the_ratios_of_the_rounds() -> None:
    made = report(rounds((60, 4), (70, 6), (120, 5)))
    assert [row[-1] for row in pages.summary(made)[1:]] == ["reached", "reached", "not measured"]
    assert pages.summary(made)[1][1] == "0.70 (0.60 to 1.20) x"


@pytest.mark.parametrize(("rate", "p99_ms", "verdicts"), [(100, 5, ["stretch", "reached"]), (64, 5.1, ["missed"] * 2)])
def test_verdict_names_what_was_reached(rate: float, p99_ms: float, verdicts: list[str]) -> None:
    made = report(rounds((rate, p99_ms)))
    assert [row[-1] for row in pages.summary(made)[1:3]] == verdicts
    assert made.passed == ("missed" not in verdicts)
    reached = 2 - verdicts.count("missed")
    assert pages.score(made).startswith(f"{reached} of 3 reached, {verdicts.count('stretch')} of them the stretch too")


def test_report_is_written_whole_and_read_back(tmp_path: Path) -> None:
    made = report(rounds((60, 4), (70, 6), (120, 5)))
    pages.write(made, tmp_path)
    assert results.load(tmp_path / pages.RESULTS) == made
    markdown, page = (tmp_path / "report.md").read_text(), (tmp_path / "report.html").read_text()
    assert "![p99 by load](appends-p99-ms.svg)" in markdown
    assert "gone: not installed" in markdown
    assert "| requests/s | 70.0 (60.0 to 120) | 100 |" in markdown
    assert "About &lt;them&gt;." in page
    assert '<img src="appends-p99-ms.svg" alt="p99 by load">' in page
    assert "://" not in page, "it asks nobody for anything"
    assert len((tmp_path / "appends-p99-ms.svg").read_bytes()) < 16_000


def test_disturbed_runs_are_told() -> None:
    quiet, disturbed = report(rounds((60, 4))), report(rounds((60, 4), (60, 4), others_busy=0.3))
    assert (quiet.disturbed, pages.disturbance(quiet)) == (False, "")
    assert disturbed.disturbed
    assert "in 2 of 5 runs. Disturbed" in pages.disturbance(disturbed)


def test_results_of_another_format_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text('{"format": 99}')
    with pytest.raises(ValueError, match="format 99"):
        results.load(path)
