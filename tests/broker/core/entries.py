"""Entries as the edge makes them, with a test's defaults: one function for each kind."""

from __future__ import annotations

import msgspec

from broker.core.entry import (
    ANY,
    NEXT_SEQ,
    AckOptions,
    AppendOptions,
    AttemptOptions,
    ClaimOptions,
    CreateOptions,
    Entry,
    ForkOptions,
    ForkRefOptions,
    ForkUnrefOptions,
    GenerationOptions,
    ImportOptions,
    InheritedGeneration,
    InheritedMessage,
    Kind,
    LeaseOptions,
    LinkOptions,
    MessageOptions,
    Place,
    ProducerForgetOptions,
    RecordOptions,
    ResetOptions,
    SessionExpireOptions,
    SessionForkOptions,
    SessionOptions,
    SessionStopOptions,
    StopOptions,
    SubscriptionOptions,
    body_digest,
    encode_options,
)
from broker.core.page import json_page
from consumer.wire import JSON, OCTET_STREAM

PATH = "a/b"
SESSION = "sessions/s1"
SUBSCRIPTION = "sub-1"

Triple = tuple[str, int, int]
"""Producer id, epoch, seq."""


def _packed(records: tuple[bytes, ...]) -> tuple[bytes, bytes]:
    if not records:
        return b"", b""
    page = json_page(records)
    return page.lengths, page.data


def noop() -> Entry:
    return Entry(Kind.NOOP, "")


def create(
    *records: bytes,
    path: str = PATH,
    content_type: str = JSON,
    ttl_s: int | None = None,
    expires_at_ms: int | None = None,
    closed: bool = False,
    nonce: int = 0,
) -> Entry:
    options = CreateOptions(content_type, ttl_s, None if expires_at_ms is None else "then", expires_at_ms, closed)
    lengths, body = _packed(records)
    return Entry(Kind.CREATE, path, nonce=nonce, options=encode_options(options), lengths=lengths, body=body)


def append(
    *records: bytes,
    path: str = PATH,
    content_type: str = JSON,
    producer: Triple | None = None,
    stream_seq: str | None = None,
    closes: bool = False,
    producers_max: int = 10_000,
    incarnation: int = ANY,
) -> Entry:
    lengths, body = _packed(records)
    options = AppendOptions(content_type, stream_seq, closes, producers_max)
    return _append(Kind.APPEND, path, options, producer, incarnation, lengths, body)


def append_bytes(
    data: bytes, *, path: str = PATH, content_type: str = OCTET_STREAM, producer: Triple | None = None
) -> Entry:
    return _append(Kind.APPEND, path, AppendOptions(content_type), producer, ANY, b"", data)


def close(*, path: str = PATH, producer: Triple | None = None, stream_seq: str | None = None) -> Entry:
    return _append(Kind.CLOSE, path, AppendOptions("", stream_seq, closes=True), producer, ANY, b"", b"")


def _append(
    kind: Kind,
    path: str,
    options: AppendOptions,
    producer: Triple | None,
    incarnation: int,
    lengths: bytes,
    body: bytes,
) -> Entry:
    producer_id, epoch, seq = producer or ("", 0, 0)
    return Entry(
        kind,
        path,
        incarnation=incarnation,
        producer_id=producer_id,
        epoch=epoch,
        seq=seq,
        digest=body_digest(body) if producer else b"",
        options=encode_options(options),
        lengths=lengths,
        body=body,
    )


def delete(*, path: str = PATH, incarnation: int = ANY) -> Entry:
    return Entry(Kind.DELETE, path, incarnation=incarnation)


def expire(*, path: str = PATH) -> Entry:
    return Entry(Kind.EXPIRE, path)


def touch(*, path: str = PATH, incarnation: int = ANY) -> Entry:
    return Entry(Kind.TOUCH, path, incarnation=incarnation)


def forget(producer_id: str, idle_since_ms: int, *, path: str = PATH) -> Entry:
    options = ProducerForgetOptions(producer_id, idle_since_ms)
    return Entry(Kind.PRODUCER_FORGET, path, options=encode_options(options))


def fork_ref(
    child_path: str,
    child: int,
    *,
    path: str = PATH,
    deadline_ms: int = 2**50,
    offset: str = "",
    sub_offset: int = 0,
    content_type: str = "",
    forks_max: int = 1_000,
) -> Entry:
    """Note at the source that the life `child` of `child_path` is about to come."""
    options = ForkRefOptions(child_path, deadline_ms, offset, sub_offset, content_type, forks_max)
    return Entry(Kind.FORK_REF, path, nonce=child, options=encode_options(options))


def fork(
    *records: bytes,
    path: str,
    child: int,
    lineage: tuple[tuple[str, int, int], ...],
    deadline_ms: int = 2**50,
    offset: str = "",
    ttl_s: int | None = None,
    source_path: str = PATH,
) -> Entry:
    """Create the child, with records of its own where there are some."""
    lengths, body = _packed(records)
    options = ForkOptions(
        source_path, lineage[-1][1] if lineage else 0, lineage, deadline_ms, offset, content_type=JSON, ttl_s=ttl_s
    )
    return Entry(Kind.FORK, path, nonce=child, options=encode_options(options), lengths=lengths, body=body)


def fork_unref(child_path: str, child: int, *, path: str = PATH, incarnation: int = ANY) -> Entry:
    """Take the note away."""
    options = ForkUnrefOptions(child_path, child)
    return Entry(Kind.FORK_UNREF, path, incarnation=incarnation, options=encode_options(options))


def create_session(
    message_id: str = "", body: bytes = b"", *, path: str = SESSION, metadata: bytes = b"", nonce: int = 0
) -> Entry:
    options = SessionOptions(metadata, message_id, body_digest(metadata) if metadata else b"")
    digest = body_digest(body) if message_id else b""
    return Entry(Kind.SESSION_CREATE, path, nonce=nonce, digest=digest, options=encode_options(options), body=body)


def delete_session(*, path: str = SESSION) -> Entry:
    return Entry(Kind.SESSION_DELETE, path)


def expire_session(tail: int = 0, unused_ms: int = 1_000, *, path: str = SESSION, incarnation: int = ANY) -> Entry:
    options = encode_options(SessionExpireOptions(tail, unused_ms))
    return Entry(Kind.SESSION_EXPIRE, path, incarnation=incarnation, options=options)


def message(message_id: str, body: bytes = b'{"role":"user"}', *, path: str = SESSION, txid: str = "") -> Entry:
    options = encode_options(MessageOptions(message_id))
    return Entry(Kind.MESSAGE, path, digest=body_digest(body), txid=txid, options=options, body=body)


def chunks(  # noqa: PLR0913 -- keyword-only facts of one request
    generation_id: str,
    seq: int,
    *bodies: bytes,
    path: str = SESSION,
    message_id: str = "",
    lane: str = "main",
    actor_id: str = "",
    txid: str = "",
    generations_max: int = 64,
    lanes_max: int = 256,
    continues: str = "",
    yields: bool = False,
    frees_lanes: bool = False,
) -> Entry:
    """A batch of chunks; the message has the id of its generation unless told otherwise."""
    lengths, body = _packed(bodies)
    options = GenerationOptions(
        generation_id,
        message_id or ("" if continues or seq == NEXT_SEQ else generation_id),
        "" if continues and lane == "main" else lane,
        "" if continues else "text",
        actor_id=actor_id,
        generations_max=generations_max,
        lanes_max=lanes_max,
        continues=continues,
        yields=yields,
        frees_lanes=frees_lanes,
    )
    return Entry(
        Kind.CHUNKS,
        path,
        seq=seq,
        digest=body_digest(body),
        txid=txid,
        options=encode_options(options),
        lengths=lengths,
        body=body,
    )


def finish(
    generation_id: str,
    seq: int,
    *,
    path: str = SESSION,
    status: str = "complete",
    reason: str = "",
    error: bytes = b"",
    usage: bytes = b"",
    metadata: bytes = b"",
) -> Entry:
    options = GenerationOptions(
        generation_id,
        generation_id,
        format="text",
        status=status,
        reason=reason,
        error=error,
        usage=usage,
        metadata=metadata,
    )
    digest = body_digest(status.encode() + reason.encode() + error + usage + metadata)
    if seq == NEXT_SEQ:
        options = msgspec.structs.replace(options, message_id="")
    return Entry(Kind.FINISH, path, seq=seq, digest=digest, options=encode_options(options))


def open_generation(  # noqa: PLR0913 -- keyword-only facts of one request
    generation_id: str,
    *,
    path: str = SESSION,
    message_id: str = "",
    lane: str = "main",
    chunk_format: str = "text",
    metadata: bytes = b"",
    continues: str = "",
    yields: bool = False,
    txid: str = "",
) -> Entry:
    """A generation ahead of its first batch; with `continues`, lane and format are those of what it continues."""
    options = GenerationOptions(
        generation_id,
        message_id,
        "" if continues and lane == "main" else lane,
        "" if continues and chunk_format == "text" else chunk_format,
        metadata=metadata,
        continues=continues,
        yields=yields,
        frees_lanes=True,
    )
    return Entry(Kind.GENERATION_OPEN, path, txid=txid, options=encode_options(options))


def reset_session(*, path: str = SESSION, reason: str = "", nonce: int = 0) -> Entry:
    return Entry(Kind.SESSION_RESET, path, nonce=nonce, options=encode_options(ResetOptions(reason)))


def fork_session(  # noqa: PLR0913 -- keyword-only facts of one request
    child: int,
    *,
    path: str,
    source_path: str = SESSION,
    lineage: tuple[tuple[str, int, int], ...] = (),
    messages: tuple[InheritedMessage, ...] = (),
    generations: tuple[InheritedGeneration, ...] = (),
    selector: str = "",
    deadline_ms: int = 2**50,
    metadata: bytes = b"",
) -> Entry:
    """Make the child that its source has noted; without a lineage, only confirm it."""
    options = SessionForkOptions(
        source_path,
        lineage[-1][1] if lineage else 0,
        lineage,
        deadline_ms,
        selector,
        messages,
        generations,
        metadata,
        body_digest(metadata) if metadata else b"",
    )
    return Entry(Kind.SESSION_FORK, path, nonce=child, options=encode_options(options))


def import_session(  # noqa: PLR0913 -- keyword-only facts of one request
    child: int,
    *,
    path: str = SESSION,
    source_path: str = PATH,
    lineage: tuple[tuple[str, int, int], ...] = (),
    messages: tuple[InheritedMessage, ...] = (),
    generations: tuple[InheritedGeneration, ...] = (),
    deadline_ms: int = 2**50,
    metadata: bytes = b"",
    created_ms: int = 0,
) -> Entry:
    """Make a session of the records of a stream that has noted it; without a lineage, only confirm it."""
    options = ImportOptions(
        source_path,
        lineage[-1][1] if lineage else 0,
        lineage,
        deadline_ms,
        "",
        messages,
        generations,
        metadata,
        body_digest(metadata) if metadata else b"",
        created_ms,
    )
    return Entry(Kind.IMPORT, path, nonce=child, options=encode_options(options))


def stop_session(lane: str = "", *, path: str = SESSION, requested_by: str = "", reason: str = "") -> Entry:
    """Stop what is open in a lane, or in all."""
    return Entry(Kind.SESSION_STOP, path, options=encode_options(SessionStopOptions(lane, requested_by, reason)))


def record(key: str, value: bytes = b"{}", *, path: str = SESSION, record_type: str = "presence") -> Entry:
    """An upsert that no message folds from."""
    return Entry(Kind.RECORD, path, options=encode_options(RecordOptions(record_type, key)), body=value)


def stop(generation_id: str, *, path: str = SESSION, requested_by: str = "", reason: str = "", txid: str = "") -> Entry:
    options = StopOptions(generation_id, requested_by, reason)
    return Entry(Kind.STOP, path, txid=txid, options=encode_options(options))


def heartbeat(generation_id: str, *, path: str = SESSION) -> Entry:
    return Entry(Kind.HEARTBEAT, path, options=encode_options(StopOptions(generation_id)))


def expire_lease(generation_id: str, fence: int, renewed_index: int, *, path: str = SESSION) -> Entry:
    options = LeaseOptions(generation_id, fence, renewed_index)
    return Entry(Kind.LEASE_EXPIRE, path, options=encode_options(options))


def subscribe(
    *streams: Place,
    subscription: str = SUBSCRIPTION,
    wake_stream: str = "",
    pattern: str = "",
    lease_ms: int = 30_000,
    description: str | None = None,
    nonce: int = 0,
) -> Entry:
    """A pull-wake subscription if it has a wake stream, else one by webhook; `streams` are explicit."""
    options = SubscriptionOptions(
        "pull-wake" if wake_stream else "webhook",
        lease_ms,
        pattern,
        streams,
        "" if wake_stream else "https://worker.example/hooks",
        wake_stream,
        description,
        "https://broker.example/v1/stream/",
    )
    packed = encode_options(options)
    return Entry(Kind.SUBSCRIPTION_CREATE, subscription, nonce=nonce, digest=body_digest(packed), options=packed)


def link(
    *streams: Place,
    subscription: str = SUBSCRIPTION,
    explicit: bool = False,
    drop: tuple[str, ...] = (),
    links_max: int = 1_000,
    complete: bool = False,
) -> Entry:
    """Streams join a subscription, or leave it."""
    options = LinkOptions(streams, explicit, drop, links_max, complete)
    return Entry(Kind.SUBSCRIPTION_LINK, subscription, options=encode_options(options))


def attempt(
    generation: int,
    number: int,
    *tails: Place,
    subscription: str = SUBSCRIPTION,
    delay_ms: int = 1_000,
    nonce: int = 0,
    birth: int = ANY,
) -> Entry:
    """An attempt to deliver a wake; number 0 makes it."""
    options = encode_options(AttemptOptions(generation, number, delay_ms, tails))
    return Entry(Kind.SUBSCRIPTION_ATTEMPT, subscription, incarnation=birth, nonce=nonce, options=options)


def claim(worker: str, *tails: Place, subscription: str = SUBSCRIPTION, nonce: int = 0) -> Entry:
    """A worker wants the lease."""
    return Entry(
        Kind.SUBSCRIPTION_CLAIM, subscription, nonce=nonce, options=encode_options(ClaimOptions(worker, tails))
    )


def ack(
    generation: int,
    wake_id: str,
    *acks: Place,
    subscription: str = SUBSCRIPTION,
    done: bool = False,
    snapshot: bool = False,
    delivered: bool = False,
    expires: int | None = None,
    birth: int = ANY,
) -> Entry:
    """A cursor moves, a lease is renewed or ends."""
    options = AckOptions(generation, wake_id, acks, done, snapshot, delivered, expires)
    return Entry(Kind.SUBSCRIPTION_ACK, subscription, incarnation=birth, options=encode_options(options))


def unsubscribe(*, subscription: str = SUBSCRIPTION, birth: int = ANY) -> Entry:
    return Entry(Kind.SUBSCRIPTION_DELETE, subscription, incarnation=birth)
