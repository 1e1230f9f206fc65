"""All scenarios, in the order in which they run."""

from __future__ import annotations

from typing import Final

from benchmarks.appends import APPENDS
from benchmarks.audited import AUDITED
from benchmarks.catch_up import CATCH_UP
from benchmarks.delivery import DELIVERY
from benchmarks.fold import FOLD
from benchmarks.generations import GENERATIONS
from benchmarks.kafka_scenario import KAFKA
from benchmarks.latency import LATENCY
from benchmarks.memory import MEMORY
from benchmarks.opening import OPENING
from benchmarks.runner import Scenario
from benchmarks.sight import SIGHT
from benchmarks.stored_streams import IDLE_READERS, STORED_STREAMS
from benchmarks.uploads import UPLOADS

SCENARIOS: Final[tuple[Scenario, ...]] = (
    APPENDS,
    LATENCY,
    GENERATIONS,
    UPLOADS,
    DELIVERY,
    SIGHT,
    CATCH_UP,
    OPENING,
    FOLD,
    MEMORY,
    IDLE_READERS,
    STORED_STREAMS,
    KAFKA,
    AUDITED,
)
