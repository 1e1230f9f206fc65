"""All scenarios, in the order in which they run."""

from __future__ import annotations

from typing import Final

from benchmarks.appends import APPENDS
from benchmarks.audited import AUDITED
from benchmarks.latency import LATENCY
from benchmarks.runner import Scenario

SCENARIOS: Final[tuple[Scenario, ...]] = (APPENDS, LATENCY, AUDITED)
