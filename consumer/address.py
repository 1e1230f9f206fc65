"""Where things are: the URLs of streams, and the targets of the session API below a broker's URL. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import quote, urlencode

from yarl import URL

__all__ = [
    "broker_url",
    "checked_id",
    "generation_target",
    "is_local",
    "messages_target",
    "session_target",
    "source_path",
    "stream_url",
    "with_query",
]

_STREAMS: Final = "/v1/stream/"
_SEGMENT_SAFE: Final = "/~:@!$&'()*+,;="  # RFC 3986 section 3.3: what a path holds as it is
_ID: Final = re.compile(r"[A-Za-z0-9._~:-]{1,128}")


def broker_url(text: str) -> URL:
    """The base URL of a broker, which may have a path of its own. Raises ValueError if it cannot be one."""
    try:
        url = URL(text)
    except ValueError as error:
        raise ValueError(f"the broker's URL is none: {text!r} ({error})") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError(f"the broker's URL must be http or https, with a host: {text!r}")
    return url.with_path(url.raw_path.rstrip("/"), encoded=True)


def is_local(url: URL) -> bool:
    """Whether it names this machine."""
    try:
        return url.host == "localhost" or ipaddress.ip_address(url.host or "").is_loopback
    except ValueError:
        return False


def stream_url(broker: URL, stream: str) -> URL:
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
    return broker.with_path(broker.raw_path.rstrip("/") + _STREAMS + quote(stream, safe=_SEGMENT_SAFE), encoded=True)


def source_path(broker: URL, stream: str) -> str:
    """How a fork names its source: the path of its URL, escaped as there (PROTOCOL.md 4.2).

    Below a broker's own prefix, which a proxy takes off. Raises ValueError as `stream_url`.
    """
    path = stream_url(broker, stream).raw_path
    return path.removeprefix(broker.raw_path.rstrip("/"))


def checked_id(name: str, value: str) -> str:
    """The id as it is. Raises ValueError if the broker would refuse it, or take it for another part of the path."""
    if not _ID.fullmatch(value) or value in {".", ".."}:
        raise ValueError(f"{name} must be 1 to 128 characters of A-Z a-z 0-9 . _ ~ : - and not '.' or '..': {value!r}")
    return value


def session_target(session_id: str) -> str:
    """The path of a session. Raises ValueError if the id is none."""
    return f"/v1/sessions/{checked_id('session_id', session_id)}"


def messages_target(session_id: str) -> str:
    """Where the messages of a session are. Raises ValueError if the id is none."""
    return f"{session_target(session_id)}/messages"


def generation_target(session_id: str, generation_id: str) -> str:
    """The path of a generation. Raises ValueError if one of the ids is none."""
    return f"{session_target(session_id)}/generations/{checked_id('generation_id', generation_id)}"


def with_query(target: str, query: Mapping[str, str | None]) -> str:
    """The target with what is not None, ordered by name: caches then see one URL for one request (PROTOCOL.md 10.1)."""
    given = {name: value for name, value in sorted(query.items()) if value is not None}
    return f"{target}?{urlencode(given)}" if given else target
