"""A stopwatch for functions that call each other: what each of them takes by itself.

It is no sampler: it counts every call, and what a stage takes is its own processor time, without that of the stages it
calls. So its shares are about the same in every run, whatever else the machine does.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from statistics import median
from typing import Any, Final, NamedTuple

CALIBRATION_CALLS: Final = 5_000
CALIBRATIONS: Final = 9


class Stage(NamedTuple):
    """Functions that are one step of a path, each as `module:qualified.name` where it is looked up by its callers.

    `beside` is for what runs in other threads than the event loop's.
    """

    name: str
    functions: tuple[str, ...]
    beside: bool = False


class Lap:
    """What one stage took, in the threads that it ran in."""

    __slots__ = ("calls", "inner_calls", "own_ns")

    def __init__(self) -> None:
        self.own_ns = 0  # processor time without that of the stages that it called, the stopwatch's cost included
        self.calls = 0
        self.inner_calls = 0  # of stages, by this one


class Cost(NamedTuple):
    """What a stopwatch adds with each call, in us; `inside` of it, 0 to 1, to the stage, the rest to its caller."""

    us: float
    inside: float


class Stopwatch:
    """One lap for each stage."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self._stages = stages
        self._of_thread = threading.local()
        self.laps: dict[str, Lap] = {}
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self.laps = {stage.name: Lap() for stage in self._stages}

    @contextmanager
    def running(self) -> Iterator[None]:
        """Every stage is timed in here. Raises AttributeError for a function that is not there any more."""
        undo: list[Callable[[], None]] = []
        try:
            for stage in self._stages:
                undo.extend(self._time(stage.name, function) for function in stage.functions)
            yield
        finally:
            for step in reversed(undo):
                step()

    def _time(self, name: str, function: str) -> Callable[[], None]:
        module, _, qualified = function.partition(":")
        *owners, attribute = qualified.split(".")
        owner: Any = import_module(module)
        for part in owners:
            owner = getattr(owner, part)
        before = getattr(owner, attribute)
        is_its_own = attribute in vars(owner)
        setattr(owner, attribute, self.timed(name, before))
        return partial(setattr, owner, attribute, before) if is_its_own else partial(delattr, owner, attribute)

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, with the stopwatch on."""
        of_thread, clock_ns = self._of_thread, time.thread_time_ns

        def timed(*args: Any, **options: Any) -> Any:
            try:
                callers: list[list[int]] = of_thread.callers
            except AttributeError:
                callers = of_thread.callers = [[0, 0]]
            inner = [0, 0]  # ns and calls of stages in here
            callers.append(inner)
            begun_ns = clock_ns()
            try:
                return function(*args, **options)
            finally:
                took_ns = clock_ns() - begun_ns
                callers.pop()
                lap = self.laps[name]
                lap.own_ns += took_ns - inner[0]
                lap.calls += 1
                lap.inner_calls += inner[1]
                caller = callers[-1]
                caller[0] += took_ns
                caller[1] += 1

        return timed


def cost() -> Cost:
    """What a stopwatch costs in a tight loop, on this machine now."""
    costs = []
    for _ in range(CALIBRATIONS):
        stopwatch = Stopwatch([Stage("outer", ()), Stage("inner", ())])
        nothing = stopwatch.timed("inner", _nothing)
        plain_ns = _loop_ns(stopwatch.timed("outer", partial(_loop, _nothing)), stopwatch)
        outside_ns = _loop_ns(stopwatch.timed("outer", partial(_loop, nothing)), stopwatch) - plain_ns
        inside_ns = stopwatch.laps["inner"].own_ns
        both_ns = inside_ns + outside_ns
        costs.append((both_ns / CALIBRATION_CALLS / 1e3, inside_ns / both_ns))
    return Cost(*(median(numbers) for numbers in zip(*costs, strict=True)))


def _loop_ns(loop: Callable[[], None], stopwatch: Stopwatch) -> int:
    stopwatch.reset()
    loop()
    return stopwatch.laps["outer"].own_ns


def _loop(function: Callable[[], None]) -> None:
    for _ in range(CALIBRATION_CALLS):
        function()


def _nothing() -> None:
    """As little as a function can do."""
