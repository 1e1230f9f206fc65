"""What requests of the subscription API mean: pure functions, a request to an entry (PROTOCOL.md 6, 7).

PUT    /v1/stream/__ds/subscriptions/{id}                 create, or confirm
GET    /v1/stream/__ds/subscriptions/{id}
DELETE /v1/stream/__ds/subscriptions/{id}
POST   /v1/stream/__ds/subscriptions/{id}/streams         add explicit streams
DELETE /v1/stream/__ds/subscriptions/{id}/streams/{path}  remove one
POST   /v1/stream/__ds/subscriptions/{id}/callback        a webhook's receiver reports
POST   /v1/stream/__ds/subscriptions/{id}/claim           a worker wants the lease
POST   /v1/stream/__ds/subscriptions/{id}/ack             it reports, or goes on
POST   /v1/stream/__ds/subscriptions/{id}/release         it gives up
GET    /v1/stream/__ds/jwks.json                          the keys of webhook signatures
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final, TypeVar

import msgspec

from broker import limits
from broker.core.entry import (
    AckOptions,
    ClaimOptions,
    Entry,
    Kind,
    LinkOptions,
    Place,
    SubscriptionOptions,
    body_digest,
    encode_options,
)
from broker.core.glob import InvalidPattern, glob
from broker.core.offset import InvalidOffset
from broker.core.state import Stream, Subscription
from broker.core.subscription import PULL_WAKE, WEBHOOK
from broker.http.problems import BadRequest
from broker.http.request import Request, decode_path
from broker.http.response import Header
from broker.http.streams import traceparent_of
from consumer.wire import Code

_ID: Final = re.compile(rf"[A-Za-z0-9._~:@+=,-]{{1,{limits.ID_CHARS_MAX}}}", re.ASCII)
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_ACTIONS: Final = ("callback", "claim", "ack", "release")
RESERVED: Final = "__ds"
"""The first segment of what is no stream."""

_CHALLENGE: Final[tuple[Header, ...]] = ((b"www-authenticate", b"Bearer"),)

T = TypeVar("T")


class Target(msgspec.Struct, frozen=True):
    """What a URL under `__ds/` names."""

    subscription_id: str = ""  # "" for the keys
    part: str = ""  # "", "streams", or an action
    stream_path: str = ""


class _Webhook(msgspec.Struct):
    url: str


class _Wanted(msgspec.Struct):
    """The body of a PUT."""

    type: str
    pattern: str | None = None
    streams: list[str] | None = None
    webhook: _Webhook | None = None
    wake_stream: str | None = None
    lease_ttl_ms: int = limits.SUBSCRIPTION_LEASE_MS
    description: str | None = None


class _Streams(msgspec.Struct):
    streams: list[str]


class _Claim(msgspec.Struct):
    worker: str


class Ack(msgspec.Struct):
    """One cursor to move."""

    stream: str
    offset: str


class Report(msgspec.Struct):
    """The body of a callback, an ack or a release."""

    wake_id: str
    generation: int
    acks: list[Ack] = []
    done: bool = False


def target_of(path: str) -> Target:
    """What `path`, the part behind `/v1/stream/__ds/`, names.

    Raises BadRequest: NOT_FOUND where no route has this shape, INVALID_REQUEST for an id that no client should use.
    """
    match path.split("/"):
        case ["jwks.json"]:
            return Target()
        case ["subscriptions", subscription_id]:
            target = Target(subscription_id)
        case ["subscriptions", subscription_id, "streams"]:
            target = Target(subscription_id, "streams")
        case ["subscriptions", subscription_id, "streams", *segments]:
            target = Target(subscription_id, "streams", "/".join(segments))
        case ["subscriptions", subscription_id, action] if action in _ACTIONS:
            target = Target(subscription_id, action)
        case _:
            raise BadRequest(Code.NOT_FOUND)
    if not _ID.fullmatch(target.subscription_id):
        raise BadRequest(
            Code.INVALID_REQUEST, f"an id is 1 to {limits.ID_CHARS_MAX} letters, digits and . _ ~ : @ + = , -"
        )
    return target


def require_method(method: str, target: Target) -> None:
    """Raise BadRequest (METHOD_NOT_ALLOWED) for a method that the target does not take."""
    allowed = _methods_of(target)
    if method not in allowed:
        allow = (b"allow", ", ".join((*allowed, "OPTIONS")).encode())
        raise BadRequest(Code.METHOD_NOT_ALLOWED, headers=(allow,))


def _methods_of(target: Target) -> tuple[str, ...]:
    if not target.subscription_id:
        return ("GET", "HEAD")
    if not target.part:
        return ("GET", "PUT", "DELETE")
    return ("DELETE",) if target.stream_path else ("POST",)


def wanted_of(body: bytes) -> SubscriptionOptions:
    """The configuration that a PUT asks for, normalized, without the tails of its streams and its base URL.

    Raises BadRequest. Whether the webhook's URL may be called is for the caller to find out.
    """
    wanted = _parsed(body, _Wanted)
    if wanted.type not in (WEBHOOK, PULL_WAKE):
        raise BadRequest(Code.INVALID_REQUEST, f"type is {WEBHOOK!r} or {PULL_WAKE!r}")
    if not limits.SUBSCRIPTION_LEASE_MS_MIN <= wanted.lease_ttl_ms <= limits.SUBSCRIPTION_LEASE_MS_MAX:
        raise BadRequest(
            Code.INVALID_REQUEST,
            f"lease_ttl_ms is {limits.SUBSCRIPTION_LEASE_MS_MIN} to {limits.SUBSCRIPTION_LEASE_MS_MAX}",
        )
    pattern = _pattern(wanted.pattern or "")
    paths = paths_of(wanted.streams or [])
    if not pattern and not paths:
        raise BadRequest(Code.INVALID_REQUEST, "pattern or streams is needed")
    webhook_url, wake_stream = "", ""
    if wanted.type == WEBHOOK:
        if wanted.webhook is None:
            raise BadRequest(Code.INVALID_REQUEST, "a webhook subscription needs webhook.url")
        webhook_url = wanted.webhook.url
    else:
        wake_stream = paths_of([wanted.wake_stream or ""])[0]
        if wake_stream in paths:
            raise BadRequest(Code.INVALID_REQUEST, "a subscription would be woken by its own wakes")
    if wanted.description is not None and len(wanted.description) > limits.DESCRIPTION_CHARS_MAX:
        raise BadRequest(Code.INVALID_REQUEST, f"description has more than {limits.DESCRIPTION_CHARS_MAX} characters")
    return SubscriptionOptions(
        delivery=wanted.type,
        lease_ms=wanted.lease_ttl_ms,
        pattern=pattern,
        streams=tuple((path, 0, 0) for path in paths),
        webhook_url=webhook_url,
        wake_stream=wake_stream,
        description=wanted.description,
    )


def create_of(
    request: Request, target: Target, wanted: SubscriptionOptions, tails: Sequence[Place], base_url: str
) -> Entry:
    """The entry that creates or confirms. What is hashed is what the client chose, and no more (PROTOCOL.md 6.2)."""
    options = msgspec.structs.replace(wanted, streams=tuple(tails), base_url=base_url)
    return _entry(Kind.SUBSCRIPTION_CREATE, request, target, options, digest=body_digest(encode_options(wanted)))


def added_of(body: bytes, wake_stream: str) -> list[str]:
    """The paths that are to join. Raises BadRequest."""
    paths = paths_of(_parsed(body, _Streams).streams)
    if not paths:
        raise BadRequest(Code.INVALID_REQUEST, "streams names none")
    if wake_stream in paths:
        raise BadRequest(Code.INVALID_REQUEST, "a subscription would be woken by its own wakes")
    return paths


def link_of(request: Request, target: Target, tails: Sequence[Place]) -> Entry:
    """The entry that adds explicit streams, or removes the one that the URL names."""
    options = LinkOptions(
        tuple(tails),
        explicit=True,
        drop=(target.stream_path,) if target.stream_path else (),
        links_max=limits.LINKS_MAX,
    )
    return _entry(Kind.SUBSCRIPTION_LINK, request, target, options)


def worker_of(body: bytes) -> str:
    """Who claims. Raises BadRequest."""
    worker = _parsed(body, _Claim).worker
    if not worker or len(worker) > limits.ID_CHARS_MAX or _CONTROL.search(worker):
        raise BadRequest(Code.INVALID_REQUEST, f"worker is a name of 1 to {limits.ID_CHARS_MAX} characters")
    return worker


def claim_of(request: Request, target: Target, worker: str, tails: Sequence[Place]) -> Entry:
    """The entry that claims."""
    return _entry(Kind.SUBSCRIPTION_CLAIM, request, target, ClaimOptions(worker, tuple(tails)))


def report_of(target: Target, body: bytes) -> Report:
    """What a receiver or worker says. A release acks nothing, and is done. Raises BadRequest."""
    report = _parsed(body, Report)
    if len(report.acks) > limits.LINKS_MAX:
        raise BadRequest(Code.INVALID_REQUEST, f"more than {limits.LINKS_MAX} acks")
    if target.part == "release":
        return Report(report.wake_id, report.generation, [], done=True)
    return report


def acks_of(report: Report, streams: Mapping[str, Stream]) -> tuple[Place, ...] | None:
    """The cursors that a report moves, as positions; None when one names no stream, or no position that it has."""
    places: list[Place] = []
    for ack in report.acks:
        path = ack.stream.strip("/")
        stream = streams.get(path)
        position = None if stream is None else _position(stream, ack.offset)
        if stream is None or position is None or position > stream.tail:
            return None
        places.append((path, stream.incarnation, position))
    return tuple(places)


def ack_of(
    request: Request, subscription: Subscription, target: Target, report: Report, acks: Sequence[Place]
) -> Entry:
    """The entry that moves cursors, renews the lease, or ends it."""
    options = AckOptions(report.generation, report.wake_id, tuple(acks), report.done)
    return _entry(Kind.SUBSCRIPTION_ACK, request, target, options, birth=subscription.birth)


def delete_of(request: Request, target: Target) -> Entry:
    """The entry that deletes."""
    return _entry(Kind.SUBSCRIPTION_DELETE, request, target, None)


def paths_of(texts: Sequence[str]) -> list[str]:
    """Stream paths as a body names them, each once, in their order by name. Raises BadRequest."""
    if len(texts) > limits.LINKS_MAX:
        raise BadRequest(Code.INVALID_REQUEST, f"more than {limits.LINKS_MAX} streams")
    return sorted({_path(text) for text in texts})


def bearer_of(request: Request) -> str:
    """The token of the Authorization header. Raises BadRequest (TOKEN_INVALID)."""
    scheme, _, token = request.headers.get(b"authorization", b"").decode("latin-1").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise BadRequest(Code.TOKEN_INVALID, "Authorization: Bearer and the token of the wake", headers=_CHALLENGE)
    return token.strip()


def token_refused(code: Code) -> BadRequest:
    """The answer to a token that is not, or no longer, what it should be."""
    return BadRequest(code, headers=_CHALLENGE)


def base_url_of(request: Request, public_url: str) -> str:
    """The URL of the stream root as clients reach it: what the operator says, or what this client used.

    Raises BadRequest for a request that names no host.
    """
    if public_url:
        return f"{public_url.rstrip('/')}/v1/stream/"
    root, marker, _ = request.url.decode("latin-1").partition("/v1/stream/")
    if not root.startswith("http"):
        raise BadRequest(Code.INVALID_REQUEST, "a request with a Host header says where callbacks go")
    return root + marker


def _position(stream: Stream, offset: str) -> int | None:
    try:
        return stream.position(offset)
    except InvalidOffset:
        return None


def _pattern(text: str) -> str:
    pattern = text.strip("/")
    if len(pattern) > limits.PATTERN_CHARS_MAX or _CONTROL.search(pattern):
        raise BadRequest(Code.INVALID_REQUEST, f"pattern is at most {limits.PATTERN_CHARS_MAX} printable characters")
    if pattern:
        try:
            glob(pattern)
        except InvalidPattern as error:
            raise BadRequest(Code.INVALID_REQUEST, f"pattern: {error}") from None
    return pattern


def _path(text: str) -> str:
    """A path as it stands in a body: not percent-encoded, but held to the rules of one in a URL."""
    try:
        path = decode_path(text.strip("/").encode().replace(b"%", b"%25"))
    except BadRequest as error:
        raise BadRequest(Code.INVALID_REQUEST, f"stream path: {error.detail}") from None
    if path.split("/", 1)[0] == RESERVED:
        raise BadRequest(Code.INVALID_REQUEST, f"stream path: {RESERVED} is reserved")
    return path


def _parsed(body: bytes, form: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=form)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(Code.INVALID_REQUEST, str(error)) from None


def _entry(
    kind: Kind,
    request: Request,
    target: Target,
    options: msgspec.Struct | None,
    *,
    digest: bytes = b"",
    birth: int = 0,
) -> Entry:
    return Entry(
        kind,
        target.subscription_id,
        incarnation=birth,
        digest=digest,
        request_id=request.request_id,
        traceparent=traceparent_of(request.headers),
        options=b"" if options is None else encode_options(options),
    )
