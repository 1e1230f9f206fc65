"""Many answers at once, a token at a time, in each way in which they may travel: an open loop at a real cadence.

A token is due when its model would send it; its latency counts from then to the ack that says it is durable. Where a
request carries one token, what comes before its answer waits for it: only one may be under way, or they would change
places.
"""

from __future__ import annotations

import asyncio
import re
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Final, cast

import uvloop

from benchmarks import cadence
from benchmarks.load import is_whole
from benchmarks.percentiles import Latencies
from benchmarks.workload import CHUNK, Invalid

ANSWER_S_MAX: Final = 5.0
"""How long after the last token its ack may take; then this many answers are too many."""
CONNECT_S_MAX: Final = 30.0

_SEQ: Final = re.compile(rb'"seq":(\d+)')


class _Writer(asyncio.Protocol, ABC):
    """One answer over one connection. `latencies` gets what is acknowledged."""

    def __init__(self, target: str, load: Load) -> None:
        self.target = target
        self.ready = asyncio.get_running_loop().create_future()
        self.due: deque[float] = deque()
        """Of tokens that are not acknowledged, oldest first."""
        self._load = load
        self._transport: asyncio.WriteTransport | None = None
        self._seq = 1  # what opens the answer had seq 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)  # uvloop's is one without saying so
        self.begin()

    def begin(self) -> None:
        """Say what comes before the first token."""
        self.ready.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self.fail(f"the server closed a connection: {exc}")

    def fail(self, reason: str) -> None:
        """End the run."""
        self._load.fail(reason)
        if not self.ready.done():
            self.ready.set_exception(Invalid(reason))

    def write(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(data)

    @abstractmethod
    def token(self, due_s: float) -> None:
        """Send one token, or keep it until it may go."""

    def acknowledged(self, count: int) -> None:
        """The oldest so many tokens are durable."""
        for _ in range(count):
            self._load.note(self.due.popleft())

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class PostWriter(_Writer):
    """A request for each token."""

    _received = b""

    def token(self, due_s: float) -> None:
        self.due.append(due_s)
        if len(self.due) == 1:
            self._send()

    def data_received(self, data: bytes) -> None:
        data = self._received + data
        if not is_whole(data):
            self._received = data
            return
        self._received = b""
        if data[9:10] != b"2":
            self.fail(data[:300].decode(errors="replace"))
            return
        self.acknowledged(1)
        if self.due:
            self._send()

    def _send(self) -> None:
        self.write(
            b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nProducer-Seq: %d\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (self.target.encode(), self._seq, len(self._body), self._body)
        )
        self._seq += 1

    _body = CHUNK


class StreamPostWriter(PostWriter):
    """The same to a stream of the protocol, which knows nothing of generations."""

    _body = b"[%b]" % CHUNK

    def _send(self) -> None:
        head = b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
        self.write(head % (self.target.encode(), len(self._body), self._body))


class _StreamedWriter(_Writer):
    """All tokens over one request; each ack says up to which of them all are durable."""

    _acked = 0

    def token(self, due_s: float) -> None:
        self.due.append(due_s)
        self.send(self._seq)
        self._seq += 1

    @abstractmethod
    def send(self, seq: int) -> None:
        """Send one token as the batch `seq`."""

    def data_received(self, data: bytes) -> None:
        if b'"error"' in data or (not self._acked and data.startswith(b"HTTP/1.1 4")):
            self.fail(data[:300].decode(errors="replace"))
            return
        if not self.ready.done():
            self.ready.set_result(None)
        # An ack that is cut in two is followed by a whole one, or by none that says less.
        for seq in map(int, _SEQ.findall(data)):
            if seq > self._acked:
                self.acknowledged(seq - self._acked)
                self._acked = seq


class NdjsonWriter(_StreamedWriter):
    """A line for each token."""

    _line = b"%x\r\n%b\n\r\n" % (len(CHUNK) + 1, CHUNK)

    def begin(self) -> None:
        self.write(
            b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-ndjson\r\nProducer-Seq: 1\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n" % self.target.encode()
        )
        self.ready.set_result(None)  # the response begins with the first ack

    def send(self, seq: int) -> None:  # noqa: ARG002 -- lines are counted
        self.write(self._line)


class WebSocketWriter(_StreamedWriter):
    """A frame for each token."""

    def begin(self) -> None:
        self.write(
            b"GET %b HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: c3RyZWFtZm9sZCBiZW5jaA==\r\n\r\n" % self.target.encode()
        )

    def send(self, seq: int) -> None:
        text = b'{"seq":%d,"chunks":[%b]}' % (seq, CHUNK)
        assert len(text) < 126  # one byte says how long it is; masked (RFC 6455, 5.3), with zeros
        self.write(bytes((0x81, 0x80 | len(text), 0, 0, 0, 0)) + text)


WriterOf = Callable[[str, "Load"], _Writer]


class Load:
    """The tokens of all answers, each at its time."""

    def __init__(self, warm_up_s: float) -> None:
        self.latencies = Latencies()
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._warm_up_s = warm_up_s
        self._schedule: list[tuple[float, _Writer]] = []
        self._next = self._acked = 0
        self._begun_s = 0.0

    async def run(self, writers: Sequence[_Writer], seconds: float) -> None:
        """Send everything. Raises Invalid when an answer is refused, or acks stay away."""
        self._schedule = sorted(
            ((due_s, writer) for number, writer in enumerate(writers) for due_s in cadence.due(number, seconds)),
            key=itemgetter(0),
        )
        self._begun_s = time.perf_counter()
        self._send_due()
        try:
            async with asyncio.timeout(seconds + ANSWER_S_MAX):
                await self.done
        except TimeoutError:
            raise Invalid(f"acks were missing {ANSWER_S_MAX:g} s after the last token") from None

    def note(self, due_s: float) -> None:
        """A token is durable."""
        if due_s >= self._warm_up_s:
            self.latencies.record(time.perf_counter() - self._begun_s - due_s)
        self._acked += 1
        if self._acked == len(self._schedule) and not self.done.done():
            self.done.set_result(None)

    def fail(self, reason: str) -> None:
        if not self.done.done():
            self.done.set_exception(Invalid(reason))

    def _send_due(self) -> None:
        if self.done.done():
            return
        now_s, schedule = time.perf_counter() - self._begun_s, self._schedule
        while self._next < len(schedule) and schedule[self._next][0] <= now_s:
            due_s, writer = schedule[self._next]
            writer.token(due_s)
            self._next += 1
        if self._next < len(schedule):
            asyncio.get_running_loop().call_later(max(0.0, schedule[self._next][0] - now_s), self._send_due)


def run(port: int, targets: Sequence[str], writer_of: WriterOf, *, warm_up_s: float, measured_s: float) -> Latencies:
    """Write an answer to each of `targets`; how long its tokens took to be durable, from when they were due.

    Raises Invalid when one is refused, or acks stay away for long.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(port, targets, writer_of, warm_up_s, warm_up_s + measured_s))


async def _run(port: int, targets: Sequence[str], writer_of: WriterOf, warm_up_s: float, seconds: float) -> Latencies:
    load = Load(warm_up_s)
    writers = [writer_of(target, load) for target in targets]
    try:
        async with asyncio.timeout(CONNECT_S_MAX):
            for writer in writers:
                await _connect(writer, port)
                await writer.ready
        await load.run(writers, seconds)
    except TimeoutError:
        raise Invalid(f"not all were connected after {CONNECT_S_MAX:g} s") from None
    finally:
        for writer in writers:
            writer.close()
        if load.done.done() and not load.done.cancelled():
            load.done.exception()  # whoever waited has it
    return load.latencies


async def _connect(writer: _Writer, port: int) -> None:
    await asyncio.get_running_loop().create_connection(lambda: writer, "127.0.0.1", port)
