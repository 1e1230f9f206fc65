"""Durable writes: the same bytes in the file, whichever way they took."""

import errno
import os
import sys
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from broker.journal.durable import BLOCK_BYTES, DirectWrite, write_durably

FILE_BYTES = 16 * BLOCK_BYTES
linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no write goes past the cache")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("durable") / "file"
    yield path
    path.unlink()


@given(st.lists(st.tuples(st.integers(0, 3 * BLOCK_BYTES), st.booleans()), max_size=12), st.integers(0, BLOCK_BYTES))
@settings(max_examples=100, deadline=None)
def test_what_was_written_is_there_and_nothing_before_it_has_changed(
    path: Path, writes: list[tuple[int, bool]], begin: int
) -> None:
    """One behind the other, and now and then over the last one, as a commit that could not be written is erased."""
    path.write_bytes(b"\xee" * FILE_BYTES)
    write, at = DirectWrite(), begin
    expected = bytearray(b"\xee" * FILE_BYTES)
    with FileIO(path, "r+") as file:
        for number, (size, again) in enumerate(writes):
            size = min(size, FILE_BYTES - at)  # noqa: PLW2901  what still fits
            data = bytes([number]) * size
            write(file, data, at)
            expected[at : at + size] = data
            at += 0 if again else size
        assert path.read_bytes()[:at] == expected[:at]
    assert path.stat().st_size == FILE_BYTES


@linux
def test_it_does_go_past_the_cache(path: Path) -> None:
    """Or the rest of these tests would say nothing. A temporary folder in memory can do it, too."""
    path.write_bytes(bytes(FILE_BYTES))
    with FileIO(path, "r+") as file:
        assert not is_direct(file)
        DirectWrite()(file, b"text", 10)
        assert is_direct(file)


@linux
@pytest.mark.parametrize("short", [False, True])
def test_disk_that_takes_no_direct_write_gets_the_usual_ones(
    path: Path, monkeypatch: pytest.MonkeyPatch, *, short: bool
) -> None:
    """Larger blocks than ours, or a write that was not whole."""
    real = os.pwritev

    def pwritev(fd: int, buffers: list[bytes], at: int, flags: int) -> int:
        if not is_direct(fd):
            return real(fd, buffers, at, flags)
        if short:
            return real(fd, [memoryview(buffers[0])[:BLOCK_BYTES]], at, flags)
        raise OSError(errno.EINVAL, "not here")

    path.write_bytes(b"\xee" * FILE_BYTES)
    monkeypatch.setattr(os, "pwritev", pwritev)
    write = DirectWrite()
    with FileIO(path, "r+") as file:
        write(file, b"a" * 5000, 100)
        write(file, b"b" * 5000, 5100)
        assert not is_direct(file)
    assert path.read_bytes()[:10100] == b"\xee" * 100 + b"a" * 5000 + b"b" * 5000


@linux
def test_failed_write_is_told_and_the_next_begins_with_what_the_disk_has(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "no room")

    path.write_bytes(b"\xee" * FILE_BYTES)
    write = DirectWrite()
    with FileIO(path, "r+") as file:
        write(file, b"a" * 100, 0)
        with monkeypatch.context() as patched:
            patched.setattr(os, "pwritev", full)
            with pytest.raises(OSError, match="no room"):
                write(file, b"b" * 100, 100)
        write(file, b"c" * 100, 100)
    assert path.read_bytes()[:200] == b"a" * 100 + b"c" * 100


def test_system_without_a_write_that_syncs_writes_all_of_it_and_then_syncs(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: object) -> int:
        raise OSError(errno.EOPNOTSUPP, "not here")

    monkeypatch.setattr(os, "pwritev", unknown, raising=False)
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    with FileIO(path, "w+") as file:
        write_durably(file, b"0123456789", 0)
        write_durably(file, b"abc", 5)
        assert synced == [file.fileno()] * 2
    assert path.read_bytes() == b"01234abc89"


def is_direct(file: FileIO | int) -> bool:
    """Whether writes to an open file go past the cache."""
    number = file if isinstance(file, int) else file.fileno()
    flags = next(line for line in Path(f"/proc/self/fdinfo/{number}").read_text().splitlines() if "flags" in line)
    return bool(int(flags.split()[1], 8) & os.O_DIRECT)
