"""What `streamfold materialize` refuses, and with which status it ends."""

import sqlite3
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from consumer.materialize.command import materialize
from tests.live import free_port
from tests.postgres import Postgres


def run(*arguments: str) -> Result:
    return CliRunner().invoke(materialize, [*arguments, "--url", f"http://127.0.0.1:{free_port()}"])


@pytest.mark.parametrize(
    ("dsn", "told"),
    [
        ("mysql://somewhere/db", "sqlite:///PATH"),
        ("sqlite:///", "sqlite:///PATH"),
        ("rows.sqlite", "sqlite:///PATH"),
        ("postgresql://host:nothing/db", "Port"),
    ],
)
def test_a_dsn_that_is_none_is_wrong_usage(dsn: str, told: str) -> None:
    result = run("--to", dsn, "--all")
    assert (result.exit_code, told in result.output) == (2, True), result.output


@pytest.mark.parametrize("which", [[], ["--all", "--session", "s"], ["--session", "not/an/id"]])
def test_which_sessions_has_to_be_said(which: list[str], tmp_path: Path) -> None:
    assert run("--to", f"sqlite:///{tmp_path / 'rows.sqlite'}", *which).exit_code == 2


def test_postgres_without_its_driver_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "consumer.materialize.postgres", raising=False)
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    result = run("--to", "postgresql://nowhere/db", "--all")
    assert (result.exit_code, "streamfold[postgres]" in result.output) == (2, True), result.output


def test_a_database_that_is_not_there_is_told_at_once(tmp_path: Path) -> None:
    for dsn in (f"sqlite:///{tmp_path / 'no' / 'folder.sqlite'}", f"postgresql://x@127.0.0.1:{free_port()}/db"):
        result = run("--to", dsn, "--all")
        assert (result.exit_code, result.output.startswith("Error: ")) == (1, True), result.output


def test_a_database_that_does_not_exist_is_told_by_its_name(postgres: Postgres) -> None:
    result = run("--to", postgres.dsn("nobody-made-it"), "--all")
    assert (result.exit_code, "nobody-made-it" in result.output) == (1, True), result.output


def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "letter.txt"
    path.write_text("Dear reader, this is no database. " * 50)
    before = path.read_bytes()
    result = run("--to", f"sqlite:///{path}", "--all")
    assert (result.exit_code, "not a database" in result.output) == (1, True), result.output
    assert path.read_bytes() == before


def test_tables_of_a_newer_version_have_a_status_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "rows.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE streamfold_schema (version INTEGER PRIMARY KEY, applied_at TEXT NOT NULL)")
        connection.execute("INSERT INTO streamfold_schema VALUES (99, '2031-01-01')")
    connection.close()
    result = run("--to", f"sqlite:///{path}", "--all")
    assert (result.exit_code, "version 99" in result.output) == (3, True), result.output


def test_a_broker_that_does_not_answer_is_told_after_a_short_while(tmp_path: Path) -> None:
    result = run("--to", f"sqlite:///{tmp_path / 'rows.sqlite'}", "--all")
    assert (result.exit_code, "no broker at http://127.0.0.1" in result.output) == (1, True), result.output
