"""The topic: made as the journal needs it, and checked, for somebody else may have made it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import msgspec
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, UnknownTopicOrPartitionError, for_code
from aiokafka.helpers import create_ssl_context

from broker import limits
from broker.errors import StartError

log = logging.getLogger("streamfold.kafka")

_MADE_S: Final = 20.0
"""How long a topic may take from being made to having leaders."""
_LOOK_S: Final = 0.1
_CHECKED_S: Final = 3 * _MADE_S
"""How long all of it may take, with a Kafka that answers, but late."""

_BYTES_MAX: Final = "max.message.bytes"
_WANTED: Final = {
    "cleanup.policy": "delete",  # compaction would leave gaps
    "retention.ms": "-1",  # what no store has yet must not go by age, or …
    "retention.bytes": "-1",  # … size
    "message.timestamp.type": "LogAppendTime",  # one clock for all nodes
    "unclean.leader.election.enable": "false",
    _BYTES_MAX: str(limits.RECORD_BYTES_MAX + limits.KIB),  # with what Kafka puts around a record
}
_SEGMENT_BYTES: Final = 256 * limits.MIB
_MAJORITY: Final = 2
"""Of three copies: as many must have a record before it is acknowledged."""


class KafkaTopic(msgspec.Struct, frozen=True):
    """Which topic, how to reach it, and how to make it if it is missing."""

    bootstrap: str  # HOST:PORT, several separated by commas
    name: str
    partitions: int = 1
    tls: bool = False
    ca: str = ""  # file of the authority that signed the brokers' certificates; "": those that the system trusts
    username: str = ""  # "": Kafka does not ask who is asking
    password: str = ""
    mechanism: str = "SCRAM-SHA-512"

    def access(self) -> dict[str, Any]:
        """What every client of aiokafka's has to be told to get in. Raises StartError."""
        options: dict[str, Any] = {"bootstrap_servers": self.bootstrap}
        options["security_protocol"] = ("SASL_" if self.username else "") + ("SSL" if self.tls else "PLAINTEXT")
        if self.tls:
            try:
                options["ssl_context"] = create_ssl_context(cafile=self.ca or None)
            except OSError as error:
                raise StartError(f"{self.ca}: {error}", "--kafka-ca names a file of certificates (PEM)") from error
        if self.username:
            options["sasl_mechanism"] = self.mechanism
            options["sasl_plain_username"] = self.username
            options["sasl_plain_password"] = self.password
        return options


async def ensure_topic(topic: KafkaTopic) -> None:
    """Make the topic if it is missing, and check it.

    Raises StartError for one that would lose or reorder what it was given, KafkaError when Kafka does not answer.
    """
    try:
        async with administered(topic, _CHECKED_S) as admin:
            if (
                topic.name not in await admin.list_topics()
            ):  # asked for by its name it might be made with other settings
                await _make(admin, topic)
            copies = await _copies(admin, topic)
            wrong = _wrong(await _settings(admin, topic.name), copies)
    except TimeoutError:
        raise StartError(
            f"Kafka at {topic.bootstrap} has not told all of topic {topic.name} within {_CHECKED_S:g} s",
            "is it overloaded, or has it too few brokers?",
        ) from None
    if wrong:
        raise StartError(f"topic {topic.name} may lose entries: {'; '.join(wrong)}", "set it right, or name another")
    if topic.username and not topic.tls:
        log.warning("the password for Kafka is sent unencrypted: see --kafka-tls")
    if copies < _MAJORITY:
        log.warning("topic %s has one copy of everything: what is acknowledged is lost with that broker", topic.name)


@asynccontextmanager
async def administered(topic: KafkaTopic, answer_s_max: float) -> AsyncIterator[Any]:
    """A client that makes, describes and trims topics, for so long. Raises KafkaError, OSError and TimeoutError."""
    admin = AIOKafkaAdminClient(
        **topic.access(),
        request_timeout_ms=limits.KAFKA_REQUEST_MS,
        metadata_max_age_ms=limits.KAFKA_METADATA_MS,
    )
    try:
        async with asyncio.timeout(answer_s_max):
            await admin.start()
            yield admin
    finally:
        with suppress(TimeoutError):
            async with asyncio.timeout(limits.KAFKA_REQUEST_MS / 1000):
                await admin.close()


async def _make(admin: Any, topic: KafkaTopic) -> None:
    """Make it, on as many brokers as there are, up to KAFKA_REPLICAS. Raises StartError."""
    brokers = len((await admin.describe_cluster())["brokers"])
    replicas = min(limits.KAFKA_REPLICAS, brokers)
    settings = {**_WANTED, "min.insync.replicas": str(max(1, replicas - 1)), "segment.bytes": str(_SEGMENT_BYTES)}
    made = await admin.create_topics([NewTopic(topic.name, topic.partitions, replicas, topic_configs=settings)])
    for name, code, *_ in made.topic_errors:
        error = for_code(code)
        if code and error is not TopicAlreadyExistsError:  # another node was first
            raise StartError(f"topic {name} cannot be made: {error.__name__}", "make it by hand, or allow it")
    log.info("made topic %s with %d copies of everything", topic.name, replicas)


async def _copies(admin: Any, topic: KafkaTopic) -> int:
    """How many copies of everything are kept, once all partitions can be written. Raises StartError."""
    try:
        async with asyncio.timeout(_MADE_S):
            while True:
                (described,) = await admin.describe_topics([topic.name])
                partitions = described["partitions"]
                if partitions and not described["error_code"] and all(part["leader"] >= 0 for part in partitions):
                    break
                await asyncio.sleep(_LOOK_S)
    except TimeoutError:
        raise StartError(
            f"topic {topic.name} has partitions without a leader", "are enough brokers of Kafka running?"
        ) from None
    if len(partitions) != topic.partitions:
        raise StartError(
            f"topic {topic.name} has {len(partitions)} partitions, not {topic.partitions}",
            "their number is chosen once, with the topic: see --kafka-partitions",
        )
    return min(len(part["replicas"]) for part in partitions)


async def _settings(admin: Any, name: str) -> dict[str, str]:
    """Its settings, from whichever broker is asked: one that has not heard of a new topic yet is asked again."""
    until = asyncio.get_running_loop().time() + _MADE_S
    while True:
        (answer,) = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name)])
        ((code, message, _, _, entries, *_),) = answer.resources
        if not code:
            return {entry[0]: entry[1] for entry in entries}
        if for_code(code) is not UnknownTopicOrPartitionError or asyncio.get_running_loop().time() > until:
            raise KafkaError(f"the settings of topic {name} cannot be read: {message or for_code(code).__name__}")
        await asyncio.sleep(_LOOK_S)


def _wrong(settings: dict[str, str], copies: int) -> list[str]:
    """The settings under which something acknowledged could go missing."""
    wrong = [
        f"{name}={settings.get(name)}, not {wanted}"
        for name, wanted in _WANTED.items()
        if name != _BYTES_MAX and settings.get(name) != wanted
    ]
    if int(settings[_BYTES_MAX]) < int(_WANTED[_BYTES_MAX]):
        wrong.append(f"{_BYTES_MAX}={settings[_BYTES_MAX]}, below {_WANTED[_BYTES_MAX]}")
    if copies >= _MAJORITY > int(settings["min.insync.replicas"]):
        wrong.append(f"min.insync.replicas={settings['min.insync.replicas']}, below {_MAJORITY}")
    return wrong
