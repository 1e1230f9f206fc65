"""benchmarks/stopwatch.py, and that every stage of every path is still there and walked."""

import time
from pathlib import Path

import pytest

from benchmarks.paths import WALKS
from benchmarks.profile import profile, told
from benchmarks.stopwatch import Stage, Stopwatch, cost


def _spin(s: float) -> None:
    end_s = time.thread_time() + s
    while time.thread_time() < end_s:
        pass


def _inner() -> None:
    _spin(0.004)


def _outer() -> None:
    _spin(0.002)
    _inner()
    _inner()


def test_a_stage_is_told_without_the_stages_that_it_calls() -> None:
    stopwatch = Stopwatch([Stage("outer", (f"{__name__}:_outer",)), Stage("inner", (f"{__name__}:_inner",))])
    untimed = _outer
    with stopwatch.running():
        _outer()
    assert _outer is untimed
    outer, inner = stopwatch.laps["outer"], stopwatch.laps["inner"]
    assert (outer.calls, outer.inner_calls, inner.calls, inner.inner_calls) == (1, 2, 2, 0)
    assert inner.own_ns > 2 * outer.own_ns > 0


def test_a_stage_that_is_not_there_any_more_is_an_error() -> None:
    with pytest.raises(AttributeError), Stopwatch([Stage("gone", (f"{__name__}:gone",))]).running():
        raise AssertionError


def test_the_cost_of_the_stopwatch_is_told_apart() -> None:
    us, inside = cost()
    assert us > 0.0
    assert 0.0 < inside < 1.0


@pytest.mark.parametrize("path", WALKS)
async def test_every_stage_of_a_path_is_walked(path: str, tmp_path: Path) -> None:
    """Or the table would say that a stage costs nothing which has only moved."""
    profiled = await profile(path, tmp_path, rounds=3)
    idle = [line.stage for line in profiled.lines if not line.calls and not line.beside]
    assert idle == []
    assert profiled.all_us > 0
    assert profiled.what in told(profiled)
