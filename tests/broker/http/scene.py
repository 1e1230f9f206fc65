"""A broker of streams whose time and whose sweeper are the test's own, and forks in it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple, cast

from broker import App, Settings
from broker.http import stream_api
from broker.http.bodies import Bodies
from broker.http.endpoint import Endpoint
from broker.http.live_readers import LiveReaders
from broker.http.stream_api import StreamApi
from broker.http.traffic import Traffic
from broker.partition import Partition
from broker.sweeper import Sweeper
from tests.broker.held import HeldJournal, HeldStore, opened
from tests.broker.http.asgi import Answer, Client

A, B, C, D = "/v1/stream/a", "/v1/stream/b", "/v1/stream/c", "/v1/stream/d"


class Scene(NamedTuple):
    """A broker whose time and whose sweeper are the test's own."""

    journal: HeldJournal
    partition: Partition
    store: HeldStore
    client: Client
    sweeper: Sweeper

    async def children(self, path: str) -> list[str]:
        """The paths of the forks that a stream notes."""
        stream = await self.partition.stream(path)
        assert stream is not None
        return [child.path for child in stream.children]

    async def let_go(self) -> None:
        """Let everything be swept that may be."""
        await self.sweeper.clear_up()
        await self.partition.checkpoint()
        while await self.partition.sweep():
            pass

    async def check_that_nothing_is_left(self) -> None:
        """No row, no page, nothing to sweep."""
        assert await self.store.keys(b"", b"", 10) == []
        for life in {life for checkpoint in self.store.written for life, _ in checkpoint.pages}:
            assert await self.store.read(life, 0, 100) == []


@asynccontextmanager
async def staged() -> AsyncIterator[Scene]:
    journal, store = HeldJournal(), HeldStore()
    async with opened(journal, store) as partition:
        live = LiveReaders(10)
        settings = Settings(engine="memory", long_poll_s=0.05)
        api = StreamApi(partition, settings, Bodies(settings.body_bytes_max), live)
        client = Client(cast("App", Endpoint(stream_api.PREFIX, api.respond, Traffic(live))))
        yield Scene(journal, partition, store, client, Sweeper(partition))


async def make_fork(
    client: Client, path: str, source: str, offset: str | None = None, body: bytes = b"", **headers: str
) -> Answer:
    """Ask for a fork as a client that says no more than it has to."""
    told = {name.replace("_", "-"): value for name, value in headers.items()}
    if offset is not None:
        told["stream-fork-offset"] = offset
    return await client.send("PUT", path, body, {"stream-forked-from": source, **told})


async def read(client: Client, path: str, offset: str = "-1") -> list[int]:
    found: list[int] = (await client.get(f"{path}?offset={offset}")).json
    return found


async def chain(client: Client) -> dict[str, str]:
    """a: 0 1 2, b: its first two and 10 11, c: the first three of b and 20. The offsets by what was told them."""
    told = {"a1": (await client.put(A, body=b"[0]")).offset}
    told |= {f"a{n + 1}": (await client.post(A, b"%d" % n)).offset for n in (1, 2)}
    told["b2"] = (await make_fork(client, B, A, told["a2"])).offset
    told |= {f"b{n - 7}": (await client.post(B, b"%d" % n)).offset for n in (10, 11)}
    told["c3"] = (await make_fork(client, C, B, told["b3"])).offset
    told["c4"] = (await client.post(C, b"20")).offset
    return told
