import pytest

from producer import Producer
from tests.live import Broker


@pytest.fixture
async def session_s(broker: Broker) -> None:
    """The broker has a session `s`."""
    async with Producer(broker.url) as producer:
        await producer.create_session("s")


@pytest.fixture
async def stream_s(broker: Broker) -> None:
    """The broker has a JSON stream `s`."""
    async with Producer(broker.url) as producer:
        await producer.streams.create("s")
