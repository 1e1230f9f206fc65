"""The guard fails on a large regression, and only on that."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks import guard
from benchmarks.guard import Seen, Verdict, Way
from benchmarks.workload import ToStreams

WAY = Way("appends", (), ToStreams(10, 32), rate_min=0.2, cpu_max=4.0)
QUIET, BUSY = 0.01, 0.5


def verdict(rate: float, cpu: float, others_busy: float = QUIET) -> Verdict:
    return Verdict(WAY, [Seen(rate, cpu, others_busy)] * 3)


@pytest.mark.parametrize(
    ("found", "passed"),
    [
        (verdict(0.4, 2.0), True),
        (verdict(0.19, 2.0), False),
        (verdict(0.4, 4.1), False),
        (verdict(0.19, 2.0, BUSY), True),
        (verdict(0.4, 4.1, BUSY), False),
    ],
    ids=["quiet", "slow", "costly", "slow-while-others-work", "costly-while-others-work"],
)
def test_regression_fails_by_the_clock_on_a_quiet_machine_and_by_processor_time_on_any(
    found: Verdict, *, passed: bool
) -> None:
    assert found.passed == passed
    assert ("FAILED" in str(found)) != passed


@pytest.mark.parametrize(
    ("second", "passed"), [(verdict(0.4, 2.0), True), (verdict(0.1, 2.0), False)], ids=["better", "as-bad"]
)
def test_failure_counts_only_when_it_is_seen_twice(
    second: Verdict, *, passed: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    runs = iter([[verdict(0.1, 2.0)], [second]])

    def measured(_folder: Path, _ways: Sequence[Way]) -> list[Verdict]:
        return next(runs)

    monkeypatch.setattr(guard, "_measured", measured)
    assert [one.passed for one in guard.watched(tmp_path, [WAY])] == [passed]
