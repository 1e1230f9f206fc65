"""Schedules of several nodes over one log: what must hold does, and the checks see it when it does not."""

import os
import subprocess
import sys

import pytest

from tests.simulator.plants import PLANTS
from tests.simulator.world import run

SEEDS = (224, 226, 427, 526, 755, 103, 157, *range(100))
"""Some for each bug that is planted below; thousands more are run by hand (`make simulate`)."""


def test_nothing_that_must_hold_is_violated_whatever_goes_wrong() -> None:
    """KI1 to KI17 (see `checks`); a seed that fails is run again with `python -m tests.simulator --from SEED`."""
    failed = {ran.seed: ran.violations for ran in map(run, SEEDS) if ran.violations}
    assert not failed


def test_same_seed_makes_the_same_trace_in_any_process() -> None:
    traces = []
    for hash_seed in ("1", "2"):
        command = [sys.executable, "-m", "tests.simulator", "--from", "7", "--trace"]
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=50, check=True)
        traces.append(ran.stdout.splitlines()[:-1])  # the last line says how long it took
    assert traces[0] == traces[1]
    assert traces[0] == run(7).trace


def test_seed_that_fails_in_one_of_several_jobs_is_named_and_fails_alone() -> None:
    plant = "trims_before_it_is_durable"
    command = [sys.executable, "-m", "tests.simulator", "--seeds", "34", "--jobs", "2", "--plant", plant, "--go-on"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    named = [int(line.split()[1].rstrip(":")) for line in ran.stdout.splitlines() if line.startswith("seed ")]
    with PLANTS[plant]():
        assert named == [seed for seed in range(34) if run(seed).violations]
    assert named
    assert ran.returncode == 1


@pytest.mark.parametrize(
    ("plant", "invariants"),
    [
        ("admits_late_copies", {"KI1", "KI3"}),
        ("acknowledges_before_apply", {"KI1"}),
        ("takes_entries_of_another_life", {"KI10"}),
        ("stores_the_head_ahead", {"KI13"}),
        ("lets_time_go_back", {"KI12"}),
        ("believes_where_the_log_says_that_it_ends", {"KI7"}),
        ("trims_behind_the_newest_only", {"KI15"}),
        ("trims_before_it_is_durable", {"KI15"}),
        ("counts_snapshots_unread", {"KI15"}),
        ("begins_with_what_the_log_has_lost", {"KI12"}),
        ("counts_snapshots_of_a_past", {"KI15"}),
    ],
)
def test_planted_bug_is_found_within_the_seeds_that_are_clean_without_it(plant: str, invariants: set[str]) -> None:
    missing = set(invariants)
    with PLANTS[plant]():
        for seed in SEEDS:
            missing -= {violation.partition(":")[0] for violation in run(seed).violations}
            if not missing:
                return
    assert not missing
