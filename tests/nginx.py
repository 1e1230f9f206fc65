"""A real nginx in front of a broker, in a process of its own."""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import anyio
import anyio.to_thread

from tests.eventually import eventually
from tests.live import HOST, Broker, free_port, is_healthy
from tests.missing import missing

STOP_WAIT_S_MAX = 10.0
BALANCER = Path(__file__).parents[1] / "deploy" / "nginx.conf"

CONFIGURATION = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
events {{}}
http {{
  log_format asked '$request_uri';
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  proxy_http_version 1.1;
  server {{
    listen {host}:{port};
    access_log {folder}/access.log asked;
    location / {{ {way} }}
  }}
  server {{
    listen {host}:{inner_port};
    access_log off;
    gzip on;
    gzip_types *;
    gzip_min_length 0;
    gzip_proxied any;
    location / {{
      proxy_pass http://{host}:{broker_port};
      proxy_buffering on;
      proxy_ignore_headers X-Accel-Buffering;
    }}
  }}
}}
"""
PASSES_ON = "proxy_pass http://{host}:{broker_port}; proxy_buffering off;"
# Buffers alone do not hold chunked answers back. A filter that waits for more input does: here it is compression on the
# way from one server to the next, whatever the client takes.
HOLDS_BACK = """
  proxy_pass http://{host}:{inner_port};
  proxy_set_header Accept-Encoding gzip;
  gunzip on;
  proxy_buffering on;
  proxy_ignore_headers X-Accel-Buffering;
"""


class Nginx:
    """`async with Nginx(broker, folder) as nginx:`; `nginx.url` is where it passes requests on to the broker.

    One that `holds_back` keeps events until there are many of them, whatever the broker asks it to do.
    """

    def __init__(self, broker: Broker, folder: Path, *, holds_back: bool = False) -> None:
        self._folder = folder
        self._port = free_port()
        facts = {"host": HOST, "broker_port": broker.port, "inner_port": free_port()}
        way = (HOLDS_BACK if holds_back else PASSES_ON).format(**facts)
        self._configuration = CONFIGURATION.format(folder=folder, port=self._port, way=way, **facts)

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self._port}"

    async def __aenter__(self) -> Self:
        self._folder.mkdir()
        path = self._folder / "nginx.conf"
        path.write_text(self._configuration)
        self._start(path)
        try:
            await eventually(self._is_healthy)
        except BaseException:
            self._process.kill()
            raise
        return self

    async def __aexit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.kill()
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self._process.wait, STOP_WAIT_S_MAX)

    def asked(self) -> list[str]:
        """The targets of the requests that were answered to their end, in order."""
        return (self._folder / "access.log").read_text().splitlines()

    def suspend(self) -> None:
        """From now on it takes connections and bytes, as the kernel does for it, and says nothing: SIGSTOP."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def _start(self, configuration: Path) -> None:
        folder = str(self._folder)
        command = [program(), "-p", folder, "-e", f"{folder}/error.log", "-c", str(configuration)]
        self._process = subprocess.Popen(command)

    async def _is_healthy(self) -> bool:
        assert self._process.poll() is None, (self._folder / "error.log").read_text()
        return await anyio.to_thread.run_sync(is_healthy, self._port)


class Balancer(Nginx):
    """An nginx with the configuration that `deploy` ships, in front of these brokers."""

    def __init__(self, brokers: Sequence[Broker], folder: Path) -> None:
        self._folder = folder
        self._port = free_port()
        shipped = BALANCER.read_text(encoding="utf-8")
        servers = iter(brokers)
        nodes = re.sub(r"node-\d:4437", lambda _: f"{HOST}:{next(servers).port}", shipped, count=len(brokers))
        nodes = re.sub(r"^\s*server node-.*$", "", nodes, flags=re.MULTILINE)
        nodes = nodes.replace("worker_processes auto;", f"daemon off; master_process off; pid {folder}/nginx.pid;")
        nodes = nodes.replace("listen 4437", f"listen {HOST}:{self._port}")
        places = f"http {{ client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;"
        self._configuration = nodes.replace("http {", places, 1)


def program() -> str:
    """Where nginx is: Debian keeps it out of the PATH of ordinary users."""
    found = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    return found or missing("there is no nginx: run deploy/setup --test")
