"""A real broker in a process of its own, for the tests that kill it and for those that speak to it from outside."""

import contextlib
import http.client
import itertools
import os
import random
import signal
import socket
import subprocess
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import anyio
import anyio.to_thread

HOST = "127.0.0.1"
START_WAIT_S_MAX = 20.0
# Longer than the broker's own drain, so that what is seen here is its exit and not our impatience.
STOP_WAIT_S_MAX = 30.0
HEALTH_POLL_S = 0.02
LOG_SHOWN_BYTES_MAX = 20_000
# Below those that the kernel gives to outgoing connections. A client that keeps knocking on a dead broker's port would
# otherwise be given that very port as its own one day, and be connected to itself: the restarted broker then finds the
# address in use.
PORTS = range(20_000, 32_000)
PORTS_TRIED_MAX = 100


class BrokerFailedError(Exception):
    """The broker did not do what was asked within its bound; the text carries the end of its log."""


class Usual:
    """The engine that tests run on which do not care, and what a broker has to be told for it: see `--engine`."""

    engine = "sqlite"
    start_wait_s_max = START_WAIT_S_MAX
    env: Callable[[], Mapping[str, str]] = staticmethod(dict[str, str])


usual = Usual()


class Broker:
    """`streamfold serve` on a data folder and a port that stay the same over any number of lives.

    `start` returns when `GET /health` answers 200. `kill` is SIGKILL, `stop` is SIGTERM. Leaving the context kills what
    still runs and, if it is left by an exception, prints the end of the broker's log for the test report.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        engine: str = "",
        port: int | None = None,
        env: Mapping[str, str] | None = None,
        start_wait_s_max: float | None = None,
    ) -> None:
        self.data_dir = data_dir
        self._start_wait_s_max = usual.start_wait_s_max if start_wait_s_max is None else start_wait_s_max
        self.engine = engine or usual.engine
        self.port = free_port() if port is None else port
        self.env = {**({} if engine else usual.env()), **(env or {})}
        self.log_path = data_dir.with_name(f"{data_dir.name}.log")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def pid(self) -> int:
        return self._running().pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with anyio.CancelScope(shield=True):
            await self.kill()
        if error_type is not None:
            print(f"--- log of the broker at {self.url}\n{self.log_text()}")

    async def start(self) -> None:
        """Start a process and wait until it is healthy.

        Raises BrokerFailedError if it exits or is not healthy within its bound; it is then not running.
        """
        if self.is_running:
            raise BrokerFailedError(f"the broker at {self.url} runs already")
        self._spawn()
        try:
            await self._wait_until_healthy()
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.kill()
            raise

    async def kill(self) -> None:
        """End the process with SIGKILL, as a crash would; nothing if it does not run."""
        if self._process is None:
            return
        self._process.kill()
        await self._wait_for_exit()

    async def restart(self) -> None:
        """Kill, then start on the same folder and port."""
        await self.kill()
        await self.start()

    async def stop(self) -> int:
        """Ask it to drain with SIGTERM; its exit status.

        Raises BrokerFailedError if it has not left within STOP_WAIT_S_MAX; it is then killed.
        """
        self._running().send_signal(signal.SIGTERM)
        return await self._wait_for_exit()

    async def left(self) -> int:
        """Its exit status, once it has ended by itself. Raises BrokerFailedError as `stop` does."""
        return await self._wait_for_exit()

    def send(self, number: signal.Signals) -> None:
        """Send its process a signal. Raises BrokerFailedError when it does not run."""
        self._running().send_signal(number)

    def resident_bytes(self) -> int:
        """What its process holds in memory. Raises OSError where the system has no /proc."""
        lines = Path(f"/proc/{self._running().pid}/status").read_text().splitlines()
        [kib] = [line.split()[1] for line in lines if line.startswith("VmRSS:")]
        return int(kib) * 1024

    def log_text(self) -> str:
        """The end of what all its lives have printed."""
        with contextlib.suppress(FileNotFoundError):
            return self.log_path.read_bytes()[-LOG_SHOWN_BYTES_MAX:].decode(errors="replace")
        return ""

    def _spawn(self) -> None:
        environment = {**os.environ, **self.env}
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self._command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
            )

    def _command(self) -> list[str]:
        program = Path(sysconfig.get_path("scripts"), "streamfold")
        where = ["--host", HOST, "--port", str(self.port), "--data-dir", str(self.data_dir)]
        return [str(program), "serve", *where, "--engine", self.engine]

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise BrokerFailedError(f"the broker at {self.url} does not run")
        return self._process

    async def _wait_until_healthy(self) -> None:
        with anyio.move_on_after(self._start_wait_s_max):
            while self.is_running:
                if await anyio.to_thread.run_sync(is_healthy, self.port):
                    return
                await anyio.sleep(HEALTH_POLL_S)
            status = self._running().returncode
            raise BrokerFailedError(f"the broker left with exit status {status}\n{self.log_text()}")
        raise BrokerFailedError(f"the broker was not healthy within {self._start_wait_s_max} s\n{self.log_text()}")

    async def _wait_for_exit(self) -> int:
        process = self._running()
        try:
            status = await anyio.to_thread.run_sync(process.wait, STOP_WAIT_S_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise BrokerFailedError(f"the broker did not leave within {STOP_WAIT_S_MAX} s\n{self.log_text()}") from None
        finally:
            self._process = None
        return status


def is_healthy(port: int) -> bool:
    """Whether `GET /health` on this port answers 200 at once."""
    connection = http.client.HTTPConnection(HOST, port, timeout=1.0)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def ports_of(environment: Mapping[str, str]) -> Iterator[int]:
    """The share of PORTS of this process, in a random order, over and over: each again only after all the others.

    What is handed out may be listened on much later, or in vain for a while: a second draw would not see that it is
    taken. Nor do the workers of pytest-xdist see one another's: their shares have no port in common. A process that a
    worker starts has that worker's share in an order of its own, so it is better told its ports than left to draw some.
    """
    workers = int(environment.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    worker = int(environment.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    share = list(PORTS[worker % workers :: workers])  # one that takes a dead worker's place counts on from the last
    random.SystemRandom().shuffle(share)
    return itertools.cycle(share)


_ports = ports_of(os.environ)


def free_port(ports: Iterator[int] = _ports) -> int:
    """A port that nobody listens on, and that nobody here was given lately: see `ports_of`.

    Raises BrokerFailedError when everything it tries is taken.
    """
    for port in itertools.islice(ports, PORTS_TRIED_MAX):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((HOST, port))
            return port
    raise BrokerFailedError("no free port found")
