"""The network between sites and Kafka: proxies that delay, stall, hold back and cut, each as its seed says.

A kernel without `netem` leaves TCP proxies, and there is a lot that these cannot show. The kernel of whoever sends has
its bytes confirmed by the proxy: so no connection fails because of what was lost, none is slow to open (a broker that
is cut off accepts, and then says nothing), and congestion windows never shrink. Loss is what TCP makes of it: all that
follows waits until the segment was sent again. Nothing is reordered within a connection, which TCP would mend; between
connections, which is what matters here, everything is. What brokers of Kafka say to each other goes past the proxies.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import NamedTuple, Self

from tests.kafka.cluster import KafkaCluster, Way
from tests.live import HOST

READ_BYTES = 64 * 1024
SEGMENT_BYTES = 1448
"""What a segment of TCP carries over Ethernet."""
PIECES_MAX = 64
"""On their way in one direction of a connection: beyond, whoever sends has to wait."""
RETRANSMIT_S = 0.2
"""Linux's shortest; twice as long each time that the segment is lost again."""


class Weather(NamedTuple):
    """What befalls the bytes of every connection, in each direction."""

    delay_s_min: float = 0.0
    delay_s_max: float = 0.0
    loss: float = 0.0
    """Of segments."""
    resets: float = 0.0
    """Of pieces: instead of arriving, they end all connections of their line."""


CALM = Weather()
BAD = Weather(delay_s_min=0.05, delay_s_max=0.5, loss=0.05, resets=0.002)


class Road:
    """One direction between a site and a broker. While it is not `open`, what is on its way stays there."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.open.set()


class Line:
    """All connections from one site to one broker."""

    def __init__(self, way: Way, seed: str) -> None:
        self.way = way
        self.weather = CALM
        self.to_kafka, self.from_kafka = Road(), Road()
        self.connections = 0
        self._seed = seed
        self._ends: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        server = await asyncio.start_server(self._accept, HOST, self.way.port)
        try:
            yield
        finally:
            server.close()
            for task in self._serving:
                task.cancel()
            await asyncio.gather(*self._serving, return_exceptions=True)

    def reset(self) -> None:
        """End all connections; what is on its way is gone."""
        for end in self._ends:
            end.transport.abort()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving = asyncio.create_task(self._serve(reader, writer))
        self._serving.add(serving)
        serving.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._ends.add(writer)
        try:
            if self.to_kafka.open.is_set() and self.from_kafka.open.is_set():
                await self._connect(reader, writer)
            else:  # it is never made: of what is said on it, nothing arrives
                await self.to_kafka.open.wait()
                await self.from_kafka.open.wait()
        finally:
            writer.transport.abort()
            self._ends.discard(writer)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            broker_reader, broker = await asyncio.open_connection(HOST, self.way.broker_port)
        except OSError:
            return
        self._ends.add(broker)
        self.connections += 1
        try:
            chance = random.Random(f"{self._seed}/{self.connections}")
            there = asyncio.create_task(self._carry(reader, broker, self.to_kafka, chance.random()))
            back = asyncio.create_task(self._carry(broker_reader, writer, self.from_kafka, chance.random()))
            try:
                await asyncio.wait((there, back), return_when=asyncio.FIRST_COMPLETED)
                if back.done() and broker_reader.at_eof():
                    there.cancel()  # else what the client had sent before it was gone is still to arrive
                await asyncio.gather(there, return_exceptions=True)
            finally:
                there.cancel()
                back.cancel()
                await asyncio.gather(there, back, return_exceptions=True)
        finally:
            broker.transport.abort()
            self._ends.discard(broker)

    async def _carry(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, road: Road, seed: float) -> None:
        """Until the source has ended and all of it has arrived, or the sink is gone."""
        on_the_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(PIECES_MAX)
        sending = asyncio.create_task(self._send(source, on_the_way, random.Random(seed)))
        try:
            with suppress(OSError):
                while True:
                    due, piece = await on_the_way.get()
                    await asyncio.sleep(max(0.0, due - asyncio.get_running_loop().time()))
                    await road.open.wait()
                    if not piece:
                        return
                    sink.write(piece)
                    await sink.drain()
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    async def _send(
        self, source: asyncio.StreamReader, on_the_way: asyncio.Queue[tuple[float, bytes]], chance: random.Random
    ) -> None:
        due = 0.0
        piece = b"some"
        while piece:
            piece = await _read(source)
            if chance.random() < self.weather.resets:
                self.reset()
            due = max(due, asyncio.get_running_loop().time() + delay_s(self.weather, len(piece), chance))
            await on_the_way.put((due, piece))


async def _read(source: asyncio.StreamReader) -> bytes:
    """What comes next; nothing at the end, however that came."""
    try:
        return await source.read(READ_BYTES)
    except OSError:
        return b""


def delay_s(weather: Weather, size_bytes: int, chance: random.Random) -> float:
    """From when a piece is sent until the last of its segments is there."""
    took_s = chance.uniform(weather.delay_s_min, weather.delay_s_max)
    for _ in range(0, size_bytes, SEGMENT_BYTES):
        wait_s = RETRANSMIT_S
        while chance.random() < weather.loss:
            took_s += wait_s
            wait_s *= 2
    return took_s


class Network:
    """All lines. Entered, it carries; nothing befalls anybody until somebody says so."""

    def __init__(self, kafka: KafkaCluster, seed: str, sites: int = 3) -> None:
        self._lines = {
            (site, node): Line(way, f"{seed}/{site}/{node}")
            for site in range(sites)
            for node, way in kafka.ways(site).items()
        }
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        for line in self._lines.values():
            await self._stack.enter_async_context(line.serving())
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    def bootstrap(self, site: int) -> str:
        """HOST:PORT of all brokers, as clients of a site want it."""
        return ",".join(f"{HOST}:{line.way.port}" for line in self._of(site))

    def _of(self, site: int | None) -> Iterable[Line]:
        return [line for (at, _), line in self._lines.items() if site in (None, at)]

    @asynccontextmanager
    async def weather(self, weather: Weather) -> AsyncIterator[None]:
        """Everywhere."""
        for line in self._lines.values():
            line.weather = weather
        try:
            yield
        finally:
            for line in self._lines.values():
                line.weather = CALM

    @asynccontextmanager
    async def cut(self, site: int, *, to_kafka: bool = True, from_kafka: bool = True) -> AsyncIterator[None]:
        """Hold back what a site and Kafka say to each other, in one direction or both; it arrives afterwards.

        So does what was said by somebody who has left since.
        """
        roads = [line.to_kafka for line in self._of(site) if to_kafka]
        roads += [line.from_kafka for line in self._of(site) if from_kafka]
        for road in roads:
            road.open.clear()
        try:
            yield
        finally:
            for road in roads:
                road.open.set()

    def reset(self) -> None:
        """End all connections."""
        for line in self._lines.values():
            line.reset()
