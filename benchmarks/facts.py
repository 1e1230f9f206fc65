"""What a number was measured on."""

from __future__ import annotations

import os
import platform
import sqlite3
import subprocess
import time
import timeit
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Final

import msgspec

FSYNCS: Final = 200
FSYNC_BYTES: Final = 8192
PIECES: Final = 20
PIECE_ROUNDS: Final = 20


class Facts(msgspec.Struct, frozen=True):
    """The machine and the versions."""

    cpu: str
    cores: int
    system: str
    file_system: str
    fsync_ms: float  # median of 8 KiB overwritten and synced, in the folder that the servers write to
    python: str
    uvicorn: str
    uvloop: str
    httptools: str
    sqlite: str
    commit: str
    memory_gib: float = 0.0
    load_before: float = 0.0
    """What wanted to run in the minute before, on average, in cores."""
    distribution: str = ""
    python_compiler: str = ""
    python_us: float = 0.0
    """What a piece of plain Python takes: a third more where the same version was built without profile guidance."""

    @property
    def durable(self) -> bool:
        """Whether what is synced there survives a power loss."""
        return self.file_system not in {"tmpfs", "ramfs"}

    def __str__(self) -> str:
        return (
            f"{self.cpu}, {self.cores} cores, {self.memory_gib:.0f} GiB, {self._operating_system()}; "
            f"{self.file_system}, fsync {self.fsync_ms:.2f} ms; "
            f"Python {self.python}{self._python_build()}, "
            f"uvicorn {self.uvicorn}, uvloop {self.uvloop}, httptools {self.httptools}, "
            f"SQLite {self.sqlite}; commit {self.commit}; load before {self.load_before:.1f}"
        )

    def _operating_system(self) -> str:
        return ", ".join(filter(None, [self.distribution, self.system]))

    def _python_build(self) -> str:
        if not self.python_compiler:
            return ""  # a report from before this was asked
        return f" ({self.python_compiler}, a thousand plain steps in {self.python_us:.0f} us)"


def collect(data_dir: Path) -> Facts:
    """The facts of this machine, and of the disk under `data_dir`."""
    return Facts(
        cpu=_cpu(),
        cores=os.cpu_count() or 1,
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        file_system=_file_system(data_dir),
        fsync_ms=_fsync_ms(data_dir),
        python=platform.python_version(),
        uvicorn=version("uvicorn"),
        uvloop=version("uvloop"),
        httptools=version("httptools"),
        sqlite=sqlite3.sqlite_version,
        commit=_commit(),
        memory_gib=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30,
        load_before=os.getloadavg()[0],
        distribution=_distribution(),
        python_compiler=platform.python_compiler(),
        python_us=_plain_python_us(),
    )


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except OSError:
        return ""


class _Counter:
    __slots__ = ("steps", "total")

    def __init__(self) -> None:
        self.steps = self.total = 0

    def step(self, number: int) -> tuple[int, int] | None:
        self.steps += 1
        self.total += number
        return (self.steps, self.total) if self.total & 1 else None


def _plain_python_us() -> float:
    def thousand() -> None:
        counter, seen = _Counter(), {}
        for number in range(1000):
            if (odd := counter.step(number)) is not None:
                seen[odd] = f"{number}"

    return min(timeit.repeat(thousand, number=PIECES, repeat=PIECE_ROUNDS)) / PIECES * 1e6


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except FileNotFoundError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _file_system(folder: Path) -> str:
    """Its type: that of the mount with the longest path above it."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    except FileNotFoundError:
        return "unknown"
    above = [(len(point), kind) for _, point, kind, *_ in mounts if folder.resolve().is_relative_to(point)]
    return max(above)[1] if above else "unknown"


def _fsync_ms(folder: Path) -> float:
    path = folder / "fsync"
    took_s = []
    with path.open("wb", buffering=0) as file:
        file.write(bytes(FSYNC_BYTES))
        os.fsync(file)
        for _ in range(FSYNCS):
            file.seek(0)
            begun_s = time.perf_counter()
            file.write(os.urandom(FSYNC_BYTES))
            os.fsync(file)
            took_s.append(time.perf_counter() - begun_s)
    path.unlink()
    return median(took_s) * 1000


def _commit() -> str:
    git = ["git", "describe", "--always", "--dirty"]
    try:
        told = subprocess.run(git, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return told.stdout.strip()
