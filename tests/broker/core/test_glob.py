"""broker/core/glob.py: what a pattern covers (PROTOCOL.md 6.2), and that none is slow."""

import time

import pytest
from hypothesis import given, strategies as st

from broker.core.glob import PATTERN_SEGMENTS_MAX, Glob, InvalidPattern


@pytest.mark.parametrize(
    ("pattern", "path", "covered"),
    [
        ("events/*", "events/a", True),
        ("events/*", "events", False),
        ("events/*", "events/a/b", False),
        ("events/**", "events", True),
        ("events/**", "events/a/b", True),
        ("events/**", "event", False),
        ("**", "a/b/c", True),
        ("**/c", "c", True),
        ("**/c", "a/b/c", True),
        ("**/c", "a/c/b", False),
        ("a/**/z", "a/z", True),
        ("a/**/z", "a/b/z/z", True),
        ("a/**/**/z", "a/z", True),
        ("*/**", "a", True),
        ("a/b", "a/b", True),
        ("a/b", "a/bb", False),
        ("a/%2A", "a/*", True),
        ("a/%2a", "a/b", False),
        ("a.c", "abc", False),
    ],
)
def test_pattern_covers_whole_paths_by_segments(pattern: str, path: str, *, covered: bool) -> None:
    assert Glob(pattern).matches(path) is covered


@pytest.mark.parametrize("pattern", ["", "a//b", "/a", "a/", "a*", "a/***", "b*c/d", "/".join("a" * 65)])
def test_what_is_no_pattern_is_told_as_one(pattern: str) -> None:
    with pytest.raises(InvalidPattern):
        Glob(pattern)


segments = st.sampled_from(["a", "b", "*", "**"])


def covers(pattern: list[str], path: list[str]) -> bool:
    """The rule as one would say it, with all the time in the world."""
    if not pattern:
        return not path
    if pattern[0] == "**":
        return any(covers(pattern[1:], path[skipped:]) for skipped in range(len(path) + 1))
    return bool(path) and pattern[0] in ("*", path[0]) and covers(pattern[1:], path[1:])


@given(st.lists(segments, min_size=1, max_size=6), st.lists(st.sampled_from("abc"), min_size=1, max_size=6))
def test_one_pass_finds_what_trying_everything_finds(pattern: list[str], path: list[str]) -> None:
    found = Glob("/".join(pattern))
    assert found.matches("/".join(path)) is covers(pattern, path)
    if found.matches("/".join(path)):
        assert "/".join(path).startswith(found.literal_prefix)


def test_pattern_made_to_be_slow_is_as_fast_as_any() -> None:
    """Tried one way after the other this would take longer than anybody lives."""
    slow = Glob("/".join(["**", "a"] * (PATTERN_SEGMENTS_MAX // 2 - 1) + ["b"]))
    path = "/".join(["a"] * 500)
    begun_at = time.perf_counter()
    assert not slow.matches(path)
    assert time.perf_counter() - begun_at < 0.5
