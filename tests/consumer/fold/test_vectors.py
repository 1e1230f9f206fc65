"""The fold against what the reference implementations did, vector by vector (FOLDS section 11)."""

import pytest

from tests.consumer.fold.chunks import FOLDER, vectors
from tests.vectors import CHECKS, Vector, check, name_of, report

NUMBERED = [vector for format_name in CHECKS for vector in enumerate(vectors(format_name))]


@pytest.mark.parametrize(
    "vector",
    [pytest.param(vector, id=f"{vector['format']}-{index}-{name_of(vector)[:40]!a}") for index, vector in NUMBERED],
)
def test_vector_folds_as_the_reference_did(vector: Vector) -> None:
    assert check(vector) is None


def test_folder_of_vectors_has_some_of_each_format_and_none_differs(capsys: pytest.CaptureFixture[str]) -> None:
    checked, differing = report(FOLDER)

    assert checked == sum(1 for format_name in CHECKS for _ in vectors(format_name))
    assert all(any(vectors(format_name)) for format_name in CHECKS)
    assert differing == 0
    assert capsys.readouterr().out.endswith(f"{checked} vectors, 0 differ\n")
