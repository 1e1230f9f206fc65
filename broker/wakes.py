"""What whoever works on a subscription is told of a wake: a webhook's body, or an event on the wake stream. Pure.

PROTOCOL.md 7.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote

import msgspec

from broker import limits
from broker.core.entry import AppendOptions, Entry, Kind, body_digest, encode_options
from broker.core.page import json_page
from broker.core.state import Stream, Subscription, Wake
from broker.core.subscription import StreamInfo, stream_infos
from consumer.wire import JSON


class WebhookBody(msgspec.Struct):
    """What a receiver is sent."""

    subscription_id: str
    wake_id: str
    generation: int
    streams: list[StreamInfo]
    callback_url: str
    callback_token: str


class WakeEvent(msgspec.Struct):
    """What is appended to a wake stream. The same for every attempt, so that one that was appended is a duplicate."""

    type: str
    subscription_id: str
    stream: str
    generation: int
    ts: int


def webhook_body(subscription: Subscription, wake: Wake, streams: Mapping[str, Stream], token: str) -> bytes:
    """What the receiver is sent; `token` is what it reports with."""
    return msgspec.json.encode(
        WebhookBody(
            subscription_id=subscription.subscription_id,
            wake_id=wake.wake_id,
            generation=subscription.generation,
            streams=stream_infos(subscription, streams, at_wake=True),
            callback_url=_callback_url(subscription),
            callback_token=token,
        )
    )


def _callback_url(subscription: Subscription) -> str:
    """Where a receiver reports."""
    return f"{subscription.base_url}__ds/subscriptions/{quote(subscription.subscription_id, safe='')}/callback"


def wake_entry(subscription: Subscription, wake: Wake) -> Entry:
    """The event for the wake stream. Each generation is an epoch of its own with one batch: a retry is a duplicate."""
    event = WakeEvent("wake", subscription.subscription_id, wake.path, subscription.generation, wake.woken_ms)
    page = json_page([msgspec.json.encode(event)])
    return Entry(
        Kind.APPEND,
        subscription.wake_stream,
        producer_id=f"__ds/{subscription.subscription_id}/{subscription.birth:016x}",
        epoch=subscription.generation,
        seq=0,
        digest=body_digest(page.data),
        options=encode_options(AppendOptions(JSON, producers_max=limits.PRODUCERS_MAX)),
        lengths=page.lengths,
        body=page.data,
    )
