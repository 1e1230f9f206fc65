"""The Kafka engine as a scenario: what an append waits for, beside a bare producer and consumer of the same Kafka."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

from benchmarks.percentiles import latencies
from benchmarks.results import Measure, Target
from benchmarks.runner import Absent, Folder, Found, Measuring, Scenario, Setting

ENGINE: Final = "kafka engine"
READ_ENGINE: Final = "kafka engine, read at another node"
BARE_KAFKA: Final = "bare produce and consume"
NODES: Final = 3
TURNS: Final = 25
"""Of each, in a round."""


@contextmanager
def _opened(setting: Setting) -> Generator[Measuring, None, None]:
    try:
        from benchmarks import kafka  # noqa: PLC0415 -- it loads what only this scenario needs
    except ImportError as error:
        yield _absent(f"{error}: deploy/setup --test")
        return
    with Folder(setting) as folder, kafka.taking_turns(NODES, folder) as take:
        taken: dict[str, list[list[float]]] = {}

        def measure(name: str) -> Found:
            if name not in taken:  # all three, by turns of a tenth of a second
                turns = take(TURNS)
                taken.update({ENGINE: turns.ack_ms, READ_ENGINE: turns.read_ms, BARE_KAFKA: turns.bare_ms})
            seen = latencies([ms / 1000 for turn in taken.pop(name) for ms in turn])
            return Found({"p50 ms": seen.ms(50), "p99 ms": seen.ms(99)}, histograms={"acks": seen.encoded()})

        yield measure


def _absent(why: str) -> Measuring:
    def measure(_name: str) -> Found:
        raise Absent(why)

    return measure


KAFKA: Final = Scenario(
    "kafka",
    "The Kafka engine beside Kafka itself",
    "Three nodes of Kafka and three of ours on the same two cores; one append of 10 chunks at a time, while nobody "
    "reads and while another node has a live reader, by turns with a bare aiokafka producer and consumer of the same "
    "settings. Failover, catching up: `python -m benchmarks.kafka`.",
    {"p50 ms": Measure("ms", more_is_better=False), "p99 ms": Measure("ms", more_is_better=False)},
    (ENGINE, READ_ENGINE, BARE_KAFKA),
    _opened,
    (Target("p50 ms", ENGINE, 1.5, 1.2, against=BARE_KAFKA),),
    rounds=5,
)
