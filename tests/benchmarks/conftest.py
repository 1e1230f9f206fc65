"""What starts a server here keeps itself to one core meanwhile; other tests may have both."""

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="module")
def cores() -> Iterator[None]:
    """Give the cores back."""
    if not hasattr(os, "sched_getaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    yield
    os.sched_setaffinity(0, before)
