"""The load at which latencies are looked at."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from benchmarks import latency
from benchmarks.runner import Setting


def test_what_the_broker_carries_is_measured_anew_in_every_round(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    measured: Iterator[int] = count(1)
    monkeypatch.setattr(latency.Loads, "carried", lambda *_: next(measured))
    loads = latency.Loads(Setting(tmp_path))
    offered = [[loads.of_round(name)[32] for name in ("ours", "a peer", "another")] for _ in range(3)]
    assert offered == [[1, 1, 1], [3, 3, 3], [5, 5, 5]]
