"""What a test needs of the machine and does not find: left out where somebody works, a failure where all must run."""

import os
from typing import NoReturn

import pytest


def missing(what: str) -> NoReturn:
    """Skip the test that needs it. Under `CI=true` it fails: a run that left something out is not green."""
    if os.environ.get("CI") == "true":
        pytest.fail(what)
    pytest.skip(what)  # the one place: CI never gets here
