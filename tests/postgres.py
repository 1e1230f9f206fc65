"""A real PostgreSQL in a process of its own, and a real PgBouncer before it, for the tests that kill them."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.live import HOST, free_port

USER = "postgres"
START_WAIT_S_MAX = 30.0
POLL_S = 0.05


class ServerFailedError(Exception):
    """It did not start, or it is not installed."""


class _Server(ABC):
    """A program that serves a port, as a user that is not root: PostgreSQL refuses to run as root.

    That user must get to `folder`: pytest's own ones are closed to others, again by every run that begins.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.port = free_port()
        self.folder = folder
        self.log_path = folder / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        if os.getuid() == 0:
            shutil.chown(folder, USER, USER)

    @abstractmethod
    def command(self) -> list[str]:
        """What runs it."""

    def start(self) -> None:
        """Return when it serves its port.

        One that leaves is started again, as a supervisor would: what a crash has left may linger for a moment, and a
        server refuses to start beside it.
        """
        ends_at = time.monotonic() + START_WAIT_S_MAX
        while not self.is_ready():
            if self._process is None or self._process.poll() is not None:
                self._spawn()
            if time.monotonic() > ends_at:
                raise ServerFailedError(self.log_path.read_text(errors="replace")[-5000:])
            time.sleep(POLL_S)  # it asks until the server is ready, which nothing announces; no test has begun

    def _spawn(self) -> None:
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [*_as_user(), *self.command()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
            )

    def is_ready(self) -> bool:
        try:
            with socket.create_connection((HOST, self.port), timeout=1.0):
                return True
        except OSError:
            return False

    def stop(self, number: signal.Signals = signal.SIGINT) -> None:
        """End it with a signal, and return when it is gone."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(number)
            process.wait(START_WAIT_S_MAX)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


class Postgres(_Server):
    """An empty cluster, in which everybody who comes is believed. `stop(SIGQUIT)` is a crash: it recovers then."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "postgres")
        initdb = [_program("initdb"), "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C"]
        done = subprocess.run(
            [*_as_user(), *initdb, f"--username={USER}", "--pgdata", str(folder / "data")],
            cwd=folder,
            capture_output=True,
            check=False,
        )
        if done.returncode:
            raise ServerFailedError(done.stderr.decode(errors="replace"))

    def command(self) -> list[str]:
        settings = {
            "listen_addresses": HOST,
            "port": str(self.port),
            "unix_socket_directories": "",
            "shared_buffers": "16MB",
            "fsync": "off",  # the machine does not lose power here
        }
        options = [option for name, value in settings.items() for option in ("-c", f"{name}={value}")]
        return [_program("postgres"), "-D", str(self.folder / "data"), *options]

    def is_ready(self) -> bool:
        ask = [_program("pg_isready"), "-q", "-h", HOST, "-p", str(self.port)]
        return subprocess.run(ask, check=False).returncode == 0

    def dsn(self, database: str) -> str:
        return f"postgresql://{USER}@{HOST}:{self.port}/{database}"


class PgBouncer(_Server):
    """In transaction mode before a PostgreSQL: every transaction has any of its few connections to it."""

    def __init__(self, folder: Path, postgres: Postgres) -> None:
        super().__init__(folder, "pgbouncer")
        (folder / "users.txt").write_text(f'"{USER}" ""\n')
        (folder / "pgbouncer.ini").write_text(
            f"""
            [databases]
            * = host={HOST} port={postgres.port} user={USER}
            [pgbouncer]
            listen_addr = {HOST}
            listen_port = {self.port}
            unix_socket_dir =
            auth_type = any
            auth_file = {folder / "users.txt"}
            pool_mode = transaction
            default_pool_size = 3
            server_round_robin = 1
            server_login_retry = 1
            """.replace(" " * 12, "").replace("* = host", "* = host"),
        )

    def command(self) -> list[str]:
        program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        if program is None:
            raise ServerFailedError("pgbouncer is not installed; deploy/setup --test installs it")
        return [program, str(self.folder / "pgbouncer.ini")]

    def dsn(self, database: str) -> str:
        return f"postgresql://{USER}@{HOST}:{self.port}/{database}"


def _as_user() -> list[str]:
    if os.getuid() != 0:
        return []
    user = pwd.getpwnam(USER)
    return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]


def _program(name: str) -> str:
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    program = str(found[-1]) if found else shutil.which(name)
    if program is None:
        raise ServerFailedError(f"{name} of PostgreSQL is not installed; deploy/setup --test installs it")
    return program
