"""What caches are told (PROTOCOL.md 10)."""

import msgspec
import pytest

from broker.core.state import Stream
from broker.http.caching import cache_control, cursor, etag, matches

STREAM = Stream(incarnation=0xAB, content_type="text/plain", created_ms=0, active_ms=0, tail=9)
NOW_MS = 1_800_000_000_000
CURRENT = (NOW_MS - 1_728_432_000_000) // 20_000


def test_tag_changes_with_range_life_and_closure() -> None:
    other_life = msgspec.structs.replace(STREAM, incarnation=0xAC)
    tags = {
        etag(STREAM, 0, 9, closed=False),
        etag(STREAM, 0, 9, closed=True),
        etag(STREAM, 0, 8, closed=False),
        etag(STREAM, 1, 9, closed=False),
        etag(other_life, 0, 9, closed=False),
    }
    assert len(tags) == 5


@pytest.mark.parametrize(
    ("given", "same"),
    [
        (None, False),
        (b'"x"', True),
        (b'W/"x"', True),
        (b'"a", "x"', True),
        (b"*", True),
        (b'"a"', False),
        (b"", False),
        (b"x", False),
    ],
)
def test_tags_are_compared_weakly_and_in_lists(given: bytes | None, *, same: bool) -> None:
    assert matches(given, b'"x"') is same


def test_sessions_are_kept_by_private_caches_only() -> None:
    assert cache_control("a", STREAM, 0)[1] == b"public, max-age=60, stale-while-revalidate=300"
    assert cache_control("sessions/a", STREAM, 0)[1] == b"private, max-age=60, stale-while-revalidate=300"


@pytest.mark.parametrize(("left_ms", "max_age"), [(359_000, 60), (30_900, 30), (900, 0), (-5, 0)])
def test_nothing_is_kept_beyond_the_end_of_its_stream(left_ms: int, max_age: int) -> None:
    ending = msgspec.structs.replace(STREAM, expires_at_ms=NOW_MS + left_ms)
    assert cache_control("a", ending, NOW_MS)[1] == b"public, max-age=%d" % max_age


@pytest.mark.parametrize("seen", [None, "", "x", "-5", "1.5", "²", "9" * 16, "0", str(CURRENT - 1)])
def test_cursor_is_the_current_interval(seen: str | None) -> None:
    assert cursor(NOW_MS, seen, 3600) == CURRENT


@pytest.mark.parametrize("ahead", [0, 1, 100_000])
@pytest.mark.parametrize("jitter_s", [1, 19, 20, 3600])
def test_cursor_always_rises_above_the_one_echoed(ahead: int, jitter_s: int) -> None:
    made = cursor(NOW_MS, str(CURRENT + ahead), jitter_s)
    assert CURRENT + ahead < made <= CURRENT + ahead + 180
