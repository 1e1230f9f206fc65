"""Rounds and turns, and what becomes of a run that is not valid."""

import sys
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import runner, server
from benchmarks.catalogue import SCENARIOS
from benchmarks.results import Measure
from benchmarks.runner import Found, Measuring, Scenario, Setting
from benchmarks.workload import Invalid


def scenario(order: list[str], broken_at: int | None = None) -> Scenario:
    @contextmanager
    def opened(_: Setting) -> Generator[Measuring, None, None]:
        def measure(name: str) -> Found:
            order.append(name)
            if len(order) == broken_at:
                raise Invalid("lost a batch")
            return Found({"ms": float(len(order))})

        yield measure

    return Scenario("s", "S", "", {"ms": Measure("ms")}, ("a", "b"), opened)


def test_subjects_take_turns_round_by_round(tmp_path: Path) -> None:
    order: list[str] = []
    found = runner.run(scenario(order), Setting(tmp_path, rounds=3))
    assert order == ["a", "b"] * 3
    assert found.subjects["b"].values("ms") == [2.0, 4.0, 6.0]
    assert found.ratios("ms", "b", "a") == [2.0, 4 / 3, 6 / 5]


def test_rounds_that_are_asked_for_count_above_those_of_the_scenario(tmp_path: Path) -> None:
    long = replace(scenario([]), rounds=2)
    assert [Setting(tmp_path, rounds=asked).rounds_of(long) for asked in (None, 1, 10)] == [2, 1, 10]
    assert Setting(tmp_path, quick=True).rounds_of(scenario([])) == runner.QUICK_ROUNDS_MAX


def test_subject_that_was_invalid_once_has_no_numbers_and_the_others_go_on(tmp_path: Path) -> None:
    found = runner.run(scenario([], broken_at=3), Setting(tmp_path, rounds=3))
    assert found.subjects["a"].runs == []
    assert found.notes == ["a: invalid: Invalid: lost a batch"]
    assert len(found.subjects["b"].runs) == 3


def test_scenario_that_cannot_begin_is_told_as_invalid(tmp_path: Path) -> None:
    def opened(setting: Setting) -> AbstractContextManager[Measuring]:
        raise FileNotFoundError(setting.folder)

    found = runner.run(Scenario("s", "S", "", {}, ("a",), opened), Setting(tmp_path))
    assert found.notes[0].startswith("a: invalid: FileNotFoundError")


@pytest.mark.skipif(sys.platform != "linux", reason="what processes use is read from /proc, which Linux has")
def test_what_we_and_our_children_use_is_ours() -> None:
    begun_s = runner.family_cpu_s()
    with server.running(server.bare(port := server.free_port()), port):
        pass
    assert runner.family_cpu_s() - begun_s > 0.05


@pytest.mark.parametrize("one", SCENARIOS, ids=lambda one: one.name)
def test_targets_name_what_their_scenario_measures(one: Scenario) -> None:
    for target in one.targets:
        assert {target.measure, target.against_measure or target.measure} <= one.measures.keys()
        assert one.measures[target.measure].more_is_better is not None, "a bound needs a direction"
        assert {target.subject, target.against or target.subject} <= set(one.subjects)
