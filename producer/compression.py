"""Large request bodies, compressed on their way: a transport before another one.

For the session API, which a broker of ours answers, and which says what codings it takes. Raw streams are the
protocol's, and a server of somebody else's might store what it should have inflated; so their requests do not come
through here. Nor do NDJSON uploads and WebSockets: their lines and frames are small and must leave at once, and a
compressor that remembers the ones before costs both sides memory for every answer that is running.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from typing import Final

import anyio.to_thread

from consumer.transport import Request, Response, Transport

__all__ = ["CompressingTransport"]

_THREAD_BYTES_MIN: Final = 64 * 1024
"""From here on it takes longer than to hand it to a thread and back, and the loop should not wait for it."""


def _gzip(body: bytes) -> bytes:
    deflating = zlib.compressobj(level=1, wbits=31)  # higher levels take three times as long for a tenth less
    return deflating.compress(body) + deflating.flush()


def _codings() -> dict[str, Callable[[bytes], bytes]]:
    """What can be had here, the best first: zstd takes a third of the time for the same."""
    gzip_only: dict[str, Callable[[bytes], bytes]] = {"gzip": _gzip}
    try:
        if sys.version_info >= (3, 14):
            from compression import zstd  # noqa: PLC0415  not everywhere
        else:
            from backports import zstd  # noqa: PLC0415  as above: it comes with the extra `server`
    except ImportError:
        return gzip_only
    return {"zstd": partial(zstd.compress, level=1), **gzip_only}


CODINGS: Final = _codings()


class CompressingTransport:
    """A Transport that compresses what is `bytes_min` long or longer; nothing, if that is None.

    A broker that does not take a coding (415) is asked in one that it names, or without, from then on. A body is the
    same whatever it travels as, so a copy of a batch may be compressed in another way than the original was.
    """

    def __init__(self, transport: Transport, bytes_min: int | None, codings: Sequence[str] = tuple(CODINGS)) -> None:
        self._transport = transport
        self._bytes_min = bytes_min
        self._codings = [*codings]

    async def send(self, request: Request) -> Response:
        """See Transport."""
        while self._bytes_min is not None and len(request.body) >= self._bytes_min and self._codings:
            coding = self._codings[0]
            response = await self._transport.send(await _compressed(request, coding))
            if response.status != HTTPStatus.UNSUPPORTED_MEDIA_TYPE:
                return response
            self._take_back(coding, response.headers)
        return await self._transport.send(request)

    async def aclose(self) -> None:
        """See Transport."""
        await self._transport.aclose()

    def _take_back(self, coding: str, headers: Mapping[str, str]) -> None:
        taken = {name.strip().lower() for name in headers.get("accept-encoding", "").split(",")}
        self._codings = [name for name in self._codings if name != coding and name in taken]


async def _compressed(request: Request, coding: str) -> Request:
    compress = CODINGS[coding]
    if len(request.body) < _THREAD_BYTES_MIN:
        body = compress(request.body)
    else:
        body = await anyio.to_thread.run_sync(compress, request.body)
    return replace(request, body=body, headers={**request.headers, "content-encoding": coding})
