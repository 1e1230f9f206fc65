"""The golden journals replay to the same outcomes, rows and content for ever (CORE 1). Read golden.py first."""

import pytest

from broker.core.entry import Kind, decode
from broker.core.state import decode_row
from tests.broker.core import golden

VERSIONS = ["v1", "v2", "v3", "v4", "v5"]
versions = pytest.mark.parametrize("version", VERSIONS)


@versions
def test_golden_journal_replays_to_what_it_always_replayed_to(version: str) -> None:
    journal, expected = golden.read(version)
    made = golden.expected(journal)
    assert made["outcomes"] == expected["outcomes"]
    assert made["content"] == expected["content"]
    assert made["ended"] == expected["ended"]
    assert rows(made) == rows(expected)


def rows(made: golden.Expected) -> dict[str, object]:
    """The rows as values: a field that was appended since, with a default, is no difference."""
    return {key: decode_row(bytes.fromhex(data)) for key, data in made["rows"].items()}


def test_golden_journals_have_every_kind_that_can_be_applied() -> None:
    kinds = {decode(data).kind for version in VERSIONS for _, data in golden.read(version)[0]}
    assert kinds == set(Kind) - {Kind.MOVING, Kind.MOVED}


def test_golden_journal_that_is_there_is_never_written_again() -> None:
    with pytest.raises(FileExistsError):
        golden.write(VERSIONS[-1])
