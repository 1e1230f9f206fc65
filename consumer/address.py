"""Where things are: the URLs of streams and sessions. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote

import httpx

__all__ = ["broker_url", "messages_url", "stream_url", "with_query"]

_STREAMS = "/v1/stream/"
_SEGMENT_SAFE = "/~:@!$&'()*+,;="  # RFC 3986 section 3.3: what a path holds as it is


def broker_url(text: str) -> httpx.URL:
    """The base URL of a broker, which may have a path of its own. Raises ValueError if it cannot be one."""
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise ValueError(f"the broker's URL is none: {text!r} ({error})") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError(f"the broker's URL must be http or https, with a host: {text!r}")
    return url.copy_with(path=url.path.rstrip("/"), query=None, fragment=None)


def stream_url(broker: httpx.URL, stream: str) -> httpx.URL:
    """The URL of a stream, told by its path (`sessions/s`) or by its whole URL.

    Raises ValueError if it is neither, or if it is on another server: the credentials are for this one.
    """
    if "://" in stream:
        url = broker_url(stream)
        if (url.scheme, url.host, url.port) != (broker.scheme, broker.host, broker.port):
            raise ValueError(f"{stream!r} is not on {broker}")
        return url
    segments = stream.split("/")
    if not all(segments) or {".", ".."} & set(segments):
        raise ValueError(f"not the path of a stream: {stream!r}")
    return broker.copy_with(path=broker.path.rstrip("/") + _STREAMS + quote(stream, safe=_SEGMENT_SAFE))


def messages_url(broker: httpx.URL, session_id: str) -> httpx.URL:
    """Where the folded messages of a session are. Raises ValueError for what can be no session id."""
    if session_id in ("", ".", ".."):
        raise ValueError(f"not a session id: {session_id!r}")
    return broker.copy_with(path=f"{broker.path.rstrip('/')}/v1/sessions/{quote(session_id, safe='')}/messages")


def with_query(url: httpx.URL, query: Mapping[str, str | None]) -> httpx.URL:
    """The URL with what is not None, ordered by name: caches then see one URL for one request (PROTOCOL.md 10.1)."""
    return url.copy_merge_params({name: value for name, value in sorted(query.items()) if value is not None})
