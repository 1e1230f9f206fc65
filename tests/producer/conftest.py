from collections.abc import AsyncIterator

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
