"""A bench for each journal."""

from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest

from broker.core.entry import Entry, Kind
from broker.journal.kafka_topic import KafkaTopic
from tests.broker.journal.bench import Bench, MakeEntry
from tests.kafka.cluster import KafkaCluster


@pytest.fixture(params=["memory", "sqlite", "cluster", "kafka"])
async def each(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    """A bench of each engine."""
    topic = request.getfixturevalue("topic") if request.param == "kafka" else None
    bench = Bench(request.param, tmp_path / "data", topic)
    yield bench
    await bench.aclose()


@pytest.fixture
def topic(kafka: KafkaCluster) -> KafkaTopic:
    """A topic of this test's own, not made yet."""
    return KafkaTopic(kafka.bootstrap, f"test-{uuid4().hex}")


@pytest.fixture(params=["memory", "sqlite"])
async def alone(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    """A bench of each engine whose time is this process's own."""
    bench = Bench(request.param, tmp_path / "data")
    yield bench
    await bench.aclose()


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """A bench of the SQLite journal."""
    bench = Bench("sqlite", tmp_path / "data")
    yield bench
    await bench.aclose()


@pytest.fixture
def entry() -> MakeEntry:
    """Makes the entry of a proposal number."""

    def make(proposal: int, body: bytes = b"") -> Entry:
        return Entry(Kind.APPEND, "a/path", boot=1, proposal=proposal, body=body)

    return make
