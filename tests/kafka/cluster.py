"""Real Apache Kafka for the tests: brokers as processes of their own, without a container engine.

    python -m tests.kafka.cluster        makes what every start uses: formatted folders, an archive of classes

`deploy/setup --test` runs it once, with the jars of `pom.xml` at hand. From the archive a broker starts twice as fast.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self
from uuid import uuid4

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.live import HOST, LOG_SHOWN_BYTES_MAX, free_port

HERE = Path(__file__).parent
CACHE = HERE.parents[1] / ".cache" / "kafka"
ARCHIVE = CACHE / "classes.jsa"
FORMATTED = CACHE / "formatted"
CLUSTER_ID = "c3RyZWFtZm9sZC10ZXN0cw"
NODES_MAX = 3
USERNAME, PASSWORD = "streamfold", "open-sesame"
START_WAIT_S_MAX = 150.0  # three that start at once on a busy machine
STOP_WAIT_S_MAX = 30.0
ARCHIVE_WAIT_S_MAX = 150.0  # what it writes as it leaves takes 8 s where nothing else runs
POLL_S = 0.05

# Small and quick to start. A benchmark wants more heap, and the second compiler.
JVM = ("-Xms128m", "-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Djava.awt.headless=true")


BOTH, VOTER = "broker,controller", "controller"
"""What a node is."""


class Way(NamedTuple):
    """How clients of a site come to a broker: by a port that it tells them, to a port that it listens on."""

    port: int
    broker_port: int


class KafkaFailedError(Exception):
    """Kafka did not do what was asked within its bound; the text carries the end of its log."""


class KafkaCluster:
    """One or three brokers, each a controller too (KRaft), on ports and folders that stay the same over restarts.

    Nodes count from 1. `start` returns when every broker knows of all others; it holds an event loop up that calls it.
    Leaving the context kills what still runs and, if it is left by an exception, prints the end of the logs.

    A *site* is a place that clients reach it from through something of their own: what brokers tell clients who come in
    by a site's ports is to come there again, where somebody is to pass bytes on (`ways`).
    """

    def __init__(self, path: Path, nodes: int = 1, jvm: tuple[str, ...] = JVM, *, sites: int = 0) -> None:
        self.path = path
        self._jvm = jvm
        self.nodes = range(1, nodes + 1)
        self._ways = {(site, node): Way(free_port(), free_port()) for site in range(sites) for node in self.nodes}
        self._ports = {node: (free_port(), free_port()) for node in self.nodes}  # clients', controllers'
        self._guarded_port = free_port()  # of node 1
        self.certificate = path / "certificate.pem"
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._voters: set[int] = set()
        """Of these, those that are no brokers now."""

    @property
    def bootstrap(self) -> str:
        """HOST:PORT of all brokers, as clients want it."""
        return ",".join(f"{HOST}:{port}" for port, _ in self._ports.values())

    @property
    def guarded(self) -> str:
        """HOST:PORT where the first broker speaks TLS (`certificate`) and asks for USERNAME and PASSWORD."""
        return f"{HOST}:{self._guarded_port}"

    @property
    def pids(self) -> list[int]:
        """Of the processes that run."""
        return [process.pid for process in self._processes.values()]

    def port(self, node: int) -> int:
        """Where a node listens for clients."""
        return self._ports[node][0]

    def ways(self, site: int) -> dict[int, Way]:
        """From a site to each node."""
        return {node: way for (at, node), way in self._ways.items() if at == site}

    def env(self, topic: str = "", partitions: int = 4) -> dict[str, str]:
        """What a broker of ours has to be told, in its environment, to live in this cluster: in a topic of its own."""
        return {
            "STREAMFOLD_ENGINE": "kafka",
            "STREAMFOLD_KAFKA_BOOTSTRAP": self.bootstrap,
            "STREAMFOLD_KAFKA_TOPIC": topic or f"test-{uuid4().hex}",
            "STREAMFOLD_KAFKA_PARTITIONS": str(partitions),
        }

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()
        if error_type is not None:
            print("\n".join(f"--- log of Kafka's node {node}\n{self.log_text(node)}" for node in self.nodes))

    def start(self, *nodes: int) -> None:
        """Start these, or all, and wait until they serve. Raises KafkaFailedError; nothing runs then."""
        try:
            for node in nodes or self.nodes:
                self._spawn(node)
            self._wait_until_ready()
        except BaseException:
            self.kill()
            raise

    def start_missing(self) -> None:
        """Start those that do not run: a test that failed may have left some so. Raises KafkaFailedError."""
        missing = set(self.nodes) - self._processes.keys()
        if missing:
            self.start(*missing)

    def start_as_voter(self, node: int) -> None:
        """Start it as a controller alone: it votes, and what it has as a broker is out of reach."""
        self._spawn(node, roles=VOTER)

    def kill(self, *nodes: int) -> None:
        """SIGKILL to these, or all that run."""
        for node in nodes or tuple(self._processes):
            process = self._processes.pop(node)
            self._voters.discard(node)
            process.kill()
            process.wait()

    def stop(self, *nodes: int, within_s: float = STOP_WAIT_S_MAX) -> None:
        """SIGTERM to these, or all: they hand over what they lead."""
        leaving = {node: self._processes.pop(node) for node in nodes or tuple(self._processes)}
        for process in leaving.values():
            process.terminate()
        for node, process in leaving.items():
            try:
                process.wait(within_s)
            except subprocess.TimeoutExpired:
                process.kill()
                raise KafkaFailedError(f"node {node} did not leave\n{self.log_text(node)}") from None

    @contextlib.contextmanager
    def paused(self, *nodes: int) -> Iterator[None]:
        """Freeze these, or all, with SIGSTOP: connections stay, answers do not come."""
        chosen = [self._processes[node] for node in nodes or self.nodes]
        for process in chosen:
            process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            for process in chosen:
                process.send_signal(signal.SIGCONT)

    def log_text(self, node: int) -> str:
        """The end of what this node has printed."""
        with contextlib.suppress(FileNotFoundError):
            return self._log_path(node).read_bytes()[-LOG_SHOWN_BYTES_MAX:].decode(errors="replace")
        return ""

    def _spawn(self, node: int, *options: str, roles: str = BOTH) -> None:
        folder = self.path / f"node-{node}"
        if not folder.exists():
            shutil.copytree(FORMATTED / str(node), folder)
        if not self.certificate.exists():
            self.certificate.write_bytes(self_signed())
        settings = self.path / f"node-{node}.properties"
        settings.write_text(self._properties(node, roles), encoding="ascii")
        if roles == VOTER:
            self._voters.add(node)
        if not options:
            options = ("-Xshare:auto", f"-XX:SharedArchiveFile={ARCHIVE}")
        with self._log_path(node).open("ab") as log:
            self._processes[node] = subprocess.Popen(
                java("kafka.Kafka", str(settings), options=(*self._jvm, *options)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _properties(self, node: int, roles: str = BOTH) -> str:
        """`server.properties`. Internal topics are hardly used; the tests make their own."""
        voters = ",".join(f"{node}@{HOST}:{port}" for node, (_, port) in self._ports.items())
        copies = len(self.nodes)
        in_sync = max(1, copies - 1)
        return f"""
process.roles={roles}
node.id={node}
controller.quorum.voters={voters}
controller.listener.names=CONTROLLER
{self._listeners(node, roles)}
listener.name.guarded.sasl.enabled.mechanisms=PLAIN
listener.name.guarded.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \\
  user_{USERNAME}="{PASSWORD}";
listener.name.guarded.ssl.keystore.type=PEM
listener.name.guarded.ssl.keystore.location={self.certificate}
log.dirs={self.path / f"node-{node}"}
auto.create.topics.enable=false
default.replication.factor={copies}
min.insync.replicas={in_sync}
unclean.leader.election.enable=false
offsets.topic.replication.factor={copies}
offsets.topic.num.partitions=1
transaction.state.log.replication.factor={copies}
transaction.state.log.min.isr={in_sync}
transaction.state.log.num.partitions=1
share.coordinator.state.topic.replication.factor={copies}
share.coordinator.state.topic.min.isr={in_sync}
group.initial.rebalance.delay.ms=0
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
replica.lag.time.max.ms=5000
controller.quorum.election.timeout.ms=1000
controller.quorum.fetch.timeout.ms=2000
num.network.threads=2
num.io.threads=2
num.replica.fetchers=1
log.segment.bytes=67108864
log.cleaner.dedupe.buffer.size=8388608
"""

    def _listeners(self, node: int, roles: str) -> str:
        """Where it listens, and what it says of that to those who come."""
        clients_port, controllers_port = self._ports[node]
        ways = {site: way for (site, at), way in self._ways.items() if at == node}
        protocols = "".join(f",SITE_{site}:PLAINTEXT" for site in ways)
        for_controllers = f"CONTROLLER://{HOST}:{controllers_port}"
        mapped = f"listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,GUARDED:SASL_SSL{protocols}"
        if roles == VOTER:
            return f"listeners={for_controllers}\n{mapped}"
        guarded = f",GUARDED://{HOST}:{self._guarded_port}" if node == 1 else ""
        own = f"PLAINTEXT://{HOST}:{clients_port}{guarded}"
        real = "".join(f",SITE_{site}://{HOST}:{way.broker_port}" for site, way in ways.items())
        told = "".join(f",SITE_{site}://{HOST}:{way.port}" for site, way in ways.items())
        return (
            f"listeners={own},{for_controllers}{real}\nadvertised.listeners={own}{told}\n"
            f"inter.broker.listener.name=PLAINTEXT\n{mapped}"
        )

    def _wait_until_ready(self) -> None:
        with ThreadPoolExecutor(1) as thread:  # of its own: a fixture may be asked for inside an event loop
            thread.submit(self._wait).result()

    def _wait(self) -> None:
        until = time.monotonic() + START_WAIT_S_MAX
        while not asyncio.run(self._is_ready()):
            gone = [node for node, process in self._processes.items() if process.poll() is not None]
            if gone or time.monotonic() > until:
                told = "\n".join(map(self.log_text, gone or self._processes))
                raise KafkaFailedError(f"Kafka is not ready, these nodes have left: {gone}\n{told}")
            time.sleep(POLL_S)  # it asks until all are ready, which nothing announces; in a thread of its own

    async def _is_ready(self) -> bool:
        """Whether every broker that runs knows of all that run."""
        brokers = self._processes.keys() - self._voters
        known = [await _brokers_known(f"{HOST}:{self._ports[node][0]}") for node in brokers]
        return all(count >= len(brokers) for count in known)

    def _log_path(self, node: int) -> Path:
        return self.path / f"node-{node}.log"


async def _brokers_known(address: str) -> int:
    """How many brokers the one at `address` knows of; 0 when it does not answer."""
    try:  # the client would log each time that nobody listens yet
        _, writer = await asyncio.open_connection(HOST, address.rpartition(":")[2])
        writer.close()
        await writer.wait_closed()
    except OSError:
        return 0
    client = AIOKafkaClient(bootstrap_servers=address, request_timeout_ms=2_000)
    try:
        await client.bootstrap()
        return len(client.cluster.brokers())
    except (KafkaError, OSError):
        return 0
    finally:
        await client.close()


def self_signed() -> bytes:
    """A key and a certificate for HOST, as PEM."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kafka")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(HOST))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return key.private_bytes(*form) + certificate.public_bytes(serialization.Encoding.PEM)


def java(main: str, *arguments: str, options: tuple[str, ...] = ()) -> list[str]:
    """The command that runs a class of Kafka's."""
    # Spelled out and in order: an archive of classes is good for exactly one class path.
    jars = sorted(map(str, (CACHE / "libs").glob("*.jar")))
    if not jars:
        raise KafkaFailedError("Kafka is not installed: run deploy/setup --test")
    logging = f"-Dlog4j2.configurationFile={HERE / 'log4j2.properties'}"
    return ["java", *options, logging, "-cp", os.pathsep.join(jars), main, *arguments]


def prepare() -> None:
    """Make what every start uses: folders as `kafka-storage format` leaves them, and the archive of classes."""
    shutil.rmtree(FORMATTED, ignore_errors=True)
    ARCHIVE.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        for node in range(1, NODES_MAX + 1):
            _format(KafkaCluster(path, NODES_MAX), node)
        cluster = KafkaCluster(path, 1)
        cluster._spawn(1, f"-XX:ArchiveClassesAtExit={ARCHIVE}")  # noqa: SLF001 -- ours; nobody else has a use for it
        try:
            cluster._wait_until_ready()  # noqa: SLF001 -- as above
            cluster.stop(within_s=ARCHIVE_WAIT_S_MAX)
        finally:
            cluster.kill()
    if not ARCHIVE.exists():
        raise KafkaFailedError("java has left no archive of classes")


def _format(cluster: KafkaCluster, node: int) -> None:
    settings = cluster.path / f"format-{node}.properties"
    settings.write_text(cluster._properties(node), encoding="ascii")  # noqa: SLF001 -- as above
    subprocess.run(
        java("kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c", str(settings), options=JVM),
        check=True,
        stdout=subprocess.DEVNULL,
    )
    FORMATTED.mkdir(exist_ok=True)
    shutil.move(cluster.path / f"node-{node}", FORMATTED / str(node))


if __name__ == "__main__":
    prepare()
