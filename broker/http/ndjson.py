"""NDJSON uploads: `POST …/chunks` with a body that lasts as long as the answer it carries.

Each line is a batch, a JSON array of chunks or one chunk, and the response is lines too: acks, as batches become
durable. Empty lines say that the client is still there.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import re
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

from broker import limits
from broker.core.state import media_type
from broker.errors import BrokerError
from broker.http import session_answers as answers, session_api, session_requests as requests
from broker.http.bodies import CLOSE, Bodies, discard, part_of
from broker.http.coding import Inflater, inflater_of
from broker.http.direct import direct_of
from broker.http.endpoint import answer_error, request_of
from broker.http.problems import BadRequest, Form, answer_with
from broker.http.request import ClientLeft, Headers, Receive, Request, Scope, headers_of, raw_path_of, request_id_of
from broker.http.response import COMMON, Header, Response, Send
from broker.http.session_routes import Target, target_of
from broker.http.upload import End, Finished, Upload, error_of
from broker.http.uploads import Uploads
from consumer.wire import NDJSON, Code

log = logging.getLogger("streamfold.http")

_HEADERS: Final[tuple[Header, ...]] = (
    (b"content-type", NDJSON.encode()),
    # A proxy that stores, compresses or buffers acks delays them until it has enough of them.
    (b"cache-control", b"no-store, no-transform"),
    (b"x-accel-buffering", b"no"),
    # One upload, one connection: what a client still writes when this is over must not pass for its next request.
    *CLOSE,
)
_CHUNKS: Final = b"/chunks"


_EMPTY_LINES: Final = re.compile(rb"\n[ \t\r\n]+")


class Lines:
    """Cuts what arrives into lines, with a bound on each. Of empty lines in a row it makes one."""

    def __init__(self, line_bytes_max: int) -> None:
        self._line_bytes_max = line_bytes_max
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterable[bytes]:
        """The lines that `data` completes, without their ends. Raises BadRequest (BODY_TOO_LARGE)."""
        # In one step: a compressed body may become millions of them.
        head, newline, tail = _EMPTY_LINES.sub(b"\n\n", data).partition(b"\n")
        self._rest += head  # in place: a long line in small parts is not copied for each of them
        self._require_short(len(self._rest))
        if not newline:
            return
        first, self._rest = bytes(self._rest), bytearray()
        *lines, rest = tail.split(b"\n")
        yield first
        for line in lines:
            self._require_short(len(line))
            yield line
        self._rest += rest
        self._require_short(len(rest))

    @property
    def within(self) -> bool:
        """Whether a line has begun and not ended."""
        return bool(self._rest)

    def end(self) -> bytes:
        """The last line, which needs no end where the body has one."""
        return bytes(self._rest)

    def _require_short(self, size: int) -> None:
        if size > self._line_bytes_max:
            raise BadRequest(Code.BODY_TOO_LARGE, f"a line of more than {self._line_bytes_max} bytes")


def _generation_of(request: Request) -> Target:
    """What is uploaded to. Raises BadRequest."""
    target = target_of(request.method, request.path)
    if not target.part_id:
        raise BadRequest(Code.INVALID_CONTENT_TYPE, "only the chunks of one generation come as NDJSON")
    return target


class NdjsonEndpoint:
    """See the module. An ASGI application: an upload reads and writes at the same time."""

    def __init__(self, uploads: Uploads, bodies: Bodies) -> None:
        self._uploads = uploads
        self._bodies = bodies

    @staticmethod
    def takes(scope: Scope) -> bool:
        """Whether this HTTP request under the session API's prefix is an upload."""
        if scope["method"] != "POST" or not raw_path_of(scope).endswith(_CHUNKS):
            return False
        told = next((value for name, value in scope["headers"] if name == b"content-type"), b"")
        return media_type(told.decode("latin-1")) == NDJSON

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Carry out one upload."""
        headers = headers_of(scope["headers"])
        exchange = _Exchange(self._uploads, self._bodies, headers, scope, receive, send)
        form: Form = answer_with
        try:
            request = request_of(scope, headers, exchange.request_id.decode(), session_api.PREFIX)
            target = _generation_of(request)
            form = answers.about(target)
            seq, inflater = requests.seq_of(headers), inflater_of(headers)
            with self._uploads.upload("ndjson", request, target) as upload:
                reading = functools.partial(exchange.read, upload, seq, inflater)
                await upload.run(reading, functools.partial(exchange.write, upload))
        except (BadRequest, BrokerError) as error:
            await exchange.refuse(answer_error(error, exchange.request_id.decode(), self._uploads.traffic, form))
        except Exception:  # a bug of ours. An answer that has begun takes nothing back: its end without an end tells
            self._uploads.traffic.bugs += 1
            log.exception("upload %s failed", exchange.request_id.decode())


class _Exchange:
    """The two directions of one upload's connection."""

    def __init__(
        self, uploads: Uploads, bodies: Bodies, headers: Headers, scope: Scope, receive: Receive, send: Send
    ) -> None:
        self.request_id = request_id_of(headers)
        self._uploads = uploads
        self._bodies = bodies
        self._headers = headers
        self._direct = direct_of(scope)
        self._receive = receive
        self._send = send
        self._more = True  # whether the body goes on
        self._waits = False  # for a part: nothing that came before is still to be put
        self._sends = False  # something that is to come before the next ack
        self._lines = Lines(bodies.bytes_max)
        self._seq = 0  # of the next line
        self._begun = False
        self._idle_bytes = 0  # since the last line
        self._clock = asyncio.get_running_loop().time
        self._came_s = 0.0  # on its clock: when the last part came

    async def read(self, upload: Upload, seq: int, inflater: Inflater | None) -> None:
        """Put every line. Raises BadRequest, BrokerError, ClientLeft."""
        self._seq = seq
        if self._direct is not None and inflater is None:
            self._direct.take = functools.partial(self._take, upload)
        try:
            while self._more and not upload.is_over:
                part = await self._part()
                for piece in (part,) if inflater is None else self._bodies.pieces(inflater, part):
                    await self._put(upload, piece)
                    if inflater is not None:
                        await asyncio.sleep(0)  # a small part may have become a thousand pieces: others have their turn
        finally:
            if self._direct is not None:
                self._direct.take = None
        if upload.is_over:
            return
        if inflater is not None:
            inflater.end()
        if last := self._lines.end().strip():
            await upload.put(self._seq, last)
        upload.close()

    async def _put(self, upload: Upload, piece: bytes) -> None:
        seq = self._seq
        for line in self._lines.feed(piece):
            if line.strip():
                await upload.put(self._seq, line)
                self._seq, self._begun = self._seq + 1, True
            else:
                await upload.keep_alive()
            if upload.is_over:
                return
        self._idle_bytes = 0 if self._seq > seq else self._idle_bytes + len(piece)
        if self._idle_bytes > 2 * self._bodies.bytes_max:  # the longest line, and as much again
            raise BadRequest(Code.BODY_TOO_LARGE, "nothing but empty lines")

    def _take(self, upload: Upload, part: bytes) -> bool:
        """Put a part in one go that is whole lines and needs no waiting; False: nothing of it has been put."""
        if not self._waits or self._lines.within or len(part) > self._bodies.bytes_max or part[-1:] != b"\n":
            return False
        lines = part[:-1].split(b"\n")
        if not upload.put_at_once(self._seq, lines):  # nor does it take an empty line
            return False
        self._seq, self._begun, self._idle_bytes = self._seq + len(lines), True, 0
        self._came_s = self._clock()
        return True

    async def _part(self) -> bytes:
        """The next part that is not taken directly. Raises BadRequest when nothing at all has come for long."""
        self._came_s, self._waits = self._clock(), True
        try:
            while True:
                wait_s = limits.UPLOAD_SILENCE_S if self._begun else limits.BODY_READ_S
                try:
                    async with asyncio.timeout_at(self._came_s + wait_s):
                        part, self._more = await part_of(self._receive)
                        return part
                except TimeoutError:
                    if self._clock() >= self._came_s + wait_s:
                        raise BadRequest(Code.INVALID_BODY, f"nothing came for {wait_s:.0f} s") from None
        finally:
            self._waits = False

    async def write(self, upload: Upload) -> None:
        """Tell acks and the end."""
        news = await upload.news()
        if isinstance(news, Finished) and upload.acks.seq < 0:
            news = upload.problem(BadRequest(Code.EMPTY_BODY, "no line has a batch"))
        if isinstance(news, Response):
            await upload.stop_reading()
            await self.refuse(news)
        elif news is not None:
            await self._write_lines(upload, news)

    async def _write_lines(self, upload: Upload, news: bytes | End | None) -> None:
        await self._begin()
        if self._direct is not None:
            upload.tell_with(self._tell)
        while isinstance(news, bytes):
            await self._send_body(news + b"\n")
            news = await upload.news()
        if isinstance(news, Finished):
            await self._send_body(_done(upload.acks.newest()))
        elif news is not None:
            await self._send_body(error_of(news) + b"\n")
            await upload.stop_reading()
            await self._run_out()
        await self._send({"type": "http.response.body", "body": b""})

    async def refuse(self, response: Response) -> None:
        """Answer an upload of which nothing was acknowledged.

        At once, for a client that reads while it writes; and the end of the answer, behind which the connection closes,
        only when the body has run out, for one that does not.
        """
        self._uploads.traffic.count(response.status)
        closing = () if CLOSE[0] in response.headers else CLOSE
        headers = [*COMMON, (b"x-request-id", self.request_id), *response.headers, *closing]
        await self._send({"type": "http.response.start", "status": response.status, "headers": headers})
        await self._send_body(response.body)
        await self._run_out()
        await self._send({"type": "http.response.body", "body": b""})

    async def _run_out(self) -> None:
        if self._more:
            with suppress(ClientLeft):
                await discard(self._headers, self._receive)

    async def _begin(self) -> None:
        self._uploads.traffic.count(200)
        durability = self._uploads.partition.durability.encode()
        headers = [*COMMON, (b"x-request-id", self.request_id), *_HEADERS, (b"stream-durability", durability)]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def _send_body(self, body: bytes) -> None:
        self._sends = True
        await self._send({"type": "http.response.body", "body": body, "more_body": True})
        self._sends = False

    def _tell(self, ack: bytes) -> bool:
        """What `_write_lines` does with an ack, in one go; False: it is not told."""
        return not self._sends and self._direct is not None and self._direct.write(ack + b"\n")


def _done(ack: bytes) -> bytes:
    """The last ack once more, as the last line of an upload that ended well."""
    return ack[:-1] + b',"done":true}\n'
