"""The README's first command, at ten times its pace, and the arithmetic behind its last line."""

import subprocess
import sys
from pathlib import Path

import pytest

from broker.demo import count_faults

ROOT = Path(__file__).parents[2]
SENT = [("g:0", "a"), ("g:1", "b"), ("g:2", "c")]


@pytest.mark.timeout(120)
def test_answers_survive_a_killed_broker_and_a_dropped_reader() -> None:
    """Exit status 0 and the count line, with faults struck in the middle of two answers."""
    streamfold = Path(sys.executable).with_name("streamfold")
    recordings = ROOT / "tests/data/ai_sdk_generated.jsonl"
    ran = subprocess.run(
        [streamfold, "demo", str(recordings), "--chunks-per-second", "250"],
        capture_output=True,
        check=False,
        timeout=100,
    )
    told = ran.stdout.decode()
    assert ran.returncode == 0, told + ran.stderr.decode()
    assert told.count("SIGKILL") == 2
    assert told.splitlines()[-1] == "chunks sent 212, lost 0, doubled 0, reordered 0"


def test_what_arrived_once_and_in_order_counts_as_no_fault() -> None:
    assert count_faults(SENT, SENT) == (0, 0, 0)


@pytest.mark.parametrize(
    ("seen", "faults"),
    [
        ([SENT[0], SENT[2]], (1, 0, 0)),
        ([SENT[0], SENT[1], SENT[1], SENT[2]], (0, 1, 0)),
        ([SENT[1], SENT[0], SENT[2]], (0, 0, 1)),
        ([SENT[0], ("g:1", "B"), SENT[2]], (1, 0, 0)),
        ([*SENT, ("g:3", "d")], (1, 0, 0)),
        ([], (3, 0, 0)),
    ],
    ids=["lost", "doubled", "reordered", "altered", "never sent", "nothing arrived"],
)
def test_every_fault_is_counted(seen: list[tuple[str, str]], faults: tuple[int, int, int]) -> None:
    assert count_faults(SENT, seen) == faults
