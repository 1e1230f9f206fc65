"""What caches are told: entity tags, lifetimes, and the cursor that keeps them from looping (PROTOCOL.md 10)."""

from __future__ import annotations

from typing import Final

from broker import limits
from broker.core.state import Stream
from broker.http.response import Header
from consumer.wire import SESSION_PATH_PREFIX

NO_STORE: Final[Header] = (b"cache-control", b"no-store")

_CURSOR_EPOCH_MS: Final = 1_728_432_000_000
"""2024-10-09T00:00:00Z."""
_JITTER_S_MAX: Final = 3600
_FRESH_S: Final = 60
_STALE_S: Final = 300


def etag(stream: Stream, start: int, end: int, *, closed: bool) -> bytes:
    """The tag of records [start, end) of a stream. Closure is part of it: a 304 must not hide the end (10.1)."""
    return b'"%x:%x:%x%b"' % (stream.incarnation, start, end, b":c" if closed else b"")


def matches(if_none_match: bytes | None, tag: bytes) -> bool:
    """Whether the client has what `tag` stands for; compared weakly (RFC 9110, 13.1.2)."""
    if if_none_match is None:
        return False
    if if_none_match.strip() == b"*":
        return True
    return tag in (candidate.strip().removeprefix(b"W/") for candidate in if_none_match.split(b","))


def cache_control(path: str, stream: Stream, now_ms: int) -> Header:
    """For how long a page with records may be kept: what lies between two offsets never changes.

    A session is somebody's conversation, which no shared cache may keep. No stream is kept beyond its own end.
    """
    scope = "private" if path.startswith(SESSION_PATH_PREFIX) else "public"
    deadline_ms = stream.deadline_ms
    if deadline_ms is None or deadline_ms - now_ms >= (_FRESH_S + _STALE_S) * 1000:
        return b"cache-control", f"{scope}, max-age={_FRESH_S}, stale-while-revalidate={_STALE_S}".encode()
    left_s = max(0, (deadline_ms - now_ms) // 1000)
    return b"cache-control", f"{scope}, max-age={min(_FRESH_S, left_s)}".encode()


def cursor(now_ms: int, seen: str | None, jitter_s: int) -> int:
    """The number of the current interval, or one above the client's, by a chance of `jitter_s` from 1 to 3600 s.

    It never goes back, so a client that echoes it never asks a cache for the same URL for ever.
    """
    current = (now_ms - _CURSOR_EPOCH_MS) // (limits.CURSOR_INTERVAL_S * 1000)
    if seen is None or not (seen.isascii() and seen.isdigit()) or len(seen) > 15:  # noqa: PLR2004 -- 2**53 has 16
        return current
    if int(seen) < current:
        return current
    return int(seen) + max(1, min(jitter_s, _JITTER_S_MAX) // limits.CURSOR_INTERVAL_S)
