"""Servers as processes on a core of their own, killed when they are done with."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests import live

READY_S_MAX: Final = 60.0
CORES: Final = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
"""The first is the server's, the last the load's; with fewer than two, both share what there is."""

Command = list[str]

# A port from among those of outgoing connections could become one of the load's before the server listens on it.
free_port: Final = live.free_port


class Server:
    """A running server."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.port = port
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    def cpu_s(self) -> float:
        """What it has used of its core so far, in seconds; 0 where the system has no /proc."""
        return cpu_s(self.pid)


def cpu_s(pid: int) -> float:
    """What a process has used of all cores so far, in seconds; 0 where the system has no /proc."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return 0.0
    user, system = stat.rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def cores_busy_s() -> float:
    """What everything together has used of the two cores so far, in seconds; 0 where the system has no /proc."""
    try:
        lines = Path("/proc/stat").read_text().splitlines()
    except FileNotFoundError:
        return 0.0
    fields = [line.split() for line in lines]
    ticks_of = {name: [int(number) for number in numbers] for name, *numbers in fields if name.startswith("cpu")}
    used = [ticks_of[f"cpu{core}"] for core in {CORES[0], CORES[-1]}]
    # user, nice, system, (idle, iowait,) irq, softirq, steal
    return sum(sum(ticks[:3]) + sum(ticks[5:8]) for ticks in used) / os.sysconf("SC_CLK_TCK")


def bare(port: int) -> Command:
    """The floor."""
    return [sys.executable, "-m", "benchmarks.bare", str(port)]


def streamfold(port: int, engine: str, data_dir: Path, *options: str) -> Command:
    """`streamfold serve`."""
    program = str(Path(sys.executable).with_name("streamfold"))
    return [program, "serve", "--port", str(port), "--engine", engine, "--data-dir", str(data_dir), *options]


def pin_load() -> None:
    """Keep this process, and what it starts besides servers, to the load's core."""
    if len(CORES) > 1:
        os.sched_setaffinity(0, {CORES[-1]})


@contextmanager
def running(command: Command, port: int, ready_s_max: float = READY_S_MAX) -> Iterator[Server]:
    """The server, accepting connections, alone on its core. Killed at the end, with SIGKILL: no farewell.

    Raises RuntimeError when it ends or does not listen in `ready_s_max`.
    """
    with on_cores(CORES[:1]):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        _wait_until_listening(process, port, ready_s_max)
        yield Server(process, port)
    finally:
        process.kill()
        process.wait()


@contextmanager
def on_cores(cores: list[int]) -> Iterator[None]:
    """What is started in here keeps to these cores. Afterwards this process is the load again: see `pin_load`."""
    if len(CORES) > 1:
        os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        pin_load()


def _wait_until_listening(process: subprocess.Popen[bytes], port: int, ready_s_max: float) -> None:
    deadline_s = time.monotonic() + ready_s_max
    while time.monotonic() < deadline_s:
        if process.poll() is not None:
            raise RuntimeError(f"{process.args!r} ended with {process.returncode}")
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1):
                return
        except OSError:
            time.sleep(0.02)  # it asks until the server listens, which nothing announces
    raise RuntimeError(f"{process.args!r} does not listen after {ready_s_max} s")
