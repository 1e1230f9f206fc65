"""broker/snapshot/folder.py: a snapshot is there whole, or not at all."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.snapshot.folder import Folder

SLOW_WRITER = """
import sys, time
from pathlib import Path
from broker.snapshot.folder import Folder

def chunks():
    yield b"half"
    print("half", flush=True)
    time.sleep(60)  # it is killed long before

Folder(Path(sys.argv[1])).write("a", chunks())
"""


def test_what_is_kept_is_read_listed_and_removed(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "made" / "on demand")
    assert folder.names() == []
    folder.write("a", [b"1", b"2"])
    folder.write("b", [b"3"])
    assert sorted(folder.names()) == ["a", "b"]
    assert b"".join(folder.read("a")) == b"12"
    folder.remove("a")
    folder.remove("a")
    assert folder.names() == ["b"]


def test_what_could_not_be_written_whole_is_not_there(tmp_path: Path) -> None:
    def failing() -> Iterator[bytes]:
        yield b"half"
        raise OSError("the disk is full")

    folder = Folder(tmp_path)
    with pytest.raises(OSError, match="full"):
        folder.write("a", failing())
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_had_half_written_is_not_there_and_goes_one_day(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SLOW_WRITER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        process.kill()
    folder = Folder(tmp_path)
    assert folder.names() == []
    (left,) = tmp_path.iterdir()
    folder.write("b", [b"1"])
    assert left.exists()  # whoever writes it may be alive
    yesterday = time.time() - 25 * 3600
    os.utime(left, (yesterday, yesterday))
    folder.write("c", [b"1"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "c"]
