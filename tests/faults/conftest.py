"""What the tests that break things need: time in proportion to the kills asked for."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.small_disk import NoNamespaceError, SmallDisk, small_disk
from tests.missing import missing

DISK_BYTES = 128 * 1024 * 1024  # room for a few segments of the journal, and a checkpoint of what is in them
STORM_S = 150
KILL_S = 4


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A test that kills gets the time that its kills take. Set here: once a test runs, its timeout is fixed."""
    timeout_s = STORM_S + KILL_S * int(config.getoption("--kills"))
    for item in items:
        if isinstance(item, pytest.Function) and "kills" in item.fixturenames:
            item.add_marker(pytest.mark.timeout(timeout_s))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A disk that can really be full. Where nothing may be mounted, its tests are left out."""
    try:
        with small_disk(tmp_path / "disk", DISK_BYTES) as mounted:
            yield mounted
    except NoNamespaceError as error:
        missing(f"no file system of its own: {error}")
