"""Content codings of responses (RFC 9110, 8.4 and 12.5.3): pages of records and lists of messages as zstd or gzip.

Only what is whole and large: nothing that is live is ever held back for a coder. A layer around the application, as
frameworks have one, would see live events too, would code on the event loop, and would leave the entity tag strong.

BREACH (a secret and a stranger's text in one coded body, asked for again and again) needs a browser that sends its
credentials by itself; here they are a header that only the application's own pages can set.
"""

from __future__ import annotations

import asyncio
import re
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Final

from broker import limits
from broker.core.state import media_type
from broker.http.request import Headers, Scope
from broker.http.response import Header, Response

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_CODERS: Final[dict[bytes, Callable[[bytes], bytes]]] = {
    # The lowest levels: on records they give up a tenth of the size for a multiple of the speed.
    b"zstd": partial(zstd.compress, level=1),
    b"gzip": partial(zlib.compress, level=1, wbits=31),
}
"""The one that is better comes first."""
_VARY: Final[Header] = (b"vary", b"accept-encoding")
_WEIGHT: Final = re.compile(rb"[ \t]*q[ \t]*=[ \t]*([01](?:\.[0-9]{0,3})?)[ \t]*", re.IGNORECASE)
_OK: Final = 200
_NOT_MODIFIED: Final = 304


@dataclass(slots=True)
class Coded:
    """What has been sent in one coding so far."""

    responses: int = 0
    plain_bytes: int = 0
    """What their bodies say."""
    coded_bytes: int = 0
    """What of these was sent."""


class Compression:
    """Of one broker: a few responses at once are coded beside the event loop; when those are busy, others go as is."""

    def __init__(self) -> None:
        self.busy = 0
        """Responses that another thread codes right now."""
        self.coded = {coding: Coded() for coding in _CODERS}
        self.left_plain = 0
        """Responses that went as they were because too many were being coded."""

    async def apply(self, response: Response, scope: Scope, headers: Headers) -> Response:
        """The response as this request may have it: coded, if that is asked for and worth it."""
        if scope["method"] != "GET" or b"live=" in scope["query_string"]:
            return response
        if response.status == _NOT_MODIFIED:
            return _confirmed(response, headers)
        if response.status != _OK or len(response.body) < limits.COMPRESSED_BYTES_MIN or not _is_text(response):
            return response
        coding = coding_of(headers.get(b"accept-encoding", b""))
        if coding is None:
            return Response(response.status, [*response.headers, _VARY], response.body)
        body = await self._coded(_CODERS[coding], response.body)
        if body is None:
            self.left_plain += 1
            return Response(response.status, [*response.headers, _VARY], response.body)
        self._count(coding, len(response.body), len(body))
        return _coded_response(response, coding, body)

    def _count(self, coding: bytes, plain_bytes: int, coded_bytes: int) -> None:
        coded = self.coded[coding]
        coded.responses += 1
        coded.plain_bytes += plain_bytes
        coded.coded_bytes += coded_bytes

    async def _coded(self, coder: Callable[[bytes], bytes], body: bytes) -> bytes | None:
        if len(body) <= limits.COMPRESSED_STEP_BYTES:
            return coder(body)
        if self.busy >= limits.COMPRESSING_MAX:
            return None
        self.busy += 1
        try:
            return await asyncio.to_thread(coder, body)
        finally:
            self.busy -= 1


@lru_cache(maxsize=256)
def coding_of(accepted: bytes) -> bytes | None:
    """The coding that an `Accept-Encoding` wants most, the better of two that it wants alike; None for none of ours."""
    weights = dict(_weighed(part) for part in accepted.lower().split(b",") if part.strip())
    if b"x-gzip" in weights:
        weights.setdefault(b"gzip", weights[b"x-gzip"])
    others = weights.get(b"*", 0.0)
    wanted = {coding: weights.get(coding, others) for coding in _CODERS}
    best = max(wanted, key=lambda coding: wanted[coding])
    return best if wanted[best] > 0 and wanted[best] >= weights.get(b"identity", 0.0) else None


def _weighed(part: bytes) -> tuple[bytes, float]:
    """A coding and its weight; one that makes no sense weighs nothing."""
    name, given, weight = part.partition(b";")
    if not given:
        return name.strip(), 1.0
    found = _WEIGHT.fullmatch(weight)
    return name.strip(), 0.0 if found is None else float(found[1])


def _is_text(response: Response) -> bool:
    for name, value in response.headers:
        if name == b"content-type":
            kind = media_type(value.decode("latin-1"))
            return kind.startswith("text/") or kind.endswith(("json", "xml", "javascript"))
    return False


def _coded_response(response: Response, coding: bytes, body: bytes) -> Response:
    headers: list[Header] = []
    for name, value in response.headers:
        if name == b"content-length":
            headers.append((name, b"%d" % len(body)))
        else:
            headers.append((name, _weak(value)) if name == b"etag" else (name, value))
    return Response(response.status, [*headers, (b"content-encoding", coding), _VARY], body)


def _weak(tag: bytes) -> bytes:
    """The same content in other bytes (RFC 9110, 8.8.1). Tags are compared weakly here: they all match."""
    return tag if tag.startswith(b"W/") else b"W/" + tag


def _confirmed(response: Response, headers: Headers) -> Response:
    """A 304 has the tag of the 200 that it stands for (RFC 9110, 15.4.5): weak, if that is how the client has it.

    Only who asks for a coding has it so from here.
    """
    held = headers.get(b"if-none-match", b"") if coding_of(headers.get(b"accept-encoding", b"")) else b""
    told = [
        (name, _weak(value)) if name == b"etag" and _weak(value) in held else (name, value)
        for name, value in response.headers
    ]
    return Response(response.status, [*told, _VARY])
