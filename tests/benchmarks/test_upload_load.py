"""Answers at a recorded cadence, in each way in which tokens travel: every token is acknowledged, and is there."""

import json
import urllib.request
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from statistics import median

import pytest

from benchmarks import cadence, generations, server, upload_load
from benchmarks.generations import NDJSON, POST, WAYS, WEBSOCKET
from benchmarks.percentiles import Latencies
from benchmarks.workload import Invalid

ANSWERS = 3
SECONDS = 0.4


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    port = server.free_port()
    data: Path = tmp_path_factory.mktemp("data")
    with server.running(server.streamfold(port, "memory", data), port):
        yield port


@pytest.mark.parametrize("name", [WEBSOCKET, NDJSON, POST])
def test_every_token_is_acknowledged_once_and_in_the_log(name: str, port: int) -> None:
    way, run = WAYS[name], name.rpartition(" ")[2]
    targets = way.prepared(port, run, ANSWERS)
    seen = upload_load.run(port, targets, way.writer_of, warm_up_s=0.0, measured_s=SECONDS)
    due = [len(cadence.due(number, SECONDS)) for number in range(ANSWERS)]
    assert seen.tokens == seen.latencies.count == sum(due) > ANSWERS
    for number, tokens in enumerate(due):
        assert chunks_of(port, f"{run}-{number}") == 2 + tokens


def chunks_of(port: int, session: str) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/stream/sessions/{session}?offset=-1") as answer:
        return sum(record["type"] == "chunk" for record in json.load(answer))


@pytest.mark.parametrize(("name", "suffix"), [(WEBSOCKET, "upload"), (NDJSON, "chunks"), (POST, "chunks")])
def test_answer_that_is_refused_makes_the_run_invalid(name: str, suffix: str, port: int) -> None:
    targets = [f"/v1/sessions/nobody/generations/answer/{suffix}"]
    with pytest.raises(Invalid, match="404"):
        upload_load.run(port, targets, WAYS[name].writer_of, warm_up_s=0.0, measured_s=SECONDS)


@pytest.mark.parametrize(("carried", "found"), [(0, None), (8, 8), (30, 27), (100, 91), (9_999, 4096)])
@pytest.mark.parametrize(("start", "step"), [(8, 4), (0, 1), (36, 1)])
def test_climb_finds_the_highest_number_that_is_carried(carried: int, found: int | None, start: int, step: int) -> None:
    class Try(generations._Try):  # noqa: SLF001 -- what a server would do
        @property
        def is_carried(self) -> bool:
            return True

    def tried(count: int) -> generations._Try | None:
        return Try(Latencies(), 0.0) if count <= carried else None

    climb = generations._Climb(tried)  # noqa: SLF001 -- as above
    rung = climb.highest(start, step)
    assert (None if rung is None else generations.LADDER[rung]) == found


def test_recorded_gaps_come_at_the_pace_that_is_asked_for_and_not_evenly() -> None:
    """Hosted models send in bursts: half of the gaps are a third of the mean; local ones keep a beat."""
    assert {kind: len(gaps) for kind, gaps in cadence.recordings().items()} == {"hosted": 469, "local": 900}
    for number, typical in ((0, (0.2, 0.5)), (1, (0.8, 1.1))):
        due = cadence.due(number, 60.0)
        assert len(due) == pytest.approx(60 * cadence.TOKENS_PER_S, rel=0.15)
        gaps_s = [later - earlier for earlier, later in pairwise(due)]
        assert typical[0] < median(gaps_s) * cadence.TOKENS_PER_S < typical[1]
