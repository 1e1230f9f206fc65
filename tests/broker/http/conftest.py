from collections.abc import AsyncIterator

import pytest

from tests.broker.http.asgi import Client, broker
from tests.broker.http.scene import Scene, staged
from tests.broker.http.session_requests import S


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    """Of a broker on which nothing is yet."""
    async with broker() as client:
        yield client


@pytest.fixture
async def session(client: Client) -> None:
    """The session S on that broker."""
    await client.put(S)


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    async with staged() as scene:
        yield scene
