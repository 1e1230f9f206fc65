"""Readers behind a proxy that keeps every live answer to itself until it has ended, in front of a real broker."""

import re
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path

import anyio
import anyio.abc
import pytest
from anyio.streams.buffered import BufferedByteReceiveStream

from consumer import Limits, Reader, SessionView
from producer import Producer
from tests.live import HOST, Broker

READER = Limits(first_event_s_max=0.3, backoff_s_initial=0.01, backoff_s_max=0.1, backoff_s_jitter=0.01)
HEAD_BYTES_MAX = 64 * 1024


class BufferingProxy:
    """One request, one connection. `targets` is what was asked for."""

    def __init__(self, broker: Broker) -> None:
        self.targets: list[str] = []
        self._broker = broker

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        async with (
            await anyio.create_tcp_listener(local_host=HOST) as listener,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(listener.serve, self._serve)
            port = listener.extra(anyio.abc.SocketAttribute.local_port)  # noqa: S610  there is no Django here
            yield f"http://{HOST}:{port}"
            tasks.cancel_scope.cancel()

    async def _serve(self, client: anyio.abc.SocketStream) -> None:
        with suppress(anyio.IncompleteRead, anyio.BrokenResourceError):
            async with client, await anyio.connect_tcp(HOST, self._broker.port) as upstream:
                head = await BufferedByteReceiveStream(client).receive_until(b"\r\n\r\n", HEAD_BYTES_MAX)
                target = head.split(b" ", 2)[1].decode()
                self.targets.append(target)
                await upstream.send(re.sub(rb"(?i)connection: keep-alive", b"connection: close", head) + b"\r\n\r\n")
                if "live=sse" in target:
                    await client.send(b"".join([piece async for piece in upstream]))
                async for piece in upstream:
                    await client.send(piece)


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Broker]:
    async with Broker(tmp_path / "data") as running:
        yield running


async def test_a_reader_gets_every_record_though_no_event_comes_through(broker: Broker) -> None:
    proxy = BufferingProxy(broker)
    async with (
        proxy.serving() as url,
        Producer(broker.url) as producer,
        Reader(url, limits=READER) as reader,
    ):
        await producer.streams.create("s")
        async with aclosing(reader.follow("s")) as batches:
            await anext(batches)
            seen: list[object] = []
            for number in range(5):
                await producer.streams.append("s", number)
                with anyio.fail_after(10):
                    seen += (await anext(batches)).records
            await producer.streams.close("s")
            assert (await anext(batches)).closed

    assert seen == list(range(5))
    assert sum("live=sse" in target for target in proxy.targets) == 1
    assert sum("live=long-poll" in target for target in proxy.targets) >= 4


async def test_a_view_follows_an_answer_though_no_event_comes_through(broker: Broker) -> None:
    proxy = BufferingProxy(broker)
    async with proxy.serving() as url, Producer(broker.url) as producer:
        await producer.create_session("s")
        async with SessionView(url, "s", limits=READER) as view, aclosing(view.follow()) as changes:
            await anext(changes)
            async with producer.generation("s", "g", format="text") as generation:
                for piece in ("hel", "lo"):
                    await generation.write(piece)
                    await generation.flush()
                    with anyio.fail_after(10):
                        await anext(changes)
            with anyio.fail_after(10):
                while not view.messages or view.messages[0]["status"] != "complete":
                    await anext(changes)
            assert view.messages[0]["message"]["parts"][0]["text"] == "hello"

    assert any("live=long-poll" in target for target in proxy.targets)
