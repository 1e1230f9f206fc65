"""One request for a whole answer: its body is lines, one for each batch, and so is the response, one for each ack.

HTTP/1.1 by h11 over a connection of its own: it is read while it is written, lasts as long as an answer, and takes no
place among the pooled ones. Proxies of the environment are not used here.
"""

from __future__ import annotations

import ssl
from functools import cache
from typing import Final

import anyio
import anyio.abc
import h11
import msgspec
from yarl import URL

from consumer.answer import Response, error_of, is_success, media_type
from consumer.errors import AttemptFailed, BadAnswer, ClientError, TooLarge
from consumer.transport import tls_context
from consumer.wire import NDJSON, PRODUCER_SEQ, STREAM_DURABILITY
from producer.batcher import Batch
from producer.uploads import Acknowledgement, Receipt

__all__ = ["NdjsonConnection"]

_LINE_BYTES_MAX: Final = 64 * 1024
"""One ack, or one problem: hundreds of bytes."""
_READ_BYTES: Final = 16 * 1024


class _Line(msgspec.Struct):
    """A line of the response: an ack, or an error."""

    error: msgspec.Raw = msgspec.Raw()


class _Status(msgspec.Struct):
    status: int


class NdjsonConnection:
    """A Connection. Use `open`."""

    def __init__(self, stream: anyio.abc.ByteStream) -> None:
        self._stream = stream
        self._http = h11.Connection(h11.CLIENT)
        self._durability = ""
        self._rest = b""

    @classmethod
    async def open(cls, url: URL, headers: dict[str, str], seq: int) -> NdjsonConnection:
        """Connect, and send the head of the request, whose first line has this seq. Raises AttemptFailed."""
        try:
            stream = await _connected(url)
        except (OSError, anyio.BrokenResourceError, anyio.EndOfStream) as error:
            raise AttemptFailed(f"no connection: {error}", effect_unknown=False) from error
        connection = cls(stream)
        told = {
            **headers,
            "host": url.host_port_subcomponent or "",
            "content-type": NDJSON,
            "transfer-encoding": "chunked",
            PRODUCER_SEQ: str(seq),
        }
        await connection._send(h11.Request(method="POST", target=url.raw_path_qs, headers=[*told.items()]))
        return connection

    async def send(self, seq: int, batch: Batch) -> None:  # noqa: ARG002  the lines count themselves
        """See Connection."""
        await self._send(h11.Data(batch.body + b"\n"))

    async def receive(self) -> Receipt:
        """See Connection."""
        line = await self._line()
        try:
            told = msgspec.json.decode(line, type=_Line)
            if not told.error:
                return msgspec.json.decode(line, type=Acknowledgement).receipt(self._durability)
            raise _error(bytes(told.error))
        except msgspec.DecodeError as error:
            raise AttemptFailed(f"the answer is not a broker's: {error}") from error

    async def aclose(self) -> None:
        """See Connection. The rest of the body is not sent: whole lines are what counts."""
        await anyio.aclose_forcefully(self._stream)

    async def _line(self) -> bytes:
        while b"\n" not in self._rest:
            event = await self._event()
            if isinstance(event, h11.Response):
                await self._check(event)
            elif isinstance(event, h11.Data):
                self._rest += bytes(event.data)
                _check_size(self._rest)
            elif isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
                raise AttemptFailed("the upload was ended by the other side")
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    async def _check(self, head: h11.Response) -> None:
        """Raises what the answer means, if it does not begin acks."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in head.headers}
        if is_success(head.status_code):
            if media_type(headers.get("content-type", "")) != NDJSON:
                raise BadAnswer(f"asked for acks and got {headers.get('content-type')}", status=head.status_code)
            self._durability = headers.get(STREAM_DURABILITY, "")
            return
        raise error_of(Response(head.status_code, headers, await self._body()))

    async def _body(self) -> bytes:
        body = b""
        while isinstance(event := await self._event(), h11.Data):
            body += bytes(event.data)
            _check_size(body)
        return body

    async def _event(self) -> type[h11.NEED_DATA | h11.PAUSED] | h11.Event:
        try:
            while (event := self._http.next_event()) is h11.NEED_DATA:
                self._http.receive_data(await self._received())
        except h11.RemoteProtocolError as error:
            raise AttemptFailed(f"the answer is not HTTP: {error}") from error
        return event

    async def _received(self) -> bytes:
        try:
            return await self._stream.receive(_READ_BYTES)
        except anyio.EndOfStream:
            return b""
        except (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise AttemptFailed(f"the connection is lost: {error}") from error

    async def _send(self, event: h11.Request | h11.Data) -> None:
        try:
            data = self._http.send(event)
            if data:
                await self._stream.send(data)
        except (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError, h11.LocalProtocolError) as error:
            raise AttemptFailed(f"the connection is lost: {error}") from error


async def _connected(url: URL) -> anyio.abc.ByteStream:
    host, port = url.host or "", url.port or 0
    if url.scheme == "https":
        return await anyio.connect_tcp(host, port, tls=True, ssl_context=_ssl_context(), tls_standard_compatible=False)
    return await anyio.connect_tcp(host, port)


@cache
def _ssl_context() -> ssl.SSLContext:
    """Trusts whom the other requests trust. Costs more to make than all the rest of a connection."""
    return tls_context()


def _error(problem: bytes) -> ClientError:
    return error_of(Response(msgspec.json.decode(problem, type=_Status).status, {}, problem))


def _check_size(data: bytes) -> None:
    if len(data) > _LINE_BYTES_MAX:
        raise TooLarge(f"more than {_LINE_BYTES_MAX} bytes in one line of an answer")
