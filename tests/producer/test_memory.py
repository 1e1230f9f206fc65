"""R44: the memory of both sides stays flat, however long an answer is and however many there were."""

import json
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from tests.live import Broker

MIB = 1024 * 1024
BROKER_GROWTH_BYTES_MAX = 40 * MIB
"""What is applied and not in the store yet is in memory: up to one checkpoint (16 MiB of data), and its objects."""
PRODUCER_GROWTH_BYTES_MAX = 8 * MIB
ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
@pytest.mark.parametrize(("answers", "chunks"), [(1, 10_000), (50, 20)])
def test_r44_memory_of_both_sides_stays_flat(tmp_path: Path, answers: int, chunks: int) -> None:
    """The whole of it, 50,000 chunks and 1,000 answers, is `benchmarks.memory`."""
    broker = Broker(tmp_path / "data")
    anyio.run(broker.start)
    try:
        broker_bytes, producer_bytes = looks(broker, answers, chunks)
    finally:
        anyio.run(broker.kill)
    assert len(broker_bytes) > 20
    early = len(broker_bytes) // 5
    assert broker_bytes[-1] - broker_bytes[early] < BROKER_GROWTH_BYTES_MAX
    assert producer_bytes[-1] - producer_bytes[early] < PRODUCER_GROWTH_BYTES_MAX


def looks(broker: Broker, answers: int, chunks: int) -> tuple[list[int], list[int]]:
    """Resident memory of broker and producer, again and again while a process writes these answers."""
    command = [sys.executable, "-m", "benchmarks.memory", "write", str(broker.port), str(answers), str(chunks)]
    broker_bytes, producer_bytes = [], []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        for line in process.stdout:
            broker_bytes.append(broker.resident_bytes())
            producer_bytes.append(json.loads(line)["resident"])
    assert process.returncode == 0
    return broker_bytes, producer_bytes
