"""A model of a broker, small enough to be believed, that answers as badly as it is told to.

It speaks HTTP/1.1 over real sockets byte by byte, so that an answer can be cut anywhere. One stream, `s`, whose
position is a number of four digits; and one session, whose messages are whatever the test says.
"""

import asyncio
import base64
import json
from collections import deque
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit


@dataclass
class Fault:
    """How one request is answered badly."""

    status: int = 0
    """Instead of the answer; 0 gives the answer."""
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    bytes_sent: int | None = None
    """The answer's body is given up behind this many bytes."""
    clean: bool = False
    """Given up as if it were complete, instead of with a reset."""
    silent: bool = False
    """Given up by saying nothing more, instead of with an end."""
    hang_up: bool = False
    """No answer at all."""
    mute: bool = False
    """No answer at all, and no end of it either."""
    late: bool = False
    """Of a message that is posted: only when it has been stored."""


@dataclass
class Asked:
    """A request that came."""

    path: str
    query: dict[str, str]
    headers: dict[str, str]
    method: str = "GET"


class Model:
    """`async with Model() as model:`; `model.url` is its base URL."""

    def __init__(self, *records: Any, content_type: str = "application/json", page_records: int = 2) -> None:
        self.records = list(records)  # bytes where it is a byte stream
        self.content_type = content_type
        self.page_records = page_records
        self.closed = False
        self.escapes = False  # JSON in live answers is ASCII
        self.live_ends = False  # live answers end in order as soon as all is told
        self.messages: list[dict[str, Any]] = []
        self.messages_offset = "-1"
        self.faults: deque[Fault | None] = deque()  # for the next requests, one each
        self.live_faults: deque[Fault | None] = deque()  # the same, for live ones
        self.post_faults: deque[Fault | None] = deque()  # the same, for messages that are posted
        self.posting: asyncio.Event | None = None  # messages that are posted wait for it
        self.asked: list[Asked] = []
        self._changed = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def url(self) -> str:
        host, port = self._server.sockets[0].getsockname()
        return f"http://{host}:{port}"

    async def append(self, *records: Any) -> None:
        async with self._changed:
            self.records += records
            self._changed.notify_all()

    async def close(self) -> None:
        async with self._changed:
            self.closed = True
            self._changed.notify_all()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            self._tasks.discard(task)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request, one answer, one connection."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        line, *header_lines = head.strip().split("\r\n")
        method, locator = line.split(" ")[:2]
        target = urlsplit(locator)
        query = {name: values[0] for name, values in parse_qs(target.query).items()}
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in header_lines)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        self.asked.append(Asked(target.path, query, headers, method))
        faults = self.post_faults if method == "POST" else self.live_faults if "live" in query else self.faults
        fault = (faults.popleft() if faults else None) or Fault()
        if method == "POST" and self.posting is not None:
            await self.posting.wait()
        if fault.late:
            await self._store(json.loads(body), query.get("txid"))
        if fault.hang_up:
            writer.transport.abort()
            return
        if fault.mute:
            await asyncio.Event().wait()
        answer = _Answer(writer, fault)
        if fault.status:
            await answer.start(fault.status, fault.headers)
            await answer.write(fault.body)
        elif method == "POST":
            await self._send_receipt(answer, json.loads(body), query.get("txid"))
        elif target.path.endswith("/messages"):
            await self._send_messages(answer)
        elif query.get("live") == "sse":
            await self._send_events(answer, query["offset"])
        else:
            await self._send_page(answer, query["offset"], wait="live" in query)
        await answer.end()

    async def _store(self, message: dict[str, Any], txid: str | None) -> int:
        """Append a message, or find it; where it stands, 0 for another one of the same id."""
        for position, record in enumerate(self.records, 1):
            if record["type"] == "message" and record["key"] == message["id"]:
                return position if record["value"] == message else 0
        headers = {"operation": "insert", "timestamp": "2026-01-01T00:00:00.000Z", "txid": txid}
        await self.append({"type": "message", "key": message["id"], "value": message, "headers": headers})
        return len(self.records)

    async def _send_receipt(self, answer: "_Answer", message: dict[str, Any], txid: str | None) -> None:
        position = await self._store(message, txid)
        told: dict[str, Any] = {"status": 409, "code": "MESSAGE_EXISTS", "title": "that id is taken"}
        if position:
            told = {"messageId": message["id"], "offset": f"{position:04}"}
        await answer.start(int(told.get("status", 201)), {"content-type": "application/json"})
        await answer.write(json.dumps(told).encode())

    async def _send_messages(self, answer: "_Answer") -> None:
        await answer.start(200, {"content-type": "application/json"})
        told = {"sessionId": "s", "offset": self.messages_offset, "messages": self.messages}
        await answer.write(json.dumps(told).encode())

    async def _send_page(self, answer: "_Answer", offset: str, *, wait: bool) -> None:
        position = self._position(offset)
        if wait:
            await self._wait_beyond(position)
        records = self.records[position : position + self.page_records]
        end = position + len(records)
        headers = {"content-type": self.content_type, "stream-next-offset": f"{end:04}", "stream-cursor": "7"}
        if end == len(self.records):
            headers["stream-up-to-date"] = "true"
            if self.closed:
                headers["stream-closed"] = "true"
        await answer.start(200, headers)
        await answer.write(json.dumps(records).encode() if self._is_json else b"".join(records))

    async def _send_events(self, answer: "_Answer", offset: str) -> None:
        headers = {"content-type": "text/event-stream"}
        if not self._is_json and not self._is_text:
            headers["stream-sse-data-encoding"] = "base64"
        await answer.start(200, headers)
        position = self._position(offset)
        told_position = -1
        while True:
            records = self.records[position : position + self.page_records]
            position += len(records)
            if records:
                await answer.write(self._data_event(records))
            if position > told_position:
                await answer.write(self._control_event(position))
                told_position = position
            if position == len(self.records):
                if self.live_ends or self.closed:
                    return
                await answer.write(b": keep-alive\n\n")
                await self._wait_beyond(position)
                if position == len(self.records):  # it was closed
                    await answer.write(self._control_event(position))
                    return

    def _data_event(self, records: list[Any]) -> bytes:
        if self._is_text:
            text = b"".join(records).decode().replace("\r\n", "\n").replace("\r", "\n")
            lines = text.split("\n")
        elif not self._is_json:
            text = base64.b64encode(b"".join(records)).decode()
            lines = [text[start : start + 5] for start in range(0, len(text), 5)]
        else:
            lines = json.dumps(records, indent=1, ensure_ascii=self.escapes).split("\n")
        # Half a pair of surrogates is no UTF-8: it stays the escape as which it was written.
        return "".join(["event: data\n", *(f"data: {line}\n" for line in lines), "\n"]).encode(
            errors="backslashreplace"
        )

    def _control_event(self, position: int) -> bytes:
        at_end = position == len(self.records)
        control = {"streamNextOffset": f"{position:04}", "streamCursor": "8", "upToDate": at_end}
        if at_end and self.closed:
            control["streamClosed"] = True
        return f"id: {position:04}\nevent: control\ndata: {json.dumps(control)}\n\n".encode()

    async def _wait_beyond(self, position: int) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: len(self.records) > position or self.closed)

    def _position(self, offset: str) -> int:
        return len(self.records) if offset == "now" else max(0, int(offset))  # -1 is the start

    @property
    def _is_text(self) -> bool:
        return self.content_type.startswith("text/")

    @property
    def _is_json(self) -> bool:
        return self.content_type == "application/json"


class _Answer:
    """An answer on its way, in HTTP's chunked coding, as far as its fault lets it come."""

    def __init__(self, writer: asyncio.StreamWriter, fault: Fault) -> None:
        self._writer = writer
        self._fault = fault
        self._bytes_left = fault.bytes_sent

    async def start(self, status: int, headers: dict[str, str]) -> None:
        lines = [f"HTTP/1.1 {status} OK", "connection: close", "transfer-encoding: chunked"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self._writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        await self._writer.drain()

    async def write(self, data: bytes) -> None:
        sent = data if self._bytes_left is None else data[: self._bytes_left]
        if sent:
            self._writer.write(b"%x\r\n%b\r\n" % (len(sent), sent))
            await self._writer.drain()
        if self._bytes_left is not None:
            self._bytes_left -= len(sent)
            if len(sent) < len(data) or (data and self._bytes_left == 0):
                await self._give_up()

    async def _give_up(self) -> None:
        if self._fault.silent:
            await asyncio.Event().wait()
        if self._fault.clean:
            await self.end()
        raise ConnectionResetError

    async def end(self) -> None:
        self._writer.write(b"0\r\n\r\n")
        await self._writer.drain()
