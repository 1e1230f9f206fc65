"""The producer library: writes answers to a broker as they are generated, each chunk once and in order.

And raw streams: `Producer.streams` has all that the Durable Streams protocol knows of writing.
"""

from consumer.errors import (
    AccessDenied,
    AttemptFailed,
    BadAnswer,
    BadRequest,
    BodyTooLarge,
    BufferFull,
    ChunkTooLarge,
    ClientError,
    Closed,
    Conflict,
    Fenced,
    Finished,
    Gap,
    Gone,
    NotFound,
    RateLimited,
    Refused,
    SpoolCorrupt,
    SpoolError,
    SpoolFull,
    SpoolInUse,
    TooLarge,
    Unavailable,
    Unhealthy,
    ValueFailed,
)
from consumer.transport import HttpTransport, Request, Response, Transport
from producer.coalesce import Merging, has_no_effect
from producer.control import MessageReceipt, SessionReceipt, Stopped
from producer.ending import Ended
from producer.generation import Generation
from producer.health import HealthState
from producer.limits import Limits
from producer.metrics import Duration, Metrics
from producer.outbox import Outbox
from producer.producer import Producer
from producer.protocol import Appended, StreamInfo
from producer.settlement import Settle
from producer.spool import Kept
from producer.spooled import SpooledGeneration
from producer.stream_producer import StreamProducer
from producer.streams import Streams
from producer.uploads import Receipt, UploadMode

__all__ = [
    "AccessDenied",
    "Appended",
    "AttemptFailed",
    "BadAnswer",
    "BadRequest",
    "BodyTooLarge",
    "BufferFull",
    "ChunkTooLarge",
    "ClientError",
    "Closed",
    "Conflict",
    "Duration",
    "Ended",
    "Fenced",
    "Finished",
    "Gap",
    "Generation",
    "Gone",
    "HealthState",
    "HttpTransport",
    "Kept",
    "Limits",
    "Merging",
    "MessageReceipt",
    "Metrics",
    "NotFound",
    "Outbox",
    "Producer",
    "RateLimited",
    "Receipt",
    "Refused",
    "Request",
    "Response",
    "SessionReceipt",
    "Settle",
    "SpoolCorrupt",
    "SpoolError",
    "SpoolFull",
    "SpoolInUse",
    "SpooledGeneration",
    "Stopped",
    "StreamInfo",
    "StreamProducer",
    "Streams",
    "TooLarge",
    "Transport",
    "Unavailable",
    "Unhealthy",
    "UploadMode",
    "ValueFailed",
    "has_no_effect",
]
