"""The Kafka engine as a scenario: what an append waits for, beside a bare producer and consumer of the same Kafka."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

from benchmarks.percentiles import Latencies, latencies
from benchmarks.results import Measure, Target
from benchmarks.runner import Absent, Folder, Found, Measuring, Scenario, Setting

ENGINE: Final = "kafka engine"
BARE_KAFKA: Final = "bare produce and consume"


@contextmanager
def _opened(setting: Setting) -> Generator[Measuring, None, None]:
    found: dict[str, Latencies] = {}

    def measure(name: str) -> Found:
        if not found:
            found.update(_measured(setting))
        seen = found[name]
        return Found({"p50 ms": seen.ms(50), "p99 ms": seen.ms(99)}, histograms={"acks": seen.encoded()})

    yield measure


def _measured(setting: Setting) -> dict[str, Latencies]:
    """Both, by turns of a tenth of a second. Raises Absent."""
    try:
        from benchmarks import kafka  # noqa: PLC0415 -- it loads what only this scenario needs
    except ImportError as error:
        raise Absent(f"{error}: deploy/setup --test") from error
    plan = kafka.Plan(nodes=3, turns=40 if setting.quick else 100)
    with Folder(setting) as folder:
        turns = kafka.measure_turns(plan, folder)
    acks_ms = {ENGINE: turns.ack_ms, BARE_KAFKA: turns.bare_ms}
    return {name: latencies([ms / 1000 for turn in by_turn for ms in turn]) for name, by_turn in acks_ms.items()}


KAFKA: Final = Scenario(
    "kafka",
    "The Kafka engine beside Kafka itself",
    "Three nodes of Kafka and three of ours on the same two cores; one append of 10 chunks at a time, by turns with "
    "a bare aiokafka producer and consumer of the same settings. Failover, catching up: `python -m benchmarks.kafka`.",
    {"p50 ms": Measure("ms", more_is_better=False), "p99 ms": Measure("ms", more_is_better=False)},
    (ENGINE, BARE_KAFKA),
    _opened,
    (Target("p50 ms", ENGINE, 1.5, 1.2, against=BARE_KAFKA),),
    rounds=1,
)
