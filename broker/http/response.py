"""Responses as values, the headers that they have in common, and the one place that sends them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Final

import msgspec

Header = tuple[bytes, bytes]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

CORS_EXPOSED: Final = (
    b"etag, location, retry-after, x-request-id, stream-next-offset, stream-cursor, stream-up-to-date, "
    b"stream-closed, stream-ttl, stream-expires-at, stream-sse-data-encoding, stream-durability, producer-epoch, "
    b"producer-seq, producer-expected-seq, producer-received-seq, preference-applied"
)
# A wildcard never covers Authorization, and old browsers know none at all.
CORS_ALLOWED: Final = (
    b"authorization, content-type, if-none-match, last-event-id, prefer, producer-epoch, producer-id, producer-seq, "
    b"stream-closed, stream-expires-at, stream-fork-offset, stream-fork-sub-offset, stream-forked-from, stream-seq, "
    b"stream-ttl, traceparent, txid, x-request-id, *"
)
TO_ANYBODY: Final[tuple[Header, ...]] = (
    # PROTOCOL.md 12.7: nothing that a writer put into a stream may be sniffed into something executable …
    (b"x-content-type-options", b"nosniff"),
)
"""On every response, whatever its status."""

COMMON: Final[tuple[Header, ...]] = (
    *TO_ANYBODY,
    # … and yet every page may fetch it: who may read is a matter of authorisation, not of origin.
    (b"cross-origin-resource-policy", b"cross-origin"),
    (b"access-control-allow-origin", b"*"),
    (b"access-control-expose-headers", CORS_EXPOSED),
)
"""On every response that a page may get to see, whatever its status: a browser hides what a bare error says."""

PREFLIGHT: Final[tuple[Header, ...]] = (
    (b"access-control-allow-methods", b"GET, HEAD, PUT, POST, DELETE, OPTIONS"),
    (b"access-control-allow-headers", CORS_ALLOWED),
    (b"access-control-max-age", b"600"),
)
_WRITES: Final = frozenset({"PUT", "POST", "DELETE"})
NO_BODY: Final[Header] = (b"content-length", b"0")


class Response(msgspec.Struct, frozen=True, gc=False):
    """A whole response, but for `COMMON` and the request id. `headers` include the length where one is due."""

    status: int
    headers: list[Header]
    body: bytes = b""


class CutOff(Exception):
    """A live body stops here and is not whole. Its client has to notice: the connection ends, the body does not."""


class LiveResponse(msgspec.Struct, frozen=True):
    """A 200 whose body arrives over time. Whoever sends it runs `chunks` to their end or closes them.

    `chunks` may raise CutOff.
    """

    headers: list[Header]
    chunks: AsyncGenerator[bytes]


def is_for_page(method: str, headers: Mapping[bytes, bytes]) -> bool:
    """Whether a page of some other origin may have sent a request, or may get its response: that has `COMMON`.

    Browsers put an Origin on whatever is no GET or HEAD (Fetch, 3.1), and no cache keeps what a write is answered with.
    What a GET is answered with may be kept and serve a page later, so that says the same to everybody.
    """
    return method not in _WRITES or b"origin" in headers


async def send_response(send: Send, response: Response, request_id: bytes, *, for_page: bool = True) -> None:
    """Send all of it. `for_page`: see `is_for_page`."""
    common = COMMON if for_page else TO_ANYBODY
    headers = [*common, (b"x-request-id", request_id), *response.headers]
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    await send({"type": "http.response.body", "body": response.body})


async def send_live(send: Send, response: LiveResponse, request_id: bytes) -> None:
    """Send it chunk by chunk: each waits until the one before has left, so a slow reader holds up nobody else."""
    headers = [*COMMON, (b"x-request-id", request_id), *response.headers]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    async for chunk in response.chunks:
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b""})
