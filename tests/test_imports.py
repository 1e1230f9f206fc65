"""Who may know whom: the walls between the packages, read off the import statements of every source file."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("broker", "producer", "consumer")
SERVER_ONLY = ("starlette", "uvicorn", "uvloop", "httptools", "prometheus_client", "cryptography", "aiokafka")


class Import(NamedTuple):
    """One name that one module takes from another; `line` is where."""

    importer: str
    line: int
    target: str

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.target}"


class Wall(NamedTuple):
    """What the modules under `inside` may import: of ours only `ours`, of others only `others`; None means anything.

    `doors` are modules under `inside` that the wall does not hold for.
    """

    inside: str
    ours: tuple[str, ...]
    others: tuple[str, ...] | None = None
    doors: tuple[str, ...] = ()


# Errors and limits are leaves that every part of the broker may name.
LEAVES = ("broker.errors", "broker.limits", "consumer.wire")
# What journal and store of one data folder have in common: the folder, and threads that stand back.
FILES = ("broker.data_dir", "broker.priority")
# What reading and writing clients have in common: how a request travels, what its answer means, when it is repeated.
CLIENT_BASE = tuple(
    f"consumer.{part}" for part in ("address", "answer", "archive", "errors", "limits", "retry", "transport", "values")
)
CLIENT_LIBRARIES = ("aiohttp", "anyio", "certifi", "click", "msgspec", "sseclient", "stamina", "yarl")

WALLS = [
    Wall("broker.core", ours=("broker.core", "consumer.wire"), others=("msgspec",)),
    Wall("broker.journal", ours=("broker.journal", "broker.core", *FILES, *LEAVES)),
    Wall("broker.store", ours=("broker.store", "broker.core", "broker.sqlite", *FILES, *LEAVES)),
    # The command line is a client as well: it writes and reads through the libraries that it ships with.
    Wall(
        "broker",
        ours=("broker", "consumer.wire", "consumer.archive", "consumer.fold", "consumer.session", "consumer.plain"),
        doors=("broker.cli", "broker.terminal", "broker.demo", "broker.doctor.command"),
    ),
    Wall(
        "producer",
        ours=("producer", "consumer.wire", *CLIENT_BASE),
        # zstd is in the standard library from Python 3.14 on, and does without where it is not.
        others=(*CLIENT_LIBRARIES, "h11", "websockets", "backports.zstd", "compression.zstd"),
    ),
    Wall("consumer", ours=("consumer",), others=CLIENT_LIBRARIES, doors=("consumer.materialize.postgres",)),
    Wall("consumer.wire", ours=(), others=("msgspec",)),
    Wall("consumer.errors", ours=("consumer.wire",), others=()),
    Wall("consumer.answer", ours=("consumer.errors", "consumer.wire"), others=("msgspec",)),
    Wall("consumer.limits", ours=(), others=()),
]

# Only the application chooses an engine; everybody else knows the port that all engines share.
ENGINES = tuple(
    f"broker.{part}.{engine}" for part in ("journal", "store") for engine in ("memory", "file", "sqlite", "kafka")
)
ENGINE_CHOOSER = "broker.app"


def modules() -> Iterator[tuple[str, Path]]:
    for package in OURS:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            yield name.removesuffix(".__init__"), path


def imports() -> list[Import]:
    return [found for name, path in modules() for found in imports_of(name, path)]


def imports_of(name: str, path: Path) -> Iterator[Import]:
    """Every import of a module, those inside functions and type-checking blocks included."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(name, node.lineno, alias.name)
        elif isinstance(node, ast.ImportFrom):
            source = absolute(node, package)
            for alias in node.names:
                yield Import(name, node.lineno, f"{source}.{alias.name}")


def absolute(node: ast.ImportFrom, package: str) -> str:
    if node.level == 0:
        return node.module or ""
    parts = package.split(".")[: len(package.split(".")) - (node.level - 1)]
    return ".".join([*parts, node.module] if node.module else parts)


def under(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def allowed(found: Import, wall: Wall) -> bool:
    if under(found.target, OURS):
        return under(found.target, wall.ours)
    if found.target.split(".")[0] in sys.stdlib_module_names:
        return True
    return wall.others is None or under(found.target, wall.others)


@pytest.mark.parametrize("wall", WALLS, ids=lambda wall: wall.inside)
def test_package_imports_only_what_it_may_know(wall: Wall) -> None:
    assert any(under(name, (wall.inside,)) for name, _ in modules()), f"there is no {wall.inside}"
    inside = [found for found in imports() if under(found.importer, (wall.inside,))]
    broken = [str(found) for found in inside if not under(found.importer, wall.doors) and not allowed(found, wall)]
    assert not broken, "\n".join(broken)


def test_only_the_application_chooses_an_engine() -> None:
    broken = [
        str(found)
        for found in imports()
        if under(found.target, ENGINES)
        and found.importer != ENGINE_CHOOSER
        and not under(found.importer, ("broker.journal", "broker.store"))
    ]
    assert not broken, "\n".join(broken)


def test_http_knows_neither_journal_nor_store() -> None:
    broken = [
        str(found)
        for found in imports()
        if under(found.importer, ("broker.http",)) and under(found.target, ("broker.journal", "broker.store"))
    ]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("module", ["producer", "consumer", "consumer.fold", "broker.cli"])
def test_clients_import_without_the_server_extra(module: str) -> None:
    """In a fresh interpreter in which the server's libraries cannot be found, as after `pip install streamfold`."""
    program = f"import sys; sys.modules.update(dict.fromkeys({SERVER_ONLY!r})); import {module}"
    process = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=30, check=False
    )
    assert process.returncode == 0, process.stderr


@pytest.mark.parametrize(
    ("statement", "target"),
    [
        ("import broker.app", "broker.app"),
        ("from broker import app", "broker.app"),
        ("from . import tail", "broker.http.tail"),
        ("from ..journal.file import FileJournal", "broker.journal.file.FileJournal"),
        ("def f():\n    import starlette", "starlette"),
    ],
)
def test_import_written_in_any_form_is_seen(statement: str, target: str, tmp_path: Path) -> None:
    path = tmp_path / "live.py"
    path.write_text(statement, encoding="utf-8")
    assert [found.target for found in imports_of("broker.http.live", path)] == [target]
