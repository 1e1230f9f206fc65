"""The paths of a broker inside one process, step by step: what `benchmarks.profile` holds the stopwatch to.

No sockets and no client: what a path costs the broker is all that is measured. The system's part of a request (two
calls on a socket, the event loop's poll) comes on top, and is the same for any server.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from benchmarks.in_process import AckTransport, Client, EventTransport, Transport, connected, opened
from benchmarks.stopwatch import Stage
from benchmarks.workload import CHUNK, OPENING, Batches, batch
from broker import App
from consumer.session import SessionFold

CONNECTIONS: Final = 32
CHUNKS: Final = 10
TOKENS: Final = 5
"""Of an answer between two folds: at 50 a second."""
READERS: Final = 100
PAGE_RECORDS: Final = 22_000
"""About 1 MB of chunks."""
DELTAS: Final = 2_000

Round = Callable[[], Awaitable[int]]
"""One round: how many times the path was walked."""


class Walk(NamedTuple):
    """A path: what one walk of it is, its stages, and what has to be there for it."""

    what: str
    stages: tuple[Stage, ...]
    prepared: Callable[[Path], AbstractAsyncContextManager[Round]]


# -- append ------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def append(folder: Path, *, fast: bool = True) -> AsyncGenerator[Round]:
    """CONNECTIONS appends, all on their way at the same time, until every one is durable and answered."""
    transport = Transport()
    async with connected(folder, transport, CONNECTIONS, fast=fast) as (app, connections):
        client = Client(app)
        batches = [Batches(f"/v1/stream/profile/{n}", CHUNKS) for n in range(CONNECTIONS)]
        for load in batches:
            await client.call("PUT", load.target)
        number = 0

        async def round_() -> int:
            nonlocal number
            number += 1
            requests = [b"".join(load.request(number)) for load in batches]
            transport.want(CONNECTIONS)
            for connection, request in zip(connections, requests, strict=True):
                connection.data_received(request)
            await transport.enough.wait()
            return CONNECTIONS

        yield round_


_APPLIED: Final = (
    Stage("propose", ("broker.partition:Partition.propose_for",)),
    Stage("apply", ("broker.applied:apply",)),
    Stage("install what it changed: rows, tail, who waits", ("broker.partition:Partition._install",)),
    Stage(
        "the commit around them",
        ("broker.partition:Partition._apply_commit", "broker.journal.file:FileJournal._commit_gathered"),
    ),
)
_BESIDE: Final = (
    Stage("journal: encode the entries", ("broker.journal.writer:CommitWriter._take",), beside=True),
    Stage("journal: frame, checksum and write", ("broker.journal.segments:Segments.append",), beside=True),
    Stage("store: checkpoints", ("broker.store.sqlite:write_checkpoint",), beside=True),
)
_APPEND: Final = (
    Stage("from the socket's bytes on", ("broker.http.fast_path:AppendProtocol.data_received",)),
    Stage("the head, when it is plain", ("broker.http.fast_path:read_plain_head",)),
    Stage("request to entry", ("broker.http.fast_path:entry_of", "broker.http.fast_path:Append.begin")),
    *_APPLIED,
    Stage("outcome to answer", ("broker.http.fast_path:answer", "broker.http.fast_path:Append.set_result")),
    Stage("answer to bytes", ("broker.http.fast_path:AppendProtocol.answer",)),
    *_BESIDE,
)

_ASGI: Final = (
    Stage(
        "uvicorn: from the socket's bytes to a task",
        (f"{HttpToolsProtocol.__module__}:HttpToolsProtocol.data_received",),
    ),
    Stage("which way it goes", ("broker.http.fast_path:FastAppends.kind_of",)),
    Stage("request to entry", ("broker.http.fast_path:entry_of", "broker.http.fast_path:Append.begin")),
    *_APPLIED,
    Stage("outcome to answer", ("broker.http.fast_path:answer", "broker.http.fast_path:Append.set_result")),
    *_BESIDE,
)

# -- chunks ------------------------------------------------------------------------------------------------------------


async def _answers(client: Client) -> list[str]:
    """Begin CONNECTIONS answers; where their chunks go."""
    paths = [f"/v1/sessions/profile-{n}/generations/answer/chunks" for n in range(CONNECTIONS)]
    for n, path in enumerate(paths):
        await client.call("PUT", f"/v1/sessions/profile-{n}")
        await client.call("POST", path, OPENING, producer_seq="0")
    return paths


@asynccontextmanager
async def chunks(folder: Path) -> AsyncGenerator[Round]:
    """CONNECTIONS batches of as many answers, all on their way at the same time."""
    transport = Transport()
    async with connected(folder, transport, CONNECTIONS) as (app, connections):
        batches = [Batches(path, CHUNKS, sequenced=True) for path in await _answers(Client(app))]
        number = 0

        async def round_() -> int:
            nonlocal number
            number += 1
            requests = [b"".join(load.request(number)) for load in batches]
            transport.want(CONNECTIONS)
            for connection, request in zip(connections, requests, strict=True):
                connection.data_received(request)
            await transport.enough.wait()
            await _fold(app)
            return CONNECTIONS

        yield round_


async def _fold(app: App) -> None:
    """What the materializer does ten times a second."""
    for n in range(CONNECTIONS):
        await app.materializer.follow(f"sessions/profile-{n}")


_CHUNKS: Final = (
    Stage("from the socket's bytes on", ("broker.http.fast_path:AppendProtocol.data_received",)),
    Stage("the head, when it is plain", ("broker.http.fast_path:read_plain_head",)),
    Stage("request to entry", ("broker.http.session_requests:entry_of", "broker.http.fast_path:Append.begin")),
    *_APPLIED,
    Stage("outcome to answer", ("broker.http.session_answers:answer", "broker.http.fast_path:Append.set_result")),
    Stage("answer to bytes", ("broker.http.fast_path:AppendProtocol.answer",)),
    Stage("fold into messages", ("consumer.session:SessionFold.add",)),
    *_BESIDE,
)


@asynccontextmanager
async def tokens(folder: Path) -> AsyncGenerator[Round]:
    """A token of each of CONNECTIONS answers, each over an NDJSON upload of its own."""
    transport = AckTransport()
    async with connected(folder, transport, CONNECTIONS) as (app, connections):
        paths = await _answers(Client(app))
        line = b"%x\r\n%b\n\r\n" % (len(CHUNK) + 1, CHUNK)
        for connection, path in zip(connections, paths, strict=True):
            connection.data_received(
                f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-ndjson\r\n"
                "Producer-Seq: 1\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
            )

        async def round_() -> int:
            for _ in range(TOKENS):
                transport.want(CONNECTIONS)
                for connection in connections:
                    connection.data_received(line)
                await transport.enough.wait()
            await _fold(app)
            return CONNECTIONS * TOKENS

        yield round_


_TOKENS: Final = (
    Stage("from the socket's bytes on", ("broker.http.fast_path:AppendProtocol.data_received",)),
    Stage("line to entry", ("broker.http.upload:Upload.put_at_once",)),
    Stage("gather; propose together", ("broker.http.gathering:Gathering.add", "broker.http.gathering:Gathering.flush")),
    *_APPLIED[1:],
    Stage("what the upload makes of the outcome", ("broker.http.upload:Upload.told",)),
    Stage("the ack", ("broker.http.upload:Upload.tell",)),
    Stage("fold into messages", ("consumer.session:SessionFold.add",)),
    *_BESIDE,
)

# -- reads -------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def page(folder: Path) -> AsyncGenerator[Round]:
    """A catch-up read of one full response, from the store."""
    async with opened(folder) as app:
        client, path = Client(app), "/v1/stream/page"
        await client.call("PUT", path)
        for n in range(PAGE_RECORDS // 1_000):
            await client.call("POST", path, batch(n, 1_000))
        await app.partition.checkpoint()

        async def round_() -> int:
            await client.call("GET", path, query=b"offset=-1")
            return 1

        yield round_


_PAGE: Final = (
    Stage("look at the rows", ("broker.http.reads:position_of",)),
    Stage("join the pages", ("broker.log:join",)),
    Stage("answer", ("broker.http.reads:_page_response",)),
    Stage("store: SQLite", ("broker.store.sqlite:SqliteStore._read",), beside=True),
    Stage("store: decode and cut", ("broker.store.sqlite:decode_page", "broker.store.sqlite:after"), beside=True),
)


@asynccontextmanager
async def fan_out(folder: Path, readers: int = READERS) -> AsyncGenerator[Round]:
    """One append of one chunk to a stream with `readers` live readers, until each was sent its event."""
    transport = EventTransport()
    async with connected(folder, transport, readers) as (app, connections):
        client, path = Client(app), "/v1/stream/live"
        await client.call("PUT", path)
        transport.want(readers)
        for connection in connections:
            connection.data_received(b"GET /v1/stream/live?offset=-1&live=sse HTTP/1.1\r\nhost: localhost\r\n\r\n")
        await transport.enough.wait()

        async def round_() -> int:
            transport.want(readers)
            await client.call("POST", path, batch(0, 1))
            await transport.enough.wait()
            return readers

        yield round_


_FAN_OUT: Final = (
    Stage("wake them", ("broker.watches:Watches.wake",)),
    Stage("read the tail", ("broker.tail:Tail.read",)),
    Stage("the event, encoded once", ("broker.http.sse:data_frame",)),
    Stage("find it for each reader", ("broker.http.following:Feed.told",)),
    Stage("the control event", ("broker.http.sse:control_frame",)),
    Stage("look, tell, write: each reader", ("broker.http.fast_reads:LiveReader.wake",)),
)

# -- fold --------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def fold(_: Path) -> AsyncGenerator[Round]:
    """The records of an answer of DELTAS text deltas, from bytes to a message."""
    records = list(_records())

    async def round_() -> int:
        folding = SessionFold()
        for record in records:
            folding.add(record)
        folding.items()
        return DELTAS

    yield round_


def _records() -> list[bytes]:
    opened_ = {
        "type": "generation",
        "key": "g",
        "value": {
            "messageId": "m",
            "lane": "main",
            "format": "ai-sdk-ui-message-stream",
            "role": "assistant",
            "status": "streaming",
        },
        "headers": {"operation": "insert", "timestamp": "2026-01-01T00:00:00Z"},
    }
    said: list[Any] = [{"type": "start"}, {"type": "text-start", "id": "0"}]
    said += [{"type": "text-delta", "id": "0", "delta": " token"}] * DELTAS
    told = [
        {
            "type": "chunk",
            "key": f"g:{n}",
            "value": {"messageId": "m", "chunk": chunk},
            "headers": {"operation": "insert"},
        }
        for n, chunk in enumerate(said)
    ]
    return [msgspec.json.encode(record) for record in [opened_, *told]]


_FOLD: Final = (
    Stage("decode a record", ("consumer.session:SessionFold.add", "consumer.session:SessionFold._add_text")),
    Stage("find its message", ("consumer.session:SessionFold._add_chunk",)),
    Stage("fold the chunk", ("consumer.fold.ai_sdk:AISDKDraft.apply",)),
    Stage("tell the message", ("consumer.session:SessionFold.items",)),
)

WALKS: Final = {
    "append": Walk(f"a durable append of {CHUNKS} chunks, {CONNECTIONS} at a time, on the fast path", _APPEND, append),
    "asgi": Walk(
        f"a durable append of {CHUNKS} chunks, {CONNECTIONS} at a time, by ASGI from a plain uvicorn",
        _ASGI,
        partial(append, fast=False),
    ),
    "chunks": Walk(f"{CHUNKS} chunks of an answer, {CONNECTIONS} answers at a time, fast path", _CHUNKS, chunks),
    "tokens": Walk(f"a token of an answer over NDJSON, {CONNECTIONS} answers at a time", _TOKENS, tokens),
    "page": Walk("a catch-up read of 1 MB from the store", _PAGE, page),
    "fan-out": Walk(f"one event to one of {READERS} SSE readers", _FAN_OUT, fan_out),
    "fold": Walk("a text delta of a session's log, from its bytes to the message", _FOLD, fold),
}
