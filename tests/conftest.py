"""What holds for every test: how Hypothesis searches, how often the crash test kills; brokers, one Kafka for all."""

import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio
import pytest
from hypothesis import settings

from tests.kafka.cluster import KafkaCluster
from tests.live import Broker, usual

# No deadline: a shared machine stalls for longer than any example takes, and pytest-timeout ends what hangs.
settings.register_profile("streamfold", deadline=None, print_blob=True)
settings.load_profile("streamfold")

KILLS_DEFAULT = 100
KAFKA_TEST_S = 180


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--kills",
        type=int,
        default=KILLS_DEFAULT,
        metavar="N",
        help=f"how many times the crash test kills the broker (default {KILLS_DEFAULT})",
    )
    parser.addoption(
        "--faults",
        choices=["some", "all"],
        default="some",
        help="which faults befall a cluster: a short run of some, or all of them at length (default some)",
    )
    parser.addoption(
        "--engine",
        choices=["sqlite", "kafka"],
        default="sqlite",
        help="what brokers run on in tests that do not care (default sqlite)",
    )


def pytest_configure() -> None:
    """Let Ctrl+C reach what tests start: what a shell runs in the background ignores it, with all that it starts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what takes minutes, and give time to what runs on Kafka, where each start of a broker makes a topic.

    Set here: once a test runs, its timeout is fixed.
    """
    if config.getoption("--faults") != "all":
        at_length = [item for item in items if isinstance(item, pytest.Function) and "all_faults" in item.fixturenames]
        config.hook.pytest_deselected(items=at_length)
        items[:] = [item for item in items if item not in at_length]
    if config.getoption("--engine") == "kafka":
        for item in items:
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(KAFKA_TEST_S))


@pytest.fixture(scope="session", autouse=True)
def _usual_engine(request: pytest.FixtureRequest) -> None:
    """Run brokers on the engine that was asked for."""
    if request.config.getoption("--engine") == "kafka":
        cluster: KafkaCluster = request.getfixturevalue("kafka")
        usual.engine, usual.env = "kafka", cluster.env


@pytest.fixture(scope="session")
def kills(request: pytest.FixtureRequest) -> int:
    """How many times the crash test is to kill the broker."""
    return int(request.config.getoption("--kills"))


@pytest.fixture(scope="session")
def all_faults() -> None:
    """For tests that take minutes: they are part of a run when `--faults all` asks for them."""


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Broker]:
    """A broker that a test may do anything to."""
    async with Broker(tmp_path / "data") as running:
        yield running


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """One broker for all tests of a module, which do it no harm and have names of their own on it."""
    broker = Broker(tmp_path_factory.mktemp("live") / "data")
    anyio.run(broker.start)
    yield broker
    anyio.run(broker.kill)


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaCluster]:
    """A Kafka of one node, for all tests that break nothing; every test has topics of its own."""
    with KafkaCluster(tmp_path_factory.mktemp("kafka"), sites=1) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def _three_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaCluster]:
    with KafkaCluster(tmp_path_factory.mktemp("three-nodes"), nodes=3, sites=3) as cluster:
        yield cluster


@pytest.fixture
def three_nodes(_three_nodes: KafkaCluster) -> KafkaCluster:
    """A Kafka of three nodes, for the tests that kill some. They leave it whole, unless they fail."""
    _three_nodes.start_missing()
    return _three_nodes
