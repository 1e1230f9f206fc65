"""`streamfold serve`: a broker in a process of its own."""

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
from pathlib import Path
from typing import Final

import click
import uvicorn

from broker import limits
from broker.app import App, create_app
from broker.errors import Damaged, EngineStopped, StartError
from broker.http.admin import switch
from broker.http.direct import UploadSocketProtocol
from broker.http.fast_reads import protocol
from broker.settings import ENGINES, Engine, Settings
from consumer.wire import Durability

log = logging.getLogger("streamfold.serve")

_PROMISES: Final = {
    Durability.FSYNC: "what is acknowledged survives a crash and power loss",
    Durability.REPLICATED: "what is acknowledged survives the loss of a node",
    Durability.MEMORY: "NOTHING survives the end of this process",
}
_DEFAULTS: Final = Settings()
BEGIN_ANEW_STATUS: Final = 75
"""EX_TEMPFAIL of <sysexits.h>: whoever starts it again helps."""
_OPENINGS_MAX: Final = 3
"""A log that is trimmed faster than it can be read is not caught up with by trying more often."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # <malloc.h>


@click.command(context_settings={"auto_envvar_prefix": "STREAMFOLD", "show_default": True})
@click.option("--host", default=_DEFAULTS.host, envvar="STREAMFOLD_HOST", help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=_DEFAULTS.port, envvar="STREAMFOLD_PORT", help="0: any free one."
)
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=_DEFAULTS.data_dir,
    envvar="STREAMFOLD_DATA_DIR",
    help="Folder that keeps everything; made when missing. The memory engine uses none.",
)
@click.option("--engine", type=click.Choice(ENGINES), default=_DEFAULTS.engine, envvar="STREAMFOLD_ENGINE")
@click.option(
    "--kafka-bootstrap",
    default=_DEFAULTS.kafka_bootstrap,
    envvar="STREAMFOLD_KAFKA_BOOTSTRAP",
    metavar="HOST:PORT,…",
    help="Brokers of Kafka, for --engine kafka. All nodes that name the same topic serve the same streams.",
)
@click.option(
    "--kafka-topic",
    default=_DEFAULTS.kafka_topic,
    envvar="STREAMFOLD_KAFKA_TOPIC",
    help="Made when it is missing; nobody else may write to it.",
)
@click.option(
    "--kafka-partitions",
    type=click.IntRange(min=1),
    default=_DEFAULTS.kafka_partitions,
    envvar="STREAMFOLD_KAFKA_PARTITIONS",
    help="Of the topic. Chosen once: which partition holds a stream depends on it.",
)
@click.option("--kafka-tls/--no-kafka-tls", default=_DEFAULTS.kafka_tls, envvar="STREAMFOLD_KAFKA_TLS")
@click.option(
    "--kafka-ca",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="STREAMFOLD_KAFKA_CA",
    help="Certificates of the authority that signed those of Kafka. [default: the system's]",
    show_default=False,
)
@click.option("--kafka-username", default=_DEFAULTS.kafka_username, envvar="STREAMFOLD_KAFKA_USERNAME")
@click.option(
    "--kafka-password",
    default=_DEFAULTS.kafka_password,
    envvar="STREAMFOLD_KAFKA_PASSWORD",
    help="Better given as STREAMFOLD_KAFKA_PASSWORD: a command line is there for all to see.",
    show_default=False,
)
@click.option(
    "--kafka-mechanism",
    type=click.Choice(["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]),
    default=_DEFAULTS.kafka_mechanism,
    envvar="STREAMFOLD_KAFKA_MECHANISM",
    help="How the password is proved.",
)
@click.option(
    "--snapshot-dir",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="STREAMFOLD_SNAPSHOT_DIR",
    help="Folder that all nodes of a cluster share, for snapshots of its partitions: the topic is trimmed behind them,"
    " and a node that is new, or was away for long, begins with one. [default: none, and the topic keeps everything]",
    show_default=False,
)
@click.option(
    "--snapshot-log-mib",
    type=click.IntRange(min=1),
    default=_DEFAULTS.snapshot_log_bytes // limits.MIB,
    envvar="STREAMFOLD_SNAPSHOT_LOG_MIB",
    help="MiB that a partition of the topic grows by between two snapshots; more where the store is large.",
)
@click.option(
    "--signing-key",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="STREAMFOLD_SIGNING_KEY",
    help="File of the key that webhooks are signed with; the same for all nodes of a cluster. [default: in the data"
    " folder]",
    show_default=False,
)
@click.option(
    "--public-url",
    default=_DEFAULTS.public_url,
    envvar="STREAMFOLD_PUBLIC_URL",
    help="Where clients reach it, before /v1/; for the URLs that it hands out.",
)
@click.option(
    "--insecure",
    is_flag=True,
    envvar="STREAMFOLD_INSECURE",
    help="Listen on an address that other machines reach, without authentication.",
)
@click.option(
    "--unused-session-s",
    type=click.FloatRange(min=0),
    default=_DEFAULTS.unused_session_s,
    envvar="STREAMFOLD_UNUSED_SESSION_S",
    help="Seconds that a session without any message or chunk is kept; 0: for ever.",
)
@click.option(
    "--long-poll-s",
    type=click.FloatRange(min=0, min_open=True),
    default=_DEFAULTS.long_poll_s,
    envvar="STREAMFOLD_LONG_POLL_S",
    help="Seconds that a long-poll waits.",
)
@click.option(
    "--sse-life-s",
    type=click.FloatRange(min=0, min_open=True),
    default=_DEFAULTS.sse_life_s,
    envvar="STREAMFOLD_SSE_LIFE_S",
    help="Seconds that one SSE connection lives.",
)
@click.option(
    "--checkpoint-interval-s",
    type=click.FloatRange(min=0, min_open=True),
    default=_DEFAULTS.checkpoint_interval_s,
    envvar="STREAMFOLD_CHECKPOINT_INTERVAL_S",
    help="Seconds between checkpoints: about what a restart has to replay.",
)
@click.option(
    "--fast-path/--no-fast-path",
    default=_DEFAULTS.fast_path,
    envvar="STREAMFOLD_FAST_PATH",
    help="Answer plain appends and batches, tokens of uploads, and readers over SSE, without an ASGI task.",
)
@click.option(
    "--async-acks",
    is_flag=True,
    envvar="STREAMFOLD_ASYNC_ACKS",
    help="Answer chunks with 202 before they are durable, where a producer prefers that; its finish still tells.",
)
@click.option(
    "--drain-s",
    type=click.FloatRange(min=0, min_open=True),
    default=_DEFAULTS.drain_s,
    envvar="STREAMFOLD_DRAIN_S",
    help="Seconds that a stop waits for requests in flight, and for Kafka; a stop takes little longer.",
)
def serve(  # noqa: PLR0913 -- one for each option
    *,
    host: str,
    port: int,
    data_dir: Path,
    engine: Engine,
    kafka_bootstrap: str,
    kafka_topic: str,
    kafka_partitions: int,
    kafka_tls: bool,
    kafka_ca: Path | None,
    kafka_username: str,
    kafka_password: str,
    kafka_mechanism: str,
    snapshot_dir: Path | None,
    snapshot_log_mib: int,
    signing_key: Path | None,
    public_url: str,
    insecure: bool,
    unused_session_s: float,
    long_poll_s: float,
    sse_life_s: float,
    checkpoint_interval_s: float,
    fast_path: bool,
    async_acks: bool,
    drain_s: float,
) -> None:
    """Run a broker until SIGTERM or Ctrl+C.

    Every option may be given as an environment variable, STREAMFOLD_ and its name.

    Exit status: 0 it was told to stop (a node of a cluster: whether Kafka answered by then or not), 1 it cannot start
    like this, 75 it has to begin anew (a node whose store is not what the log makes): start it again.
    """
    if engine == "kafka" and not kafka_bootstrap:
        raise click.UsageError("--engine kafka needs --kafka-bootstrap")
    if snapshot_dir is not None and engine != "kafka":
        raise click.UsageError("--snapshot-dir is for --engine kafka")
    settings = Settings(
        host=host,
        port=port,
        data_dir=data_dir,
        engine=engine,
        kafka_bootstrap=kafka_bootstrap,
        kafka_topic=kafka_topic,
        kafka_partitions=kafka_partitions,
        kafka_tls=kafka_tls,
        kafka_ca=kafka_ca,
        kafka_username=kafka_username,
        kafka_password=kafka_password,
        kafka_mechanism=kafka_mechanism,
        snapshot_dir=snapshot_dir,
        snapshot_log_bytes=snapshot_log_mib * limits.MIB,
        signing_key=signing_key,
        public_url=public_url,
        insecure=insecure,
        unused_session_s=unused_session_s,
        long_poll_s=long_poll_s,
        sse_life_s=sse_life_s,
        checkpoint_interval_s=checkpoint_interval_s,
        fast_path=fast_path,
        async_acks=async_acks,
        drain_s=drain_s,
    )
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("uvicorn.error").addFilter(_is_news)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs URLs, and those of webhooks may hold secrets
    # Twenty times a second while a broker of Kafka is away. What comes of it, `streamfold.kafka` and `.journal` tell.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    try:
        _require_secure(settings)
        with _bound(settings) as listener, asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_serve(settings, listener))
    except StartError as error:
        click.echo(f"error: {error}", err=True)
        if error.hint:
            click.echo(f"hint: {error.hint}", err=True)
        if isinstance(error, Damaged):
            click.echo(f"hint: `streamfold doctor {settings.data_dir}` says what is damaged, and what helps", err=True)
        sys.exit(1)
    except EngineStopped as error:
        click.echo(f"error: the engine stopped: {error}", err=True)
        if error.spoils_reads:
            click.echo("hint: start it again: it begins with the newest snapshot, or with all of the log", err=True)
        sys.exit(BEGIN_ANEW_STATUS if error.spoils_reads else 1)


def _is_news(record: logging.LogRecord) -> bool:
    """A live read that is cut off in its middle (`CutOff`, or a reader that takes nothing) is no mistake of ours."""
    return "without completing response" not in record.getMessage()


async def _serve(settings: Settings, listener: socket.socket) -> None:
    """Serve until told to stop. Raises StartError, and EngineStopped when this process has to begin anew."""
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
                lifespan="off",  # `_serve` runs it, so that a StartError gets out
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


def _require_secure(settings: Settings) -> None:
    if settings.insecure or settings.is_local:
        return
    raise StartError(
        f"{settings.host} is reached by other machines, and there is no authentication yet",
        "listen on 127.0.0.1, or say --insecure if whoever reaches this address may read and write everything",
    )


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
