"""What is written, to where, and what must be there afterwards.

A batch is chunks as a model streams them, a token each. The first chunk of every batch carries the batch's number, so
that afterwards each batch can be told from every other: one that is lost, doubled or out of place is found.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from http.client import HTTPConnection, HTTPResponse
from typing import Final, Protocol

import msgspec

CHUNK: Final = b'{"type":"text-delta","id":"0","delta":" token"}'
NUMBERED: Final = b'{"type":"text-delta","id":"0","delta":"%010d"}'
REQUEST_S_MAX: Final = 60.0


class Invalid(Exception):
    """The run measured something else than it says, or what was acknowledged is not there."""


class Batches:
    """The requests of one connection: all that does not change is made beforehand."""

    def __init__(self, target: str, chunks: int, *, sequenced: bool = False, first: int = 0) -> None:
        self.target = target
        self.first = first
        """The number of the first batch that the load sends."""
        self.body = body = batch(0, chunks)
        head = (
            f"POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n"
        ).encode()
        if sequenced:
            self._head = head + b"Producer-Seq: %d\r\n\r\n[" + NUMBERED
        else:
            self._head = head + b"\r\n[" + NUMBERED
        self._sequenced = sequenced
        self._rest = body[1 + len(NUMBERED % 0) :]

    def request(self, number: int) -> tuple[bytes, bytes]:
        """A whole request, in two parts."""
        return self._head % ((number, number) if self._sequenced else number), self._rest


def batch(number: int, chunks: int) -> bytes:
    """The body of a batch."""
    return b"[%b]" % b",".join([NUMBERED % number, *(CHUNK,) * (chunks - 1)])


def create_streams(port: int, targets: Iterable[str]) -> None:
    """Make JSON streams. Raises Invalid when one is refused."""
    for target in targets:
        _call(port, "PUT", target)


def append(port: int, target: str, body: bytes) -> None:
    """One batch. Raises Invalid when it is refused."""
    _call(port, "POST", target, body)


OPENING: Final = b'[{"type":"start"},{"type":"text-start","id":"0"}]'
"""What a text begins with."""


def create_generations(port: int, sessions: Iterable[str]) -> None:
    """Make sessions with a generation `answer` in each, begun with seq 0. Raises Invalid when one is refused."""
    for session in sessions:
        _call(port, "PUT", f"/v1/sessions/{session}")
        chunks = f"/v1/sessions/{session}/generations/answer/chunks"
        _call(port, "POST", chunks, OPENING, {"Producer-Seq": "0"})


class Workload(Protocol):
    """One kind of write, from as many connections as there are."""

    name: str
    chunks: int
    connections: int

    def prepare(self, port: int) -> list[Batches]:
        """Make on the server what the writes need; the batches of each connection."""
        ...

    def audit(self, port: int, acknowledged: list[int]) -> None:
        """Raises Invalid unless the server has exactly the batches that each connection has had acknowledged."""


class ToStreams:
    """Appends to `/v1/stream/…`, a stream for each connection."""

    name = "POST /v1/stream"

    def __init__(self, chunks: int, connections: int, folder: str = "bench") -> None:
        self.chunks = chunks
        self.connections = connections
        self._folder = folder

    def prepare(self, port: int) -> list[Batches]:
        """Create the streams."""
        for target in self._targets():
            _call(port, "PUT", target)
        return [Batches(target, self.chunks) for target in self._targets()]

    def audit(self, port: int, acknowledged: list[int]) -> None:
        """See Workload."""
        for target, count in zip(self._targets(), acknowledged, strict=True):
            _compare(target, _records(port, target), count, self.chunks)

    def path(self, connection: int) -> str:
        """Of the stream that a connection appends to."""
        return f"{self._folder}/{connection}"

    def _targets(self) -> list[str]:
        return [f"/v1/stream/{self.path(connection)}" for connection in range(self.connections)]


class ToNothing(ToStreams):
    """The same requests, to a server that keeps nothing."""

    def prepare(self, port: int) -> list[Batches]:  # noqa: ARG002 -- there is nothing to make
        """See Workload."""
        return [Batches(target, self.chunks) for target in self._targets()]

    def audit(self, port: int, acknowledged: list[int]) -> None:
        """See Workload: nothing was promised."""


class ToGenerations:
    """Batches of a generation through the session API, a session with one generation for each connection."""

    name = "POST …/chunks"

    def __init__(self, chunks: int, connections: int) -> None:
        self.chunks = chunks
        self.connections = connections

    def prepare(self, port: int) -> list[Batches]:
        """Create the sessions and open the generations, with what a text begins with."""
        create_generations(port, [f"bench-{connection}" for connection in range(self.connections)])
        return [
            Batches(_chunks(connection), self.chunks, sequenced=True, first=1) for connection in range(self.connections)
        ]

    def audit(self, port: int, acknowledged: list[int]) -> None:
        """See Workload. The records around the chunks are left out: the generation, and the two that open the text."""
        for connection, count in enumerate(acknowledged):
            path = f"/v1/stream/sessions/bench-{connection}"
            events = (_event.decode(record) for record in _records(port, path))
            chunks = (event.value.chunk for event in events if event.type == "chunk")
            for _ in range(2):
                next(chunks, None)
            _compare(path, chunks, count, self.chunks, first=1)


class _ChunkValue(msgspec.Struct):
    chunk: msgspec.Raw = msgspec.Raw()


class _Event(msgspec.Struct):
    type: str
    value: _ChunkValue


_event: Final = msgspec.json.Decoder(_Event)
_page: Final = msgspec.json.Decoder(list[msgspec.Raw])


def _chunks(connection: int) -> str:
    return f"/v1/sessions/bench-{connection}/generations/answer/chunks"


def _compare(path: str, records: Iterator[msgspec.Raw], count: int, chunks: int, first: int = 0) -> None:
    """Raises Invalid at the first record that is not the one that was acknowledged at its place."""
    for number in range(first, first + count):
        for place in range(chunks):
            expected = CHUNK if place else NUMBERED % number
            found = next(records, None)
            if found is None or bytes(found) != expected:
                raise Invalid(f"{path}: {found!r} where chunk {place} of batch {number} was acknowledged")
    beyond = next(records, None)
    if beyond is not None:
        raise Invalid(f"{path}: {beyond!r} after the last batch that was acknowledged")


def _records(port: int, target: str) -> Iterator[msgspec.Raw]:
    offset = "-1"
    while True:
        response, body = _call(port, "GET", f"{target}?offset={offset}")
        yield from _page.decode(body)
        if response.getheader("Stream-Up-To-Date") == "true":
            return
        offset = response.getheader("Stream-Next-Offset") or ""


def _call(
    port: int, method: str, target: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[HTTPResponse, bytes]:
    """One request. Raises Invalid for anything but a 2xx."""
    connection = HTTPConnection("127.0.0.1", port, timeout=REQUEST_S_MAX)
    try:
        connection.request(method, target, body, {"Content-Type": "application/json", **(headers or {})})
        response = connection.getresponse()
        answer = response.read()
    finally:
        connection.close()
    if not 200 <= response.status < 300:
        raise Invalid(f"{method} {target}: {response.status} {answer[:1000].decode(errors='replace')}")
    return response, answer
