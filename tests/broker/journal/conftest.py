"""A bench for each journal."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from broker.core.entry import Entry, Kind
from tests.broker.journal.bench import Bench


@pytest.fixture(params=["memory", "sqlite", "cluster"])
async def each(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    """A bench of each engine."""
    bench = Bench(request.param, tmp_path / "data")
    yield bench
    await bench.aclose()


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
def entry() -> Callable[..., Entry]:
    """Makes the entry of a proposal number."""

    def make(proposal: int, body: bytes = b"") -> Entry:
        return Entry(Kind.APPEND, "a/path", boot=1, proposal=proposal, body=body)

    return make
