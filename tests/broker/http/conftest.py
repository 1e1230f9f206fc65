from collections.abc import AsyncIterator

import pytest

from tests.broker.http.asgi import Client, broker
from tests.broker.http.scene import Scene, staged
from tests.broker.http.session_requests import S


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tell the operations of the OpenAPI document apart: of tests with one name pytest-xdist runs one."""
    for item in items:
        label = getattr(item, "operation_label", None)
        if label is not None:
            item._id = item.id.with_params(label)  # noqa: SLF001 -- pytest 9.2 makes it of the function's name alone


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
