"""One WebSocket for a whole answer: batches and the finish go out as frames, acks come in. The extra `websocket`."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from yarl import URL

from consumer.answer import Response, error_of
from consumer.errors import AttemptFailed, BadAnswer, ClientError
from producer.batcher import Batch
from producer.uploads import Acknowledgement, Receipt

__all__ = ["SocketConnection", "is_installed"]

try:
    from websockets.asyncio.client import ClientConnection, connect
    from websockets.exceptions import InvalidHandshake, InvalidStatus, WebSocketException

    is_installed = True
except ImportError:  # the extra `websocket` is not installed; Producer says so
    is_installed = False

_FRAME_BYTES_MAX: Final = 64 * 1024
"""One frame of the broker's: an ack, a finish, a problem."""
_SCHEMES: Final = {"http": "ws", "https": "wss"}


class _Status(msgspec.Struct):
    status: int


class _Frame(msgspec.Struct):
    """One of them is there; a `stop` is followed by an error that says the same, and more."""

    ack: Acknowledgement | None = None
    finished: Acknowledgement | None = None
    error: msgspec.Raw = msgspec.Raw()


class SocketConnection:
    """A Connection. Use `open`."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket

    @classmethod
    async def open(cls, url: URL, headers: dict[str, str]) -> SocketConnection:
        """Raises AttemptFailed, and what the handshake was refused with."""
        target = str(url.with_scheme(_SCHEMES[url.scheme]))
        try:
            socket = await connect(
                target,
                additional_headers=headers,
                max_size=_FRAME_BYTES_MAX,
                compression=None,  # deltas are too short for it to pay
                open_timeout=None,  # the caller has one
                close_timeout=1.0,
            )
        except InvalidStatus as refusal:
            raise _refusal(refusal.response) from refusal
        except (OSError, InvalidHandshake) as error:
            raise AttemptFailed(f"no connection: {error}", effect_unknown=False) from error
        return cls(socket)

    async def send(self, seq: int, batch: Batch) -> None:
        """See Connection."""
        name = "finish" if batch.last else "chunks"
        try:
            await self._socket.send(f'{{"seq":{seq},"{name}":{batch.body.decode()}}}')
        except WebSocketException as error:
            raise AttemptFailed(f"the connection is lost: {error}") from error

    async def receive(self) -> Receipt:
        """See Connection."""
        while True:
            try:
                frame = msgspec.json.decode(await self._socket.recv(), type=_Frame)
            except WebSocketException as error:
                raise AttemptFailed(f"the connection is lost: {error}") from error
            except msgspec.DecodeError as error:
                raise BadAnswer(f"the frame is not a broker's: {error}") from error
            told = frame.ack or frame.finished
            if told is not None:
                return told.receipt("")
            if frame.error:
                raise _error(bytes(frame.error))

    async def aclose(self) -> None:
        """See Connection."""
        self._socket.transport.abort()


def _error(problem: bytes) -> ClientError:
    return error_of(Response(msgspec.json.decode(problem, type=_Status).status, {}, problem))


def _refusal(response: Any) -> ClientError:
    headers = {name.lower(): value for name, value in response.headers.raw_items()}
    return error_of(Response(response.status_code, headers, response.body or b""))
