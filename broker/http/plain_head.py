"""The head of a POST as programs write it, read in one step.

A parser of HTTP makes a call of each header. Most heads are as plain as can be, and a connection sends nearly the same
again and again: those are read here, and nothing else is. Printable ASCII, one space where one belongs, each header
once, HTTP/1.1, a length: what this reads every parser reads alike (RFC 9112), so nobody on the way can have seen
another request in the same bytes. All else is left to a parser.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final, NamedTuple

from broker import limits
from broker.http.request import Headers

_END: Final = b"\r\n\r\n"
# Possessive throughout: a head is looked at once, whatever it is.
_PLAIN: Final = re.compile(
    rb"POST (/[A-Za-z0-9/%._~:@!$&'()*+,;=-]*+) HTTP/1\.1((?:\r\n[A-Za-z0-9-]++: [!-~]++(?: [!-~]++)*+)++)"
)
_UNUSUAL: Final = frozenset({b"expect", b"upgrade", b"transfer-encoding", b"content-encoding"})
_KEEP_ALIVE: Final = b"keep-alive"


class PlainHead(NamedTuple):
    """What a request says before its body."""

    target: bytes
    headers: Headers
    body_bytes: int


def is_unusual(headers: Headers) -> bool:
    """Whether more is asked for than to take the body as it comes and to answer once."""
    return not _UNUSUAL.isdisjoint(headers)


def read_plain_head(data: bytes) -> PlainHead | None:
    """The head of the request that `data` is; None when that is not one whole request, or not a plain one."""
    end = data.find(_END, 0, limits.PLAIN_HEAD_BYTES_MAX)
    if end < 0:
        return None
    head = _read(data[:end])
    return head if head is not None and end + len(_END) + head.body_bytes == len(data) else None


@lru_cache(maxsize=limits.PLAIN_HEADS_MAX)
def _read(head: bytes) -> PlainHead | None:
    match = _PLAIN.fullmatch(head)
    if match is None:
        return None
    target, lines = match.groups()
    pairs = [line.split(b": ", 1) for line in lines.split(b"\r\n")[1:]]
    headers = {name.lower(): value for name, value in pairs}
    length = headers.get(b"content-length", b"")
    if len(headers) != len(pairs) or not length.isdigit() or is_unusual(headers):
        return None
    if headers.get(b"connection", _KEEP_ALIVE).lower() != _KEEP_ALIVE:
        return None
    return PlainHead(target, headers, int(length))
