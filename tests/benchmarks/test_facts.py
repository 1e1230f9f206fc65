"""What a report says of the machine."""

import platform
from pathlib import Path

import msgspec

from benchmarks import facts


def test_the_facts_name_the_build_of_python(tmp_path: Path) -> None:
    found = facts.collect(tmp_path)
    assert f"Python {platform.python_version()} ({platform.python_compiler()}, a thousand plain steps in " in str(found)
    assert found.python_us > 0


def test_a_report_from_before_the_build_was_asked_for_is_read_and_told_without_it(tmp_path: Path) -> None:
    fields = msgspec.structs.asdict(facts.collect(tmp_path))
    for later in ("distribution", "python_compiler", "python_us"):
        del fields[later]
    told = str(msgspec.convert(fields, facts.Facts))
    assert f"Python {platform.python_version()}, uvicorn" in told
