"""Clients of the simulation: they do what published ones do, on every node in turn, and keep to their contract.

The part of it that counts: other bytes are sent for a seq only after every earlier attempt was definitely refused.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from random import Random
from typing import NamedTuple

from broker.core.entry import Entry
from broker.core.fork import lineage_of
from broker.core.outcome import Outcome, Result
from broker.core.page import records
from broker.errors import BrokerError, Unavailable
from broker.partitions import Partitioned
from consumer.wire import Code
from tests.broker.core import entries
from tests.simulator.history import Ending, History, Life, Read, Write
from tests.simulator.node import Node

ATTEMPTS_MAX = 10
FINAL = frozenset({Code.FENCED, Code.EPOCH_START, Code.STREAM_CLOSED, Code.PAYLOAD_MISMATCH})
"""Refusals that trying again does not change."""


class Page(NamedTuple):
    """The answer to a read: the life that was read, records, and whether they end a closed stream."""

    incarnation: int
    records: list[bytes]
    is_end: bool


class Clients:
    """What all clients of a schedule share."""

    def __init__(self, nodes: list[Node], history: History, rng: Random, say: Callable[..., None]) -> None:
        self.nodes, self.history, self.rng = nodes, history, rng
        self.paths = ["a", "b"]
        self.patience = 1.0
        """How long they pause: less once nothing goes wrong any more, for then waiting finds little."""
        self._say = say
        self._count = 0

    # -- one request -------------------------------------------------------------------------------------------------

    def name(self, kind: str) -> str:
        self._count += 1
        return f"{kind}{self._count}"

    def payload(self, tag: str, path: str, **facts: object) -> Write:
        """A new write; its bytes are `body(write)`."""
        write = Write(f"~{tag}~", path, **facts)  # type: ignore[arg-type]  # the caller knows its fields
        self.history.writes[write.tag] = write
        return write

    async def propose(self, entry: Entry) -> Outcome:
        """On any node. Raises BrokerError."""
        node = self.rng.choice(self.nodes)
        try:
            outcome = await node.call(lambda partition: partition.propose(entry))
        except BrokerError as error:
            self._say("told", node.name, entry.kind, entry.path, entry.producer_id, entry.seq, type(error).__name__)
            raise
        said = outcome.code or outcome.result
        self._say("told", node.name, entry.kind, entry.path, entry.producer_id, entry.seq, said, outcome.next_position)
        return outcome

    async def send(self, write: Write, entry: Entry) -> Outcome | None:
        """One attempt; None when there was no answer that says anything of the stream."""
        write.sent += 1
        try:
            outcome = await self.propose(entry)
        except Unavailable:
            write.denied += 1
            return None
        except BrokerError:
            return None
        if outcome.result is Result.REFUSED:
            write.denied += 1
        elif (
            outcome.stream is not None and outcome.next_position is not None and outcome.result is not Result.UNCHANGED
        ):
            # As the API tells it: a generation's batch lies in the life that it wrote in, whatever came after.
            life = outcome.generation if outcome.generation is not None else outcome.stream
            write.acked.append((life.incarnation, outcome.next_position))
            if self.rng.random() < 0.2:
                await self.read_own(write, life.incarnation, outcome.next_position)
        return outcome

    async def read(self, life: Life, position: int) -> Page | None:
        """Records of that life from `position` on, from any node; None when it is over. Raises BrokerError."""
        path, incarnation = life

        async def ask(partition: Partitioned) -> Page | None:
            stream = await partition.stream(path)
            if stream is None or stream.incarnation != incarnation or stream.tail < position + 1:
                await partition.catch_up()
                stream = await partition.stream(path)
            if stream is None or stream.deleted or stream.incarnation != incarnation:
                return None
            page = await partition.read(path, stream, position, 1_000_000)
            found = records(page) if page is not None else []
            return Page(stream.incarnation, found, stream.closed and position + len(found) == stream.tail)

        node = self.rng.choice(self.nodes)
        page = await node.call(ask)
        if page is not None:
            self._say("read", node.name, path, position, len(page.records))
            self.history.reads.append(Read(node.name, life, position, page.records))
            if page.is_end:
                self.history.read_end(node.name, life, position + len(page.records))
        return page

    async def read_own(self, write: Write, incarnation: int, next_position: int) -> None:
        """KI7: what was acknowledged can be read, on every node, unless its life is over."""
        try:
            page = await self.read((write.path, incarnation), next_position - 1)
        except BrokerError:
            return
        if page is not None and not page.records:
            self.history.miss(write, incarnation, next_position)

    async def pause(self, longest_s: float = 1.0) -> None:
        await asyncio.sleep(self.rng.random() * longest_s * self.patience)

    # -- clients -----------------------------------------------------------------------------------------------------

    async def produce(self, path: str, producer_id: str, epoch: int) -> None:
        """An idempotent producer that has several batches under way, on different nodes."""
        await _Producer(self, path, producer_id, epoch).run()

    async def append_plainly(self, path: str) -> None:
        """Appends without a producer, one after the other; some are sent again when no answer came."""
        name = self.name("plain")
        for number in range(self.rng.randint(2, 6)):
            write = self.payload(f"{name}.{number}", path, group=name)
            for _ in range(self.rng.choice((1, 1, 3))):
                outcome = await self.send(write, entries.append(_body(write), path=path))
                if outcome is not None:
                    break
                await self.pause()
            await self.pause()

    async def create(self, path: str) -> None:
        """Make a stream, some with a first record, some mortal."""
        kind = self.rng.random()
        ttl_s = self.rng.choice((2, 10)) if kind < 0.2 else None
        if ttl_s is not None:
            self.history.mortal.add(path)
        if kind > 0.7:
            write = self.payload(self.name("create"), path)
            await self.send(write, entries.create(_body(write), path=path, ttl_s=ttl_s))
        else:
            await self.attempt(entries.create(path=path, ttl_s=ttl_s))

    async def live_and_die(self, path: str) -> None:
        """Create, delete, create again; close."""
        for _ in range(self.rng.randint(1, 4)):
            await self.create(path)
            await self.pause(3.0)
            if self.rng.random() < 0.5:
                await self._end(Ending(path), entries.delete(path=path))
            elif self.rng.random() < 0.3:
                await self._end(Ending(path, closes=True), entries.close(path=path))
            await self.pause(1.0)
        await self.create(path)

    async def follow(self, path: str) -> None:
        """Read a life from its start to its end, with offsets, from node to node."""
        for _ in range(self.rng.randint(1, 3)):
            life = await self._life(path)
            if life is None:
                await self.pause(2.0)
                continue
            await self._follow(life)

    async def _life(self, path: str) -> Life | None:
        try:
            stream = await self.rng.choice(self.nodes).call(lambda partition: partition.stream(path))
        except BrokerError:
            return None
        return None if stream is None or stream.deleted else (path, stream.incarnation)

    async def _follow(self, life: Life) -> None:
        seen: list[bytes] = []
        self.history.tails[self.name("reader"), life] = seen
        for _ in range(self.rng.randint(3, 12)):
            try:
                page = await self.read(life, len(seen))
            except BrokerError:
                await self.pause()
                continue
            if page is None or page.is_end:
                return
            seen += page.records
            await self.pause(1.5)

    async def fork(self, path: str) -> None:
        """Fork a stream at its tail; in the end the child goes, or stays."""
        child_path, child = self.name("child-"), self.rng.getrandbits(60) | 1
        try:
            ref = await self.propose(entries.fork_ref(child_path, child, path=path))
            if ref.result is Result.REFUSED or ref.stream is None or ref.next_position is None:
                return
            await self.pause(2.0)
            lineage = lineage_of(ref.stream, path, ref.next_position)
            made = await self.propose(entries.fork(path=child_path, child=child, lineage=lineage, source_path=path))
        except BrokerError:
            return
        if made.result is not Result.REFUSED:
            self.history.forks.append(((child_path, child), (path, ref.stream.incarnation), ref.next_position))
            self.paths.append(child_path)
            await self.append_plainly(child_path)
            await self._follow((child_path, child))
            if self.rng.random() < 0.4:
                await self._end(Ending(child_path), entries.delete(path=child_path))

    async def talk(self, path: str) -> None:
        """A session: generations that are finished, stopped, abandoned or superseded; messages; a reset."""
        await self.attempt(entries.create_session(path=path))
        for _ in range(self.rng.randint(1, 3)):
            generation_id = self.name("gen")
            await _Generation(self, path, generation_id).run()
            if self.rng.random() < 0.3:
                await self.attempt(entries.stop(generation_id, path=path))
            if self.rng.random() < 0.2:
                await self._end(Ending(path), entries.reset_session(path=path))
            message = self.payload(self.name("message"), path)
            body = b'{"role":"user","content":%b}' % _body(message)
            for _ in range(2):
                if await self.send(message, entries.message(message.tag, body, path=path)) is not None:
                    break

    async def _end(self, ending: Ending, entry: Entry) -> None:
        self.history.endings.append(ending)
        try:
            outcome = await self.propose(entry)
        except Unavailable:
            ending.denied = True
        except BrokerError:
            pass
        else:
            ending.denied = outcome.result is Result.REFUSED
            ending.done = not ending.denied

    async def attempt(self, entry: Entry) -> Outcome | None:
        """Propose once; None when there was no answer that says anything."""
        try:
            return await self.propose(entry)
        except BrokerError:
            return None


class _Pipeline(ABC):
    """Batches 0, 1, 2, …, several under way; each is sent again until it is told what became of it."""

    def __init__(self, clients: Clients, path: str, name: str) -> None:
        self._clients, self._path, self._name = clients, path, name
        rng = clients.rng
        self._count = rng.randint(2, 7)
        self._window = rng.choice((1, 2, 4))
        self._plans_anew = rng.random() < 0.5
        self._settled = [asyncio.Event() for _ in range(self._count)]
        self._over = False

    async def run(self) -> None:
        room = asyncio.Semaphore(self._window)
        tasks = []
        for seq in range(self._count):
            await room.acquire()
            tasks.append(asyncio.create_task(self._settle(seq)))
            tasks[-1].add_done_callback(lambda _: room.release())
            await self._clients.pause(0.3)
        for task in tasks:
            await task

    async def _settle(self, seq: int) -> None:
        version = 0
        write = self._new(seq, version)
        for _ in range(ATTEMPTS_MAX):
            if self._over:
                break
            outcome = await self._clients.send(write, self.entry(write, seq))
            if outcome is not None and outcome.result is not Result.REFUSED:
                break
            if outcome is not None and outcome.code in FINAL:
                self._over = True
                break
            if outcome is not None and outcome.code is Code.SEQ_GAP and seq:
                await self._predecessor(seq)
            elif outcome is None or outcome.code is not Code.SEQ_GAP:
                await self._clients.pause()
            if self._plans_anew and not write.open:
                version += 1
                write = self._new(seq, version)
        self._settled[seq].set()

    async def _predecessor(self, seq: int) -> None:
        try:
            async with asyncio.timeout(4.0):
                await self._settled[seq - 1].wait()
        except TimeoutError:
            pass

    def _new(self, seq: int, version: int) -> Write:
        return self._clients.payload(f"{self._name}.{seq}.{version}", self._path, producer=self.triple(seq))

    @abstractmethod
    def triple(self, seq: int) -> tuple[str, int, int]:
        """Producer, epoch and number of a batch."""

    @abstractmethod
    def entry(self, write: Write, seq: int) -> Entry:
        """What proposes it."""


class _Producer(_Pipeline):
    def __init__(self, clients: Clients, path: str, producer_id: str, epoch: int) -> None:
        super().__init__(clients, path, f"{producer_id}.{epoch}")
        self._producer_id, self._epoch = producer_id, epoch
        self._closes = clients.rng.random() < 0.2

    def triple(self, seq: int) -> tuple[str, int, int]:
        return self._producer_id, self._epoch, seq

    def entry(self, write: Write, seq: int) -> Entry:
        closes = self._closes and seq == self._count - 1
        return entries.append(_body(write), path=self._path, producer=self.triple(seq), closes=closes)


class _Generation(_Pipeline):
    def __init__(self, clients: Clients, path: str, generation_id: str) -> None:
        super().__init__(clients, path, generation_id)
        self._generation_id = generation_id
        self._finishes = clients.rng.random() < 0.6

    def triple(self, seq: int) -> tuple[str, int, int]:
        return self._generation_id, 0, seq

    def entry(self, write: Write, seq: int) -> Entry:
        if self._finishes and seq == self._count - 1:
            return entries.finish(self._generation_id, seq, path=self._path, reason=write.tag)
        return entries.chunks(self._generation_id, seq, _body(write), path=self._path)


def _body(write: Write) -> bytes:
    return b'"%b"' % write.tag.encode()
