"""The producer library: writes answers to a broker as they are generated, each chunk once and in order."""

from producer.control import MessageReceipt, SessionReceipt, Stopped
from producer.errors import (
    AttemptFailed,
    BufferFull,
    ChunkTooLarge,
    Fenced,
    Finished,
    Gap,
    ProducerError,
    Refused,
    Unavailable,
)
from producer.generation import Generation
from producer.limits import Limits
from producer.producer import Producer
from producer.sender import Receipt
from producer.transport import HttpTransport, Request, Response, Transport

__all__ = [
    "AttemptFailed",
    "BufferFull",
    "ChunkTooLarge",
    "Fenced",
    "Finished",
    "Gap",
    "Generation",
    "HttpTransport",
    "Limits",
    "MessageReceipt",
    "Producer",
    "ProducerError",
    "Receipt",
    "Refused",
    "Request",
    "Response",
    "SessionReceipt",
    "Stopped",
    "Transport",
    "Unavailable",
]
