"""The promises of pyproject.toml and of the locks."""

import re
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
NODE_PROJECTS = ("tests/conformance", "tests/e2e/clients", "tests/e2e/chat", "benchmarks/peers")
LOCKS = ("requirements.lock", "requirements-dev.lock", *(f"{project}/package-lock.json" for project in NODE_PROJECTS))
PACKAGES = ("broker", "producer", "consumer", "tests", "benchmarks")
UNEXPLAINED = re.compile(
    r"(except Exception( as \w+)?:|# noqa(: [A-Z]+\d+(, *[A-Z]+\d+)*)?|# type: ignore(\[[a-z, -]+\])?)$", re.MULTILINE
)
CLIENTS = {"aiohttp", "anyio", "certifi", "click", "h11", "msgspec", "sseclient-py", "stamina", "yarl"}


def requirements() -> list[Requirement]:
    return [Requirement(text) for text in requires("streamfold") or []]


def test_clients_alone_pull_no_server() -> None:
    """`pip install streamfold` is for those who write and read; the server and Kafka are extras."""
    assert {it.name for it in requirements() if it.marker is None} == CLIENTS
    assert all("extra ==" in str(it.marker) for it in requirements() if it.marker is not None)


def test_lock_meets_what_the_project_asks_for() -> None:
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    pinned = dict(re.findall(r"^([a-z0-9-]+)==([^ ]+)", lock, re.MULTILINE))
    unmet = [str(it) for it in requirements() if it.name != "streamfold" and pinned[it.name] not in it.specifier]
    assert not unmet


def test_both_locks_agree() -> None:
    run, dev = (
        set(re.findall(r"^\S+==\S+", (ROOT / lock).read_text(encoding="utf-8"), re.MULTILINE)) for lock in LOCKS[:2]
    )
    assert run <= dev


@pytest.mark.parametrize("lock", LOCKS)
def test_lock_names_no_download_address(lock: str) -> None:
    """Where packages come from is each machine's own setting; the hashes say what they have to be."""
    text = (ROOT / lock).read_text(encoding="utf-8")
    assert not re.search(r'"resolved"|--(extra-)?index-url|\.(tgz|whl|tar\.gz)', text)


@pytest.mark.parametrize("package", PACKAGES)
def test_line_that_is_exempt_from_a_rule_says_why(package: str) -> None:
    """An error that is caught whatever it is, a check that is switched off."""
    paths = list((ROOT / package).rglob("*.py"))
    assert paths
    assert not [(str(path), it[0]) for path in paths for it in UNEXPLAINED.finditer(path.read_text(encoding="utf-8"))]


def test_tests_are_left_out_in_one_way_which_fails_where_all_must_run() -> None:
    asked = re.compile(r"pytest\.(skip|xfail|importorskip)\(")
    paths = [path for path in (ROOT / "tests").rglob("*.py") if asked.search(path.read_text(encoding="utf-8"))]
    assert paths == [ROOT / "tests" / "missing.py"]
