"""broker/http/ndjson.py: lines out of a body, whatever its parts."""

import pytest

from broker.http.ndjson import Lines
from broker.http.problems import BadRequest


def cut_into_lines(data: bytes, step: int) -> list[bytes]:
    lines = Lines(3)
    return [line for at in range(0, len(data), step) for line in lines.feed(data[at : at + step])] + [lines.end()]


def test_lines_are_cut_alike_whatever_the_parts() -> None:
    data = b"a\nbb\n\nccc\nd"
    for step in range(1, len(data) + 1):
        assert cut_into_lines(data, step) == [b"a", b"bb", b"", b"ccc", b"d"]


@pytest.mark.parametrize("data", [b"xxxx", b"xxxx\n", b"a\nxxxx", b"a\nxxxx\nb\n"])
def test_line_beyond_the_bound_is_refused_ended_or_not(data: bytes) -> None:
    for step in (1, 2, len(data)):
        with pytest.raises(BadRequest):
            cut_into_lines(data, step)
