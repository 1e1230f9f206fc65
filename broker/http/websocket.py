"""WebSocket uploads: `GET …/upload`. Batches, the finish and heartbeats come in; acks, the end and a stop go out.

Text frames, each one JSON object:

    {"seq": n, "chunks": [...]}   {"seq": n, "finish": {...}}   {"heartbeat": true}          from the client
    {"ack": {...}}   {"finished": {...}}   {"stop": {...}}   {"error": {...}}                to it
"""

from __future__ import annotations

import json
import logging
import re
from typing import Any, Final

import msgspec

from broker import limits
from broker.errors import BrokerError
from broker.http import session_answers as answers, session_api, session_requests as requests
from broker.http.bodies import Bodies
from broker.http.direct import Direct, direct_socket_of
from broker.http.endpoint import answer_error, request_of
from broker.http.problems import BadRequest, Form, answer_with
from broker.http.request import ClientLeft, Receive, Scope, headers_of, request_id_of
from broker.http.response import COMMON, Response, Send
from broker.http.session_routes import Target, target_of
from broker.http.upload import End, Finished, Upload, error_of
from broker.http.uploads import Uploads
from consumer.wire import Code

log = logging.getLogger("streamfold.http")

_NORMAL, _REFUSED, _TOO_BIG, _LEAVING, _LATER = 1000, 1008, 1009, 1012, 1013
"""Close codes (RFC 6455, 7.4, and IANA's registry of them)."""

_encode: Final = msgspec.json.Encoder().encode
_NAME: Final = r'[ \t\r\n]*"([A-Za-z]*)"[ \t\r\n]*:[ \t\r\n]*'
_FIRST: Final = re.compile(r"[ \t\r\n]*\{" + _NAME)
_NEXT: Final = re.compile(r"[ \t\r\n]*," + _NAME)
_BATCH: Final = re.compile(
    rb'\{[ \t\r\n]*"seq":[ \t\r\n]*([1-9][0-9]{0,14}),[ \t\r\n]*"chunks":[ \t\r\n]*(\[.*\])[ \t\r\n]*\}', re.DOTALL
)
"""A batch as machines write it, that opens nothing, and whose number is one that is allowed. What is between the
brackets need not be an array yet, nor UTF-8: whoever takes it finds out."""
_END: Final = re.compile(r"[ \t\r\n]*\}[ \t\r\n]*")
# Values are cut out, not read: what they say is for whoever takes them, so no number needs to be made of digits.
_scan: Final = json.JSONDecoder(parse_int=str, parse_float=str).raw_decode


class WebSocketEndpoint:
    """See the module. An ASGI application."""

    def __init__(self, uploads: Uploads, bodies: Bodies) -> None:
        self._uploads = uploads
        self._bytes_max = bodies.bytes_max

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Carry out one upload."""
        headers = headers_of(scope["headers"])
        request_id = request_id_of(headers)
        form: Form = answer_with
        try:
            request = request_of(scope, headers, request_id.decode(), session_api.PREFIX)
            target = _upload_of(request.path)
            form = answers.about(target)
            with self._uploads.upload("websocket", request, target) as upload:
                await send({"type": "websocket.accept", "headers": [(b"x-request-id", request_id)]})
                exchange = _Exchange(self._uploads, self._bytes_max, upload, direct_socket_of(scope), receive, send)
                await upload.run(exchange.read, exchange.write)
        except (BadRequest, BrokerError) as error:
            response = answer_error(error, request_id.decode(), self._uploads.traffic, form)
            self._uploads.traffic.count(response.status)
            await _deny(scope, send, response, request_id)
        except OSError:
            return  # how a server says that the client has left (ASGI, WebSocket 2.4)
        except Exception:  # a bug of ours, and this connection's alone: the server closes it, and the client comes back
            self._uploads.traffic.bugs += 1
            log.exception("upload %s failed", request_id.decode())


class _Exchange:
    """The two directions of one upload's connection."""

    def __init__(
        self,
        uploads: Uploads,
        bytes_max: int,
        upload: Upload,
        direct: Direct | None,
        receive: Receive,
        send: Send,
    ) -> None:
        self._uploads = uploads
        self._bytes_max = bytes_max
        self._upload = upload
        self._direct = direct
        self._receive = receive
        self._send = send
        self._waits = False  # for a frame: nothing that came before is still to be taken
        self._says = False  # something that is to come before the next ack

    async def read(self) -> None:
        """Take every frame. Raises BadRequest, BrokerError, ClientLeft."""
        if self._direct is not None:
            self._direct.take = self._take_at_once
        try:
            while not self._upload.is_over:
                self._waits = True
                message = await self._receive()
                self._waits = False
                if message["type"] == "websocket.disconnect":
                    raise ClientLeft
                if message["type"] == "websocket.receive":
                    await self._take(message.get("text"))
        finally:
            if self._direct is not None:
                self._direct.take = None

    async def _take(self, text: str | None) -> None:
        if text is None:
            raise BadRequest(Code.INVALID_BODY, "a frame is text")
        match members(text):
            case {"seq": seq, "chunks": chunks, **more} if not more:
                await self._upload.put(_seq(seq), self._within_bounds(chunks))
            case {"seq": seq, "finish": told, **more} if not more:
                await self._upload.finish(_seq(seq), self._within_bounds(told))
            case {"heartbeat": "true", **more} if not more:
                await self._upload.keep_alive()
            case _:
                raise BadRequest(Code.INVALID_BODY, "a frame has seq and chunks, seq and finish, or heartbeat")

    def _take_at_once(self, message: bytes) -> bool:
        """Take a frame that is a batch and needs no waiting; False: it has not been taken."""
        batch = _BATCH.fullmatch(message) if self._waits else None
        if batch is None:
            return False
        seq, chunks = batch.groups()
        return len(chunks) <= self._bytes_max and self._upload.put_at_once(int(seq), (chunks,))

    def _within_bounds(self, text: str) -> bytes:
        body = text.encode()
        if len(body) > self._bytes_max:
            raise BadRequest(Code.BODY_TOO_LARGE, f"more than {self._bytes_max} bytes")
        return body

    async def write(self) -> None:
        """Tell acks and the end."""
        upload, send = self._upload, self._send
        if self._direct is not None:
            upload.tell_with(self._tell)
        news: bytes | End | None = await upload.news()
        while isinstance(news, bytes):
            self._says = True
            await _say(send, _ack(news))
            self._says = False
            news = await upload.news()
        if isinstance(news, Response):
            await self._say_refusal(news)
        elif isinstance(news, Finished) and news.answer is not None:
            await _say(send, b'{"finished":%b}' % news.answer.body)
            await send({"type": "websocket.close", "code": _NORMAL})

    def _tell(self, ack: bytes) -> bool:
        """Tell an ack in one go; False: it is not told."""
        return not self._says and self._direct is not None and self._direct.write(_ack(ack))

    async def _say_refusal(self, response: Response) -> None:
        stop = await self._upload.stop_request()
        if stop is not None:
            await _say(self._send, b'{"stop":%b}' % _encode(stop))
        await _say(self._send, error_of(response))
        await self._send({"type": "websocket.close", "code": self._close_code(response)})

    def _close_code(self, response: Response) -> int:
        match response.status:
            case 413:
                return _TOO_BIG
            case 503 if self._uploads.partition.draining:
                return _LEAVING
            case 429 | 500 | 503:
                return _LATER
        return _REFUSED


def _ack(ack: bytes) -> bytes:
    return b'{"ack":%b}' % ack


async def _say(send: Send, frame: bytes) -> None:
    await send({"type": "websocket.send", "text": frame.decode()})


async def _deny(scope: Scope, send: Send, response: Response, request_id: bytes) -> None:
    """Answer the handshake with a problem, where the server lets us; else with its own 403."""
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close"})
        return
    headers: list[Any] = [*COMMON, (b"x-request-id", request_id), *response.headers]
    await send({"type": "websocket.http.response.start", "status": response.status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": response.body})


def _upload_of(path: str) -> Target:
    target = target_of("GET", path)
    if target.action != "upload":
        raise BadRequest(Code.NOT_FOUND)
    return target


def _seq(text: str) -> int:
    return requests.seq_of({b"producer-seq": text.encode()})


def members(text: str) -> dict[str, str]:
    """The members of the JSON object that a frame is, their values as they were spelled.

    So that chunks reach the log like those of a POST. Raises BadRequest (INVALID_JSON, INVALID_BODY).
    """
    found: dict[str, str] = {}
    at, name = 0, _FIRST.match(text)
    while name is not None:
        at = _end_of_value(text, name.end())
        if name[1] in found:
            raise BadRequest(Code.INVALID_BODY, f"{name[1]} is there twice")
        found[name[1]] = text[name.end() : at]
        name = _NEXT.match(text, at)
    if not found or _END.fullmatch(text, at) is None:
        raise BadRequest(Code.INVALID_JSON, "a frame is a JSON object with named members")
    return found


def _end_of_value(text: str, start: int) -> int:
    try:
        _, end = _scan(text, start)
    except ValueError as error:
        raise BadRequest(Code.INVALID_JSON, str(error)) from None
    except RecursionError:
        raise BadRequest(Code.INVALID_JSON, f"nested deeper than {limits.JSON_DEPTH_MAX}") from None
    return end
