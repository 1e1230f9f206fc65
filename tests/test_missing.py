"""tests/missing.py: what a machine lacks is left out, but not where all must run."""

import pytest

from tests.missing import missing


def test_missing_piece_fails_where_all_must_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no such program"):
        missing("no such program")


def test_missing_piece_is_left_out_where_somebody_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no such program"):
        missing("no such program")
