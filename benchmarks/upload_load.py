"""Many answers at once, a token at a time, in each way in which they may travel: an open loop at a real cadence.

A token is due when its model would send it; its latency counts from then to the ack that says it is durable. Where a
request carries one token, what comes before its answer waits for it: only one may be under way, or they would change
places.

One loop over plain sockets, without tasks, timers or protocols: it has to cost less than what it measures. Histograms
are made afterwards.
"""

from __future__ import annotations

import re
import selectors
import socket
import time
from abc import ABC, abstractmethod
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from benchmarks import cadence
from benchmarks.load import is_whole
from benchmarks.percentiles import Latencies, latencies
from benchmarks.workload import CHUNK, Invalid

ANSWER_S_MAX: Final = 5.0
"""How long after the last token its ack may take; then this many answers are too many."""
CONNECT_S_MAX: Final = 30.0

_READ_BYTES: Final = 65_536
_SEQ: Final = re.compile(rb'"seq":(\d+)')


class Written(NamedTuple):
    """What a run came to."""

    latencies: Latencies
    """Of the tokens behind the warm-up."""
    tokens: int
    """All of them."""
    load_busy: float
    """Share of its core that this process used."""


class _Writer(ABC):
    """One answer over one connection. `noted` gets the time at which each token was due that is acknowledged."""

    def __init__(self, target: str, connection: socket.socket, noted: Callable[[float], None]) -> None:
        self.target = target.encode()
        self.connection = connection
        self.is_ready = False
        """Whether tokens may be sent."""
        self.due: deque[float] = deque()
        """Of tokens that are not acknowledged, oldest first."""
        self.unsent = b""
        """What the connection did not take yet."""
        self._noted = noted
        self._seq = 1  # what opens the answer had seq 0

    def begin(self) -> None:
        """Say what comes before the first token."""
        self.is_ready = True

    def write(self, data: bytes) -> None:
        """Send, as much as goes now."""
        if self.unsent:
            data = self.unsent + data
        try:
            self.unsent = data[self.connection.send(data) :]
        except BlockingIOError:
            self.unsent = data

    @abstractmethod
    def token(self, due_s: float) -> None:
        """Send one token, or keep it until it may go."""

    @abstractmethod
    def received(self, data: bytes) -> None:
        """Take what the server says. Raises Invalid for a refusal."""

    def acknowledged(self, count: int) -> None:
        """The oldest so many tokens are durable."""
        for _ in range(count):
            self._noted(self.due.popleft())


class PostWriter(_Writer):
    """A request for each token."""

    _received = b""
    _body = CHUNK

    def token(self, due_s: float) -> None:
        self.due.append(due_s)
        if len(self.due) == 1:
            self._send()

    def received(self, data: bytes) -> None:
        if self._received:
            data = self._received + data
        if not is_whole(data):
            self._received = data
            return
        self._received = b""
        if data[9:10] != b"2":
            raise Invalid(data[:300].decode(errors="replace"))
        self._noted(self.due.popleft())
        if self.due:
            self._send()

    def _send(self) -> None:
        self.write(
            b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nProducer-Seq: %d\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (self.target, self._seq, len(self._body), self._body)
        )
        self._seq += 1


class StreamPostWriter(PostWriter):
    """The same to a stream of the protocol, which knows nothing of generations."""

    _body = b"[%b]" % CHUNK

    def _send(self) -> None:
        head = b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
        self.write(head % (self.target, len(self._body), self._body))


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

    def received(self, data: bytes) -> None:
        if b'"error"' in data or (not self._acked and data.startswith(b"HTTP/1.1 4")):
            raise Invalid(data[:300].decode(errors="replace"))
        self.is_ready = True
        # Only the newest ack matters. One that is cut in two is followed by a whole one, or by none that says less.
        found = _SEQ.findall(data)
        if found and (seq := int(found[-1])) > self._acked:
            self.acknowledged(seq - self._acked)
            self._acked = seq


class NdjsonWriter(_StreamedWriter):
    """A line for each token."""

    _line = b"%x\r\n%b\n\r\n" % (len(CHUNK) + 1, CHUNK)

    def begin(self) -> None:
        self.write(
            b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-ndjson\r\nProducer-Seq: 1\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n" % self.target
        )
        self.is_ready = True  # the response begins with the first ack

    def send(self, seq: int) -> None:  # noqa: ARG002 -- lines are counted
        self.write(self._line)


class WebSocketWriter(_StreamedWriter):
    """A frame for each token."""

    def begin(self) -> None:
        self.write(
            b"GET %b HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: c3RyZWFtZm9sZCBiZW5jaA==\r\n\r\n" % self.target
        )

    def send(self, seq: int) -> None:
        text = b'{"seq":%d,"chunks":[%b]}' % (seq, CHUNK)
        assert len(text) < 126  # one byte says how long it is; masked (RFC 6455, 5.3), with zeros
        self.write(bytes((0x81, 0x80 | len(text), 0, 0, 0, 0)) + text)


WriterOf = Callable[[str, socket.socket, Callable[[float], None]], _Writer]


class _Load:
    """The tokens of all answers, each at its time, and how long it took for each to be durable."""

    def __init__(self) -> None:
        self.due_s = array("d")
        """When a token was due …"""
        self.acked_s = array("d")
        """… and when it was acknowledged, both from the start."""
        self._now_s = 0.0  # since the start; what comes in one go came at one time
        self._selector = selectors.DefaultSelector()
        self._writers: list[_Writer] = []

    def connect(self, port: int, targets: Sequence[str], writer_of: WriterOf) -> None:
        """One connection after the other. Raises Invalid."""
        deadline_s = time.monotonic() + CONNECT_S_MAX
        for target in targets:
            connection = socket.create_connection(("127.0.0.1", port), CONNECT_S_MAX)
            connection.settimeout(0.0)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            writer = writer_of(target, connection, self._note)
            self._writers.append(writer)
            self._selector.register(connection, selectors.EVENT_READ, writer)
            writer.begin()
            while not writer.is_ready:
                self._receive(0.1)
                if time.monotonic() > deadline_s:
                    raise Invalid(f"not all were connected after {CONNECT_S_MAX:g} s")

    def run(self, seconds: float) -> None:
        """Send everything. Raises Invalid when an answer is refused, or acks stay away."""
        schedule = sorted(
            (due_s, number) for number in range(len(self._writers)) for due_s in cadence.due(number, seconds)
        )
        writers = [self._writers[number] for _, number in schedule]
        times, count, sent = [due_s for due_s, _ in schedule], len(schedule), 0
        begun_s = time.perf_counter()
        while len(self.due_s) < count:
            self._now_s = time.perf_counter() - begun_s
            if self._now_s > seconds + ANSWER_S_MAX:
                raise Invalid(f"acks were missing {ANSWER_S_MAX:g} s after the last token")
            while sent < count and times[sent] <= self._now_s:
                writer = writers[sent]
                writer.token(times[sent])
                if writer.unsent:
                    self._listen(writer)
                sent += 1
            wait_s = times[sent] - self._now_s if sent < count else 0.1
            self._receive(wait_s, begun_s)

    def _receive(self, wait_s: float, begun_s: float = 0.0) -> None:
        events = self._selector.select(max(0.0, wait_s))
        self._now_s = time.perf_counter() - begun_s
        for key, mask in events:
            writer: _Writer = key.data
            if mask & selectors.EVENT_READ:
                data = writer.connection.recv(_READ_BYTES)
                if not data:
                    raise Invalid("the server closed a connection")
                writer.received(data)
            elif writer.unsent:
                writer.write(b"")
            if writer.unsent or key.events != selectors.EVENT_READ:
                self._listen(writer)

    def _listen(self, writer: _Writer) -> None:
        """For what it waits for."""
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if writer.unsent else 0)
        self._selector.modify(writer.connection, wanted, writer)

    def _note(self, due_s: float) -> None:
        self.due_s.append(due_s)
        self.acked_s.append(self._now_s)

    def close(self) -> None:
        self._selector.close()
        for writer in self._writers:
            writer.connection.close()


def run(port: int, targets: Sequence[str], writer_of: WriterOf, *, warm_up_s: float, measured_s: float) -> Written:
    """Write an answer to each of `targets`; how long its tokens took to be durable, from when they were due.

    Raises Invalid when one is refused, or acks stay away for long.
    """
    load = _Load()
    try:
        load.connect(port, targets, writer_of)
        begun_s, used_s = time.perf_counter(), time.process_time()
        load.run(warm_up_s + measured_s)
        busy = (time.process_time() - used_s) / (time.perf_counter() - begun_s)
    except OSError as error:
        raise Invalid(f"a connection broke: {error}") from error
    finally:
        load.close()
    took_s = [acked - due for due, acked in zip(load.due_s, load.acked_s, strict=True) if due >= warm_up_s]
    return Written(latencies(took_s), len(load.due_s), busy)
