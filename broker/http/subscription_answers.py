"""What the subscription API answers: pure functions, an outcome to a response (PROTOCOL.md 6, 7).

Errors have the protocol's own form here: {"error": {"code": …, "message": …}}.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from broker.core.events import timestamp
from broker.core.outcome import Outcome
from broker.core.state import Stream, Subscription
from broker.core.subscription import WEBHOOK, pending_tails, stream_infos
from broker.http.problems import problem, standing_of
from broker.http.response import Header, Response
from broker.http.subscription_requests import RESERVED, Target
from consumer.wire import JSON, Code, Problem

# Where the protocol gives a code another status here than streams have it.
_STATUS: Final = {Code.FENCED: 409, Code.INVALID_OFFSET: 409}


def told(status: int, body: Mapping[str, Any], content_type: str = JSON, kept: bytes = b"no-store") -> Response:
    """A JSON answer."""
    data = msgspec.json.encode(body)
    headers = [
        (b"content-type", content_type.encode()),
        (b"content-length", b"%d" % len(data)),
        (b"cache-control", kept),
    ]
    return Response(status, headers, data)


def error_form(problem: Problem, headers: tuple[Header, ...] = ()) -> Response:
    """A problem in the form that the protocol has for it under `__ds/`."""
    code = Code(problem.code)
    error = {"code": problem.code, "message": problem.detail or problem.title}
    answer = told(_STATUS.get(code, problem.status), {"error": error})
    answer.headers.extend(headers)
    if problem.retry_after_ms is not None:
        answer.headers.append((b"retry-after", b"%d" % -(-problem.retry_after_ms // 1000)))
    return answer


def refuse(code: Code, detail: str = "") -> Response:
    """A refusal that no entry was needed for."""
    return error_form(problem(code, detail))


def refusal(outcome: Outcome) -> Response:
    """What a refused entry tells the client."""
    code, subscription = outcome.code or Code.INTERNAL, outcome.subscription
    if code is not Code.ALREADY_CLAIMED or subscription is None or subscription.wake is None:
        return refuse(code, outcome.detail)
    facts = {"current_holder": subscription.wake.holder, "generation": subscription.generation}
    error = {"code": code.value, "message": standing_of[code].title, **facts}
    return told(standing_of[code].status, {"error": error})


def subscription_answer(
    subscription: Subscription,
    streams: Mapping[str, Stream],
    signing: Mapping[str, str],
    *,
    failing: bool,
    status: int = 200,
) -> Response:
    """PROTOCOL.md 6.3. `signing` says how its webhooks are signed."""
    is_webhook = subscription.delivery == WEBHOOK
    body = {
        "id": subscription.subscription_id,
        "subscription_id": subscription.subscription_id,
        "type": subscription.delivery,
        "pattern": subscription.pattern or None,
        "streams": [
            {"path": info.path, "link_type": info.link_type, "acked_offset": info.acked_offset}
            for info in stream_infos(subscription, streams)
        ],
        "webhook": {"url": subscription.webhook_url, "signing": signing} if is_webhook else None,
        "wake_stream": subscription.wake_stream or None,
        "lease_ttl_ms": subscription.lease_ms,
        "created_at": timestamp(subscription.created_ms),
        "status": "failed" if failing else "active",
        "description": subscription.description,
    }
    return told(status, body)


def claim_answer(subscription: Subscription, streams: Mapping[str, Stream], token: str) -> Response:
    """PROTOCOL.md 7.2: the lease is the worker's."""
    body = {
        "wake_id": "" if subscription.wake is None else subscription.wake.wake_id,
        "generation": subscription.generation,
        "token": token,
        "streams": stream_infos(subscription, streams),
        "lease_ttl_ms": subscription.lease_ms,
    }
    return told(200, body)


def report_answer(target: Target, subscription: Subscription, streams: Mapping[str, Stream]) -> Response:
    """PROTOCOL.md 7.1, 7.2: whether another wake follows."""
    if target.part == "release":
        return Response(204, [])
    next_wake = subscription.wake is None and bool(pending_tails(subscription, streams))
    return told(200, {"ok": True, "next_wake": next_wake})


def keys_answer(jwks: Sequence[Mapping[str, str]]) -> Response:
    """PROTOCOL.md 6.5."""
    return told(200, {"keys": jwks}, "application/jwk-set+json", b"public, max-age=300")


def signing_of(kid: str, base_url: str) -> dict[str, str]:
    """How a receiver can verify what it gets."""
    return {"alg": "ed25519", "kid": kid, "jwks_url": f"{base_url}{RESERVED}/jwks.json"}
