"""What an operator may choose. Everything else is in `broker.limits`."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Final, Literal, get_args

import msgspec

from broker import limits

Engine = Literal["sqlite", "memory", "kafka"]
ENGINES: Final[tuple[Engine, ...]] = get_args(Engine)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of one broker. Raises ValueError for values that cannot work."""

    host: str = "127.0.0.1"
    port: int = 4437
    """The protocol's own port (PROTOCOL.md 13.1). 0 is any free one."""
    public_url: str = ""
    """Where clients reach the broker, before `/v1/`, for URLs that it hands out; else what a client used itself."""
    insecure: bool = False
    """Serve others than this machine without authentication."""
    engine: Engine = "sqlite"
    data_dir: Path = Path("streamfold-data")
    """Where the sqlite engine keeps everything, and the kafka engine what it has read. One broker at a time."""
    signing_key: Path | None = None
    """What webhooks are signed with, made when missing; else it is in `data_dir`. All nodes of a cluster need the same
    one."""
    kafka_bootstrap: str = ""
    """HOST:PORT of some of Kafka's brokers, separated by commas. The kafka engine needs it."""
    kafka_topic: str = "streamfold"
    """Made when it is missing. Nobody else may write to it."""
    kafka_tls: bool = False
    kafka_ca: Path | None = None
    """The authority that signed the certificates of Kafka's brokers; else those that the system trusts."""
    kafka_username: str = ""
    """Empty: Kafka does not ask who is asking."""
    kafka_password: str = ""
    kafka_mechanism: str = "SCRAM-SHA-512"
    """How the password is proved: PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512."""
    kafka_partitions: int = 8
    """Of the topic. Chosen once: which partition holds a stream depends on it."""
    snapshot_dir: Path | None = None
    """Where the nodes of a cluster keep snapshots of its partitions, in one folder that all of them reach; the topic is
    trimmed behind them. None: it grows for ever."""
    snapshot_log_bytes: int = limits.SNAPSHOT_LOG_BYTES
    """How much a partition of the topic grows between two snapshots; more where the store is large."""

    fast_path: bool = True
    """Answer plain appends without an ASGI task. Off: every request goes through the application."""
    async_acks: bool = False
    """Answer batches before they are durable where a producer asks for it (`Prefer: respond-async`)."""
    body_bytes_max: int = limits.BODY_BYTES_MAX
    """One request body."""
    unused_session_s: float = limits.UNUSED_SESSION_S
    """How long a session lives in which nobody has written a message or a chunk, after it was created or last opened
    for an answer; 0: for ever."""
    long_poll_s: float = limits.LONG_POLL_S
    """How long a long-poll waits for a record before it answers 204."""
    sse_life_s: float = limits.SSE_LIFE_S
    """How long one SSE connection lives, give or take a tenth; its reader comes back at its offset."""
    sse_keepalive_s: float = limits.SSE_KEEPALIVE_S
    """Silence on an SSE connection after which a comment is sent."""
    live_readers_max: int = limits.LIVE_READERS_MAX
    """Long-polls that wait and SSE connections, together."""
    connections_max: int = limits.CONNECTIONS_MAX
    """Open connections, idle ones too; the next one gets 503."""
    checkpoint_interval_s: float = limits.CHECKPOINT_INTERVAL_S
    """How often what was applied moves into the store: about what a restart has to replay."""
    drain_s: float = limits.DRAIN_S
    """How long a stop waits for requests that still run."""

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches the broker."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __post_init__(self) -> None:
        """Check the bounds that no type holds."""
        if self.engine not in ENGINES:
            raise ValueError(f"engine is {self.engine!r}, not one of {', '.join(ENGINES)}")
        if self.engine == "kafka" and not self.kafka_bootstrap:
            raise ValueError("the kafka engine needs kafka_bootstrap, HOST:PORT of a broker of Kafka")
        if self.snapshot_dir is not None and self.engine != "kafka":
            raise ValueError("snapshot_dir is for the kafka engine")
        if not 0 <= self.port <= 65535:  # noqa: PLR2004 -- 16 bits
            raise ValueError(f"port is {self.port}, not 0 to 65535")
        if self.public_url and not self.public_url.startswith(("http://", "https://")):
            raise ValueError(f"public_url is {self.public_url!r}, not an http or https URL")
        for name in ("body_bytes_max", "long_poll_s", "sse_life_s", "sse_keepalive_s", "live_readers_max"):
            _require_positive(name, getattr(self, name))
        if self.unused_session_s < 0:
            raise ValueError(f"unused_session_s is {self.unused_session_s}, below 0")
        for name in ("kafka_partitions", "snapshot_log_bytes", "connections_max", "checkpoint_interval_s", "drain_s"):
            _require_positive(name, getattr(self, name))


def _require_positive(name: str, value: float) -> None:
    if value <= 0:
        raise ValueError(f"{name} is {value}, not above 0")
