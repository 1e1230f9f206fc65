"""How much the latencies of events rest on."""

from pathlib import Path

import pytest

from benchmarks.delivery import EVENTS_PER_S, READERS
from benchmarks.runner import Setting


@pytest.mark.parametrize("times", READERS.values(), ids=READERS.keys())
def test_slowest_hundredth_of_a_round_is_more_than_its_one_slowest_event(times: int, tmp_path: Path) -> None:
    assert times * Setting(tmp_path).seconds * EVENTS_PER_S / 100 >= 2
