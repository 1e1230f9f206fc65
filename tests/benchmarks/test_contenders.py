"""How the peers are started, and that a missing one is told and never made up."""

import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks import contenders, runner
from benchmarks.contenders import CONTENDERS, NODE_FILE, NODE_MEMORY, RUST_WAL, STREAMFOLD, STREAMFOLD_ASGI
from benchmarks.runner import Absent, Found, Measuring, Scenario, Setting
from tests.test_project import ROOT

DATA = Path("/data")


def test_node_keeps_its_data_where_it_is_told_to_or_in_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "node_modules").mkdir()
    monkeypatch.setattr(contenders, "PEERS", tmp_path)
    in_file, in_memory = (CONTENDERS[name].command(4000, DATA) for name in (NODE_FILE, NODE_MEMORY))
    assert in_file[1:] == [str(tmp_path / "server.mjs"), "4000", "/data"]
    assert in_memory[1:] == [str(tmp_path / "server.mjs"), "4000"]
    assert contenders.NODE.exists()


def test_rust_runs_in_its_durable_mode(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(contenders, "RUST", tmp_path)
    assert CONTENDERS[RUST_WAL].command(4000, DATA) == [str(tmp_path), "--port", "4000", "--data-dir", "/data"]


def test_broker_is_measured_as_it_is_served_and_mounted() -> None:
    served, mounted = (CONTENDERS[name].command(4000, DATA) for name in (STREAMFOLD, STREAMFOLD_ASGI))
    assert served[1:4] == ["serve", "--port", "4000"]
    assert mounted == [sys.executable, "-m", "benchmarks.mounted", "4000", "/data"]
    assert CONTENDERS[STREAMFOLD_ASGI].prefix == "/chat"


def test_versions_of_the_peers_are_pinned() -> None:
    setup = (ROOT / "deploy" / "setup").read_text()
    assert f"RUST_PEER={contenders.RUST_CRATE}@" in setup
    assert '"@durable-streams/server": "0.3.7"' in (ROOT / "benchmarks" / "peers" / "package.json").read_text()


def test_missing_peer_is_told_and_has_no_numbers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(contenders, "RUST", tmp_path / "nowhere")
    monkeypatch.setattr(contenders, "PEERS", tmp_path)

    @contextmanager
    def opened(_: Setting) -> Generator[Measuring, None, None]:
        def measure(name: str) -> Found:
            return Found({"arguments": float(len(CONTENDERS[name].command(4000, DATA)))})

        yield measure

    with pytest.raises(Absent, match="cargo"):
        CONTENDERS[RUST_WAL].command(4000, DATA)
    scenario = Scenario("s", "S", "", {}, (STREAMFOLD, RUST_WAL, NODE_FILE), opened)
    found = runner.run(scenario, Setting(tmp_path, rounds=2))
    assert {name: len(subject.runs) for name, subject in found.subjects.items()} == {
        STREAMFOLD: 2,
        RUST_WAL: 0,
        NODE_FILE: 0,
    }
    assert [note.split(":")[0] for note in found.notes] == [RUST_WAL, NODE_FILE]
    assert not any("invalid" in note for note in found.notes)
