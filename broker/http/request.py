"""Requests as values: what the pure parts need to know of one, parsed once at the edge."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from functools import lru_cache
from typing import Any, Final
from urllib.parse import parse_qsl, quote, unquote_to_bytes

import msgspec

from broker import limits
from broker.http.problems import BadRequest
from consumer.wire import Code

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Headers = dict[bytes, bytes]

_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._~:/+=@-]{1,128}")
_NOT_ENCODED: Final = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_PARAMETERS_MAX: Final = 64

_process_id = os.urandom(6).hex().encode()
_count = itertools.count(1)


class ClientLeft(Exception):
    """The client closed the connection: nobody waits for an answer any more."""


class Request(msgspec.Struct, frozen=True, gc=False):
    """One request.

    `path` is what lies behind the endpoint's prefix, decoded and valid; `headers` have lower-case names; `target` is
    the whole path as the client wrote it.
    """

    method: str
    path: str
    headers: Headers
    query: bytes = b""
    target: bytes = b""
    request_id: str = ""
    scheme: str = "http"

    @property
    def url(self) -> bytes:
        """The URL as the client sees it, without the query; only the path when it names no host (HTTP/1.0)."""
        host = self.headers.get(b"host")
        return b"%b://%b%b" % (self.scheme.encode(), host, self.target) if host else self.target


def headers_of(raw: Iterable[tuple[bytes, bytes]]) -> Headers:
    """The headers by name.

    One that was sent more than once has its values joined by commas (RFC 9110, 5.3): two values of what must be single
    never pass for one.
    """
    raw = list(raw)
    headers = dict(raw)
    if len(headers) == len(raw):
        return headers
    headers.clear()
    for name, value in raw:
        headers[name] = headers[name] + b", " + value if name in headers else value
    return headers


def request_id_of(headers: Headers) -> bytes:
    """The client's own id when it is fit to be logged and echoed, else a new one, unique among all processes."""
    given = headers.get(b"x-request-id")
    if given is not None and _REQUEST_ID.fullmatch(given):
        return given
    return b"%b-%x" % (_process_id, next(_count))


def raw_path_of(scope: Scope) -> bytes:
    """The path as it was sent, query excluded; servers need not pass it on (ASGI), then as it may have been."""
    raw: bytes | None = scope.get("raw_path")
    return quote(scope["path"]).encode() if raw is None else raw


@lru_cache(maxsize=limits.DECODED_PATHS_MAX)
def decode_path(target: bytes) -> str:
    """`target`, the part of a path behind a prefix, percent-decoded.

    Raises BadRequest (INVALID_PATH) for what is not UTF-8, has empty, `.` or `..` segments or control characters, or is
    longer than `limits.PATH_BYTES_MAX`: no proxy, file system or log between here and there reads those alike.
    """
    decoded = unquote_to_bytes(target)
    if len(decoded) > limits.PATH_BYTES_MAX:
        raise BadRequest(Code.INVALID_PATH, f"longer than {limits.PATH_BYTES_MAX} bytes")
    if _NOT_ENCODED.search(target):
        raise BadRequest(Code.INVALID_PATH, "a percent sign encodes nothing")
    try:
        path = decoded.decode()
    except UnicodeDecodeError:
        raise BadRequest(Code.INVALID_PATH, "not UTF-8") from None
    if _CONTROL.search(path):
        raise BadRequest(Code.INVALID_PATH, "control characters")
    if not {"", ".", ".."}.isdisjoint(path.split("/")):
        raise BadRequest(Code.INVALID_PATH, "an empty, '.' or '..' segment")
    return path


def parameters_of(query: bytes) -> dict[str, str]:
    """The query's parameters; unknown ones are the caller's to ignore (PROTOCOL.md 11).

    Raises BadRequest (INVALID_PARAMETER) for one that is given twice: which one counts would be a guess.
    """
    if not query:
        return {}
    try:
        pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True, max_num_fields=_PARAMETERS_MAX)
    except ValueError:
        raise BadRequest(Code.INVALID_PARAMETER, f"more than {_PARAMETERS_MAX} parameters") from None
    parameters = dict(pairs)
    if len(parameters) != len(pairs):
        raise BadRequest(Code.INVALID_PARAMETER, "a parameter is given twice")
    return parameters
