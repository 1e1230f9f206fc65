"""The checker of vectors itself: that it sees a difference where there is one."""

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.vectors import check, first_difference

ROOT = Path(__file__).parents[1]
VECTOR: dict[str, Any] = {
    "format": "ai-sdk-ui-message-stream",
    "name": "hello",
    "chunks": [
        {"type": "start", "messageId": "m"},
        {"type": "start-step"},
        {"type": "text-start", "id": "1"},
        {"type": "text-delta", "id": "2", "delta": "x"},
    ],
    "snapshots": [
        {"id": "m", "role": "assistant", "parts": []},
        None,
        {
            "id": "m",
            "role": "assistant",
            "parts": [{"type": "step-start"}, {"type": "text", "text": "", "state": "streaming"}],
        },
        None,
    ],
    "silent_states": {"1": {"id": "m", "role": "assistant", "parts": [{"type": "step-start"}]}},
    "errors": [{"index": 3, "fatal": True}],
    "final": {
        "id": "m",
        "role": "assistant",
        "parts": [{"type": "step-start"}, {"type": "text", "text": "", "state": "streaming"}],
    },
    "finish_reason": None,
}


def run(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.vectors", str(folder)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=50)


@pytest.mark.parametrize(
    ("expected", "got"),
    [(1, 1.0), (12345678901234567000, 12345678901234567168.0), (0, -0.0), ({"a": [None]}, {"a": [None]})],
)
def test_equal_values_have_no_difference(expected: object, got: object) -> None:
    assert first_difference(expected, got) is None


@pytest.mark.parametrize(
    ("expected", "got", "where"),
    [
        ({"a": 1}, {}, "$.a"),
        ({}, {"a": None}, "$.a"),
        ([1, 2], [1], "$"),
        ({"a": [{"b": 1}]}, {"a": [{"b": 2}]}, "$.a[0].b"),
        (1, True, "$"),
        ("1", 1, "$"),
        (None, 0, "$"),
    ],
)
def test_difference_is_found_at_its_path(expected: object, got: object, where: str) -> None:
    difference = first_difference(expected, got)

    assert difference is not None
    assert difference.where == where


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("snapshots", [VECTOR["snapshots"][0], None, None, None]),
        ("silent_states", {}),
        ("errors", []),
        ("errors", [{"index": 3, "fatal": False}]),
        ("final", None),
        ("final_state", {"id": "m", "role": "assistant", "parts": []}),
        ("finish_reason", "stop"),
    ],
)
def test_vector_with_another_expectation_differs(field: str, value: Any) -> None:
    changed: dict[str, Any] = {**copy.deepcopy(VECTOR), field: value}

    assert check(VECTOR) is None
    assert check(changed) is not None


def test_a_vector_that_breaks_the_fold_differs() -> None:
    difference = check({"format": "ai-sdk-ui-message-stream", "name": "no chunks"})

    assert difference is not None
    assert difference.where == "raised"


def test_command_names_what_differs_and_what_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "good.jsonl").write_text(json.dumps(VECTOR) + "\n")
    (tmp_path / "bad.jsonl").write_text(json.dumps({**VECTOR, "finish_reason": "stop"}) + "\n")
    (tmp_path / "other.jsonl").write_text(json.dumps({"format": "of-tomorrow"}) + "\n")

    result = run(tmp_path)

    assert result.returncode == 1
    assert result.stdout.splitlines() == [
        "bad.jsonl: 1 vectors, 1 differ",
        '  hello: finish_reason: expected "stop", got null',
        "good.jsonl: 1 vectors, 0 differ",
        "other.jsonl: 1 vectors skipped, format of-tomorrow is not built",
        "2 vectors, 1 differ",
    ]


def test_command_on_a_folder_without_vectors_fails(tmp_path: Path) -> None:
    result = run(tmp_path)

    assert result.returncode == 1
    assert result.stdout == "0 vectors, 0 differ\n"


def test_command_on_good_vectors_succeeds(tmp_path: Path) -> None:
    (tmp_path / "good.jsonl").write_text(json.dumps(VECTOR) + "\n")

    assert run(tmp_path).returncode == 0


def test_command_without_a_folder_says_how_it_is_used() -> None:
    result = run(ROOT / "no-such-folder")

    assert result.returncode == 2
    assert result.stderr.startswith("usage:")
