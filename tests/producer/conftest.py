from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from producer import Limits
from tests.producer.model import ModelBroker, serving

IMPATIENT = Limits(
    backoff_s_initial=0.005,
    backoff_s_max=0.05,
    backoff_s_jitter=0.005,
    deadline_s=10.0,
    finish_timeout_s=10.0,
    flush_timeout_s=10.0,
)
"""As the defaults, with waits that suit a test."""


@pytest.fixture
def broker() -> ModelBroker:
    """A model broker with a session in it."""
    model = ModelBroker()
    model.create("s")
    return model


@pytest.fixture
async def url(broker: ModelBroker) -> AsyncIterator[str]:
    async with serving(broker) as address:
        yield address


@pytest.fixture
def limits() -> Limits:
    return IMPATIENT


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Of a spool, in a folder that has yet to be made."""
    return tmp_path / "spool" / "spool.sqlite"
