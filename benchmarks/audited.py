"""Appends by a load of our own that numbers its batches, and whether a killed broker still has each of them."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from benchmarks import scenario
from benchmarks.results import Measure, Target
from benchmarks.runner import Found, Measuring, Scenario, Setting

_ROWS = {one.name: one for one in scenario.SCENARIOS}


@contextmanager
def _opened(setting: Setting) -> Generator[Measuring, None, None]:
    def measure(name: str) -> Found:
        measured = scenario.measure(
            _ROWS[name], setting.folder, warm_up_s=setting.warm_up_s, measured_s=setting.seconds
        )
        numbers = {
            "requests/s": measured.requests_per_s,
            "chunks/s": measured.chunks_per_s,
            "p50 ms": measured.p50_ms,
            "p99 ms": measured.p99_ms,
            "server us": measured.server_us,
            "load busy": measured.load_busy,
            "audited batches": float(measured.audited_batches),
        }
        return Found(numbers)

    yield measure


def _targets() -> tuple[Target, ...]:
    found = []
    for one in scenario.SCENARIOS:
        if one.ratio_min is not None:
            found.append(Target("requests/s", one.name, one.ratio_min, against=scenario.SCENARIOS[0].name))
        if one.chunks_per_s_min is not None:
            found.append(Target("chunks/s", one.name, one.chunks_per_s_min))
    return tuple(found)


AUDITED = Scenario(
    "audited",
    "Appends that are all found again after SIGKILL",
    "A closed loop that numbers every batch. A run on the disk ends with SIGKILL and a new start, after which every "
    "stream must hold exactly the batches that were acknowledged, in order: else there is no result at all. "
    "`load busy` is how much of its core the load itself took.",
    {
        "requests/s": Measure("requests/s", more_is_better=True),
        "chunks/s": Measure("chunks/s", more_is_better=True),
        "p50 ms": Measure("ms", more_is_better=False),
        "p99 ms": Measure("ms", more_is_better=False),
        "server us": Measure("us", more_is_better=False),
        "load busy": Measure("of a core"),
        "audited batches": Measure("batches"),
    },
    tuple(_ROWS),
    _opened,
    _targets(),
    rounds=3,
)
