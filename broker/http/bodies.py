"""Request bodies: how much is read of one, for how long, and what becomes of one that is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Final

from broker import limits
from broker.http.coding import Inflater, inflater_of
from broker.http.problems import BadRequest
from broker.http.request import ClientLeft, Headers, Receive
from broker.http.response import Header
from consumer.wire import Code

CLOSE: Final[tuple[Header, ...]] = ((b"connection", b"close"),)


class Bodies:
    """Reads bodies of up to `bytes_max` bytes, inflated."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.inflated_bytes = 0
        """What bodies in a content coding have become."""

    async def read(self, headers: Headers, receive: Receive) -> bytes:
        """The whole body, its content coding undone.

        Raises BadRequest (BODY_TOO_LARGE, INVALID_BODY, UNSUPPORTED_CODING) when it is longer than `bytes_max`, does
        not arrive within `limits.BODY_READ_S` or is not what its coding says, and ClientLeft.
        """
        inflater = inflater_of(headers)
        declared = headers.get(b"content-length")
        if declared is not None and len(declared) < 20 and int(declared) > self.bytes_max:  # noqa: PLR2004 -- of 2**64
            await discard(headers, receive)
            raise _too_large(self.bytes_max)
        # The first part has mostly arrived together with the headers, and a timer costs as much as all else here: a
        # client that sends headers and no body is bounded by the number of connections, like one that never ends its
        # headers.
        body, more = await part_of(receive)
        if not more and len(body) <= self.bytes_max and inflater is None:
            return body
        try:
            async with asyncio.timeout(limits.BODY_READ_S):
                return await self._rest(body, more, headers, receive, inflater)
        except TimeoutError:
            detail = f"not complete after {limits.BODY_READ_S:.0f} s"
            raise BadRequest(Code.INVALID_BODY, detail, headers=CLOSE) from None

    def pieces(self, inflater: Inflater, data: bytes) -> Iterator[bytes]:
        """What `data` becomes, piece by piece. Raises BadRequest (INVALID_BODY)."""
        for piece in inflater.feed(data):
            self.inflated_bytes += len(piece)
            yield piece

    def _inflated(self, inflater: Inflater, data: bytes, bytes_max: int) -> bytes | None:
        """What `data` becomes, or None when that is more than `bytes_max`. Raises BadRequest (INVALID_BODY)."""
        pieces, size = [], 0
        for piece in self.pieces(inflater, data):
            size += len(piece)
            if size > bytes_max:
                return None
            pieces.append(piece)
        return b"".join(pieces)

    async def _rest(
        self,
        body: bytes,
        more: bool,  # noqa: FBT001 -- as ASGI has it
        headers: Headers,
        receive: Receive,
        inflater: Inflater | None,
    ) -> bytes:
        parts: list[bytes] = []
        room, received = self.bytes_max, 0
        while True:
            received += len(body)
            part = body if inflater is None else self._inflated(inflater, body, room)
            if part is None or len(part) > room:
                if more:
                    await discard(headers, receive, received)
                raise _too_large(self.bytes_max)
            room -= len(part)
            parts.append(part)
            if not more:
                break
            body, more = await part_of(receive)
        if inflater is not None:
            inflater.end()
        return b"".join(parts)


async def part_of(receive: Receive) -> tuple[bytes, bool]:
    """The next part of a body, and whether more come. Raises ClientLeft."""
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientLeft
    return message.get("body", b""), message.get("more_body", False)


async def discard(headers: Headers, receive: Receive, size: int = 0) -> None:
    """Let a body that is refused run out, within reason; `size` bytes of it have come.

    A client still writing when the connection closes sees a reset instead of our answer, and tries again.
    """
    if b"expect" in headers and not size:  # it waits for our answer before it sends the body
        return
    more = True
    try:
        async with asyncio.timeout(limits.BODY_DISCARD_S):
            while more and size < limits.BODY_DISCARD_BYTES_MAX:
                body, more = await part_of(receive)
                size += len(body)
    except TimeoutError:
        return


def _too_large(bytes_max: int) -> BadRequest:
    return BadRequest(Code.BODY_TOO_LARGE, f"more than {bytes_max} bytes", headers=CLOSE)
