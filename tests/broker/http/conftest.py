from collections.abc import AsyncIterator

import pytest

from tests.broker.http.asgi import Client, broker
from tests.broker.http.scene import Scene, staged


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    """Of a broker on which nothing is yet."""
    async with broker() as client:
        yield client


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    async with staged() as scene:
        yield scene
