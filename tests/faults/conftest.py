"""What the tests that break things need: time in proportion to the kills asked for."""

import pytest

STORM_S = 150
KILL_S = 4


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A test that kills gets the time that its kills take. Set here: once a test runs, its timeout is fixed."""
    timeout_s = STORM_S + KILL_S * int(config.getoption("--kills"))
    for item in items:
        if isinstance(item, pytest.Function) and "kills" in item.fixturenames:
            item.add_marker(pytest.mark.timeout(timeout_s))
