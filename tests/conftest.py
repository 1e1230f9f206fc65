"""What holds for every test: how Hypothesis searches, and how often the crash test kills."""

import pytest
from hypothesis import settings

# No deadline: a shared machine stalls for longer than any example takes, and pytest-timeout ends what hangs.
settings.register_profile("streamfold", deadline=None, print_blob=True)
settings.load_profile("streamfold")

KILLS_DEFAULT = 100


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--kills",
        type=int,
        default=KILLS_DEFAULT,
        metavar="N",
        help=f"how many times the crash test kills the broker (default {KILLS_DEFAULT})",
    )


@pytest.fixture(scope="session")
def kills(request: pytest.FixtureRequest) -> int:
    """How many times the crash test is to kill the broker."""
    return int(request.config.getoption("--kills"))
