"""What a broker and its clients must agree on: header names, error codes, record shapes.

A pure leaf: every package may import it, it imports none of ours. Names from the Durable Streams protocol keep the
protocol's spelling; what Streamfold adds is marked.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import msgspec

# -- media types -------------------------------------------------------------------------------------------------

JSON: Final = "application/json"
NDJSON: Final = "application/x-ndjson"
PROBLEM_JSON: Final = "application/problem+json"
EVENT_STREAM: Final = "text/event-stream"
OCTET_STREAM: Final = "application/octet-stream"

# -- headers, lower case as they travel in ASGI and HTTP/2 (PROTOCOL.md sections 4, 5, 13.2) ----------------------

STREAM_NEXT_OFFSET: Final = "stream-next-offset"
STREAM_CURSOR: Final = "stream-cursor"
STREAM_UP_TO_DATE: Final = "stream-up-to-date"
STREAM_CLOSED: Final = "stream-closed"
STREAM_SEQ: Final = "stream-seq"
STREAM_TTL: Final = "stream-ttl"
STREAM_EXPIRES_AT: Final = "stream-expires-at"
STREAM_SSE_DATA_ENCODING: Final = "stream-sse-data-encoding"
STREAM_FORKED_FROM: Final = "stream-forked-from"
STREAM_FORK_OFFSET: Final = "stream-fork-offset"
STREAM_FORK_SUB_OFFSET: Final = "stream-fork-sub-offset"
PRODUCER_ID: Final = "producer-id"
PRODUCER_EPOCH: Final = "producer-epoch"
PRODUCER_SEQ: Final = "producer-seq"
PRODUCER_EXPECTED_SEQ: Final = "producer-expected-seq"
PRODUCER_RECEIVED_SEQ: Final = "producer-received-seq"

STREAM_DURABILITY: Final = "stream-durability"
"""Streamfold's: what an acknowledgement promises; see `Durability`."""
REQUEST_ID: Final = "x-request-id"
TXID: Final = "txid"
"""Streamfold's: what the writer calls this write; its records carry it, and a reader can wait for it."""

SEQ_MAX: Final = 2**53 - 1
"""Largest epoch or seq (PROTOCOL.md 5.2.1): what a JavaScript number holds exactly."""

OFFSET_START: Final = "-1"
OFFSET_NOW: Final = "now"

SESSION_PATH_PREFIX: Final = "sessions/"
"""The stream of session `s` is `sessions/s`, that is `/v1/stream/sessions/s`."""


class Durability(StrEnum):
    """The value of `Stream-Durability` on a 2xx to a write."""

    FSYNC = "fsync"  # survives a crash of the process and power loss on one machine
    REPLICATED = "replicated"  # acks=all, min ISR
    MEMORY = "memory"  # survives neither: the memory engine
    ACCEPTED = "accepted"  # a 202: not durable yet


class Status(StrEnum):
    """The life of a generation, and of the message that it writes: pending, streaming, then one of the three ends."""

    PENDING = "pending"
    STREAMING = "streaming"
    COMPLETE = "complete"
    FAILED = "failed"
    ABORTED = "aborted"


ENDED: Final = frozenset({Status.COMPLETE, Status.FAILED, Status.ABORTED})


class Reason(StrEnum):
    """Why a generation ended, where its producer did not say so itself."""

    SUPERSEDED = "superseded"  # a newer generation opened in its lane
    STOPPED = "stopped"  # somebody asked for a stop
    LEASE_EXPIRED = "LEASE_EXPIRED"  # its producer went silent
    RESET = "reset"  # the session was reset under it
    FORKED = "forked"  # in the fork of a session in which it was open; there it goes on
    LOST_CHUNKS = "LOST_CHUNKS"  # batches that were accepted did not become durable


class RecordType(StrEnum):
    """The `type` of a session's records: State Protocol change events."""

    GENERATION = "generation"
    CHUNK = "chunk"
    MESSAGE = "message"
    STOP = "stop"
    PRESENCE = "presence"
    APPROVAL = "approval"
    SETTLEMENT = "settlement"


class Code(StrEnum):
    """Stable error codes: the `code` of every problem+json answer. Clients branch on these, never on texts."""

    # the request is wrong (400 and relatives): the same request will never succeed
    INVALID_BODY = "INVALID_BODY"
    INVALID_JSON = "INVALID_JSON"
    EMPTY_BODY = "EMPTY_BODY"
    EMPTY_ARRAY = "EMPTY_ARRAY"
    INVALID_HEADER = "INVALID_HEADER"
    INVALID_PRODUCER = "INVALID_PRODUCER"
    EPOCH_START = "EPOCH_START"
    INVALID_OFFSET = "INVALID_OFFSET"
    INVALID_PARAMETER = "INVALID_PARAMETER"
    INVALID_PATH = "INVALID_PATH"
    INVALID_CONTENT_TYPE = "INVALID_CONTENT_TYPE"
    UNKNOWN_FORMAT = "UNKNOWN_FORMAT"
    INVALID_REQUEST = "INVALID_REQUEST"
    WEBHOOK_URL_REJECTED = "WEBHOOK_URL_REJECTED"
    TOKEN_INVALID = "TOKEN_INVALID"  # noqa: S105 -- a code, no secret
    TOKEN_EXPIRED = "TOKEN_EXPIRED"  # noqa: S105 -- as above
    METHOD_NOT_ALLOWED = "METHOD_NOT_ALLOWED"
    BODY_TOO_LARGE = "BODY_TOO_LARGE"
    UNSUPPORTED_CODING = "UNSUPPORTED_CODING"
    UPGRADE_REQUIRED = "UPGRADE_REQUIRED"
    # what it names is not there
    NOT_FOUND = "NOT_FOUND"
    STREAM_NOT_FOUND = "STREAM_NOT_FOUND"
    SESSION_NOT_FOUND = "SESSION_NOT_FOUND"
    GENERATION_NOT_FOUND = "GENERATION_NOT_FOUND"
    MESSAGE_NOT_FOUND = "MESSAGE_NOT_FOUND"
    SUBSCRIPTION_NOT_FOUND = "SUBSCRIPTION_NOT_FOUND"
    OFFSET_GONE = "OFFSET_GONE"
    STREAM_GONE = "STREAM_GONE"
    # it contradicts what is there
    STREAM_CLOSED = "STREAM_CLOSED"
    STREAM_EXISTS = "STREAM_EXISTS"
    FORK_SOURCE_GONE = "FORK_SOURCE_GONE"
    SESSION_EXISTS = "SESSION_EXISTS"
    CONTENT_TYPE_MISMATCH = "CONTENT_TYPE_MISMATCH"
    STREAM_SEQ_REGRESSION = "STREAM_SEQ_REGRESSION"
    PAYLOAD_MISMATCH = "PAYLOAD_MISMATCH"
    MESSAGE_EXISTS = "MESSAGE_EXISTS"
    SEQ_GAP = "SEQ_GAP"
    LANE_BUSY = "LANE_BUSY"
    GENERATION_MISMATCH = "GENERATION_MISMATCH"
    FORK_TOO_LARGE = "FORK_TOO_LARGE"
    LOST_CHUNKS = "LOST_CHUNKS"
    FENCED = "FENCED"
    SUBSCRIPTION_ALREADY_EXISTS = "SUBSCRIPTION_ALREADY_EXISTS"
    ALREADY_CLAIMED = "ALREADY_CLAIMED"
    NO_PENDING_WORK = "NO_PENDING_WORK"
    # try again later
    TXID_TIMEOUT = "TXID_TIMEOUT"
    TOO_MANY_FORKS = "TOO_MANY_FORKS"
    TOO_MANY_PRODUCERS = "TOO_MANY_PRODUCERS"
    TOO_MANY_GENERATIONS = "TOO_MANY_GENERATIONS"
    TOO_MANY_LANES = "TOO_MANY_LANES"
    TOO_MANY_LINKS = "TOO_MANY_LINKS"
    TOO_MANY_SUBSCRIPTIONS = "TOO_MANY_SUBSCRIPTIONS"
    OVERLOADED = "OVERLOADED"
    UNAVAILABLE = "UNAVAILABLE"
    ENGINE_STOPPED = "ENGINE_STOPPED"
    WRITE_FAILED = "WRITE_FAILED"
    FINISH_FAILED = "FINISH_FAILED"
    INTERNAL = "INTERNAL"


class Problem(msgspec.Struct, rename="camel", omit_defaults=True):
    """An error answer, RFC 9457 `application/problem+json`, with the facts that a client needs to react."""

    status: int
    code: str
    title: str
    detail: str = ""
    request_id: str = ""
    retryable: bool = False
    retry_after_ms: int | None = None
    session_id: str | None = None
    message_id: str | None = None
    generation_id: str | None = None
    expected_seq: int | None = None
    received_seq: int | None = None
    first_seq: int | None = None
    last_seq: int | None = None
    current_epoch: int | None = None
    next_offset: str | None = None
    generation_status: str | None = None
    reason: str | None = None
