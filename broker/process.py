"""A broker as the one thing that its process does: its socket, its signals, what it sets for the whole process."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from functools import partial
from typing import Final

import click
import uvicorn

from broker import limits
from broker.app import App, create_app
from broker.errors import EngineStopped, StartError
from broker.http.admin import switch
from broker.http.direct import UploadSocketProtocol
from broker.http.fast_reads import protocol
from broker.settings import Settings
from consumer.wire import Durability

log = logging.getLogger("streamfold.process")

_PROMISES: Final = {
    Durability.FSYNC: "what is acknowledged survives a crash and power loss",
    Durability.REPLICATED: "what is acknowledged survives the loss of a node",
    Durability.MEMORY: "NOTHING survives the end of this process",
}
_OPENINGS_MAX: Final = 3
"""A log that is trimmed faster than it can be read is not caught up with by trying more often."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # <malloc.h>


def run(settings: Settings) -> None:
    """Serve until told to stop. Raises StartError, and EngineStopped when this process has to begin anew."""
    with _bound(settings) as listener, asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_served(settings, listener))


async def _served(settings: Settings, listener: socket.socket) -> None:
    _tune()
    async with AsyncExitStack() as stack:
        app = await opened(settings, stack)
        with _signals_absorbed():
            await _Server(app, listener).serve(sockets=[listener])
    if app.spoiled is not None:
        raise app.spoiled


async def opened(settings: Settings, stack: AsyncExitStack) -> App:
    """A broker that runs until `stack` is closed. Raises StartError, and EngineStopped.

    A cluster's log may lose what comes next while it is read at the start, to a trim that passes by: once more, with a
    snapshot that is newer than that.
    """
    openings = 0
    while True:
        openings += 1
        app = create_app(settings)
        _switch_on_signals(app)
        try:
            await stack.enter_async_context(app.running())
        except EngineStopped as error:
            if not error.spoils_reads or openings == _OPENINGS_MAX:
                raise
            log.warning("the engine stopped at its start, and begins anew: %s", error)
        else:
            return app


def _switch_on_signals(app: App) -> None:
    """For an operator whose HTTP client does not get through: SIGUSR1 for synchronous commits, SIGUSR2 for shared ones.

    Before the engine opens, so that neither ends a process that is about to start.
    """
    if sys.platform == "win32":
        return
    loop = asyncio.get_running_loop()
    for number, synchronous in ((signal.SIGUSR1, True), (signal.SIGUSR2, False)):
        loop.add_signal_handler(number, partial(switch, app.partition, synchronous=synchronous))


class _Server(uvicorn.Server):
    """uvicorn, with a drain before its own shutdown, which waits for every connection."""

    def __init__(self, app: App, listener: socket.socket) -> None:
        settings = app.settings
        super().__init__(
            uvicorn.Config(
                app,
                http=protocol(app.fast_appends, app.fast_reads) if settings.fast_path else "httptools",
                ws=UploadSocketProtocol if settings.fast_path else "websockets-sansio",
                ws_max_size=settings.body_bytes_max + limits.FRAME_BYTES,
                # A client may ask for it, and each that does would hold some hundred KiB of window here.
                ws_per_message_deflate=False,
                lifespan="off",  # `_served` runs it, so that a StartError gets out
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,  # whom to believe is the operator's to say
                timeout_keep_alive=limits.CONNECTION_IDLE_S,
                limit_concurrency=settings.connections_max,
                backlog=limits.BACKLOG,
            )
        )
        self._broker = app
        self._listener = listener
        self._spoiled_at: float | None = None  # by the event loop's clock

    async def on_tick(self, counter: int) -> bool:
        return self._has_told_failure() or await super().on_tick(counter)

    def _has_told_failure(self) -> bool:
        """Whether this process has to begin anew, and load balancers and monitoring have had the time to see why."""
        if self._broker.spoiled is None:
            return False
        now = asyncio.get_running_loop().time()
        if self._spoiled_at is None:
            self._spoiled_at = now
        return now >= self._spoiled_at + limits.FAILURE_TOLD_S

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # What is here by now stays: the collector need not look at it again and again.
        gc.collect()
        gc.freeze()
        _announce(self._broker, self._listener)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._broker.drain()
        # Before uvicorn closes what upgraded: uploads tell what is durable first.
        await self._broker.uploads.drain(self._broker.drain_s_left)
        self.config.timeout_graceful_shutdown = max(1, round(self._broker.drain_s_left))
        await super().shutdown(sockets)


def _announce(app: App, listener: socket.socket) -> None:
    settings, durability = app.settings, Durability(app.partition.durability)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    data = "none" if settings.engine == "memory" else settings.data_dir.resolve()
    click.echo(f"durability: {durability.value} ({_PROMISES[durability]})")
    click.echo(f"url: http://{host}:{listener.getsockname()[1]}")
    click.echo(f"data: {data}")


def _bound(settings: Settings) -> socket.socket:
    """The socket, bound and not yet listening: until the broker is ready, nobody is to connect. Raises StartError."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, proto)
    except OSError as error:
        raise StartError(f"{settings.host}: {error.strerror}", "name an address of this machine") from error
    try:
        if sys.platform != "win32":  # there it would let two processes share the port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise StartError(
            f"cannot listen on {settings.host} port {settings.port}: {error.strerror}",
            "is a broker running there already? Choose another --port",
        ) from error
    return listener


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    if sys.platform == "win32":
        return None
    import uvloop  # noqa: PLC0415 -- it does not exist on Windows

    return uvloop.new_event_loop


def _tune() -> None:
    """Settings of the process, which is the broker's own here; `create_app` leaves them alone."""
    # Requests and entries make no cycles: reference counts free them. The default of 700 new objects a collection
    # would walk thousands of rows and futures for nothing, many times a second.
    gc.set_threshold(50_000, 20, 50)
    # A commit is written by a thread. With the default of 5 ms it would, when it comes back from its fsync, wait that
    # long for a busy event loop to hand over the interpreter; much less than this tears the loop away from its work.
    sys.setswitchinterval(0.002)
    _keep_buffers_of_pages()


def _keep_buffers_of_pages() -> None:
    """Have memory of buffers up to the size of a page's for the next one, and give larger ones back to the system.

    The system clears what it hands out: a megabyte that is read, cut, joined and sent costs four times as much when
    each of its buffers comes from there. By itself glibc keeps little at first, and then, as it raises the size from
    which a buffer goes back each time that it frees a larger one, what a snapshot of a long answer took a moment ago,
    between what is small and lives on. Elsewhere nothing happens.
    """
    with suppress(OSError, TypeError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, limits.BUFFER_GIVEN_BACK_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, limits.FREE_KEPT_BYTES)


@contextmanager
def _signals_absorbed() -> Iterator[None]:
    """Uvicorn raises the signal that stopped it once more when it has stopped: here a drain is a good end."""
    handlers = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
