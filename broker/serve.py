"""`streamfold serve`: its options, and what it says when it cannot start or has to begin anew."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Final

import click

from broker import limits, process
from broker.errors import Damaged, EngineStopped, StartError
from broker.settings import ENGINES, Engine, Settings

_DEFAULTS: Final = Settings()
BEGIN_ANEW_STATUS: Final = 75
"""EX_TEMPFAIL of <sysexits.h>: whoever starts it again helps."""


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
        process.run(settings)
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


def _require_secure(settings: Settings) -> None:
    if settings.insecure or settings.is_local:
        return
    raise StartError(
        f"{settings.host} is reached by other machines, and there is no authentication yet",
        "listen on 127.0.0.1, or say --insecure if whoever reaches this address may read and write everything",
    )
