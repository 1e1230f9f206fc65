"""What entries do to a subscription (PROTOCOL.md 6, 7): create, link, attempt, claim, ack, delete.

A subscription is idle, or a wake of it is under way:

    idle ── attempt 0 ──► being delivered ── attempt 1, 2, … ──► being delivered
      │                        │
      │                        └─ ack: delivered, or of a receiver ──► delivered
      ├── claim ──────────────────────────────────────────────────────►   │
      ◄── ack: done, or the lease ran out ────────────────────────────────┘

Its streams may lie in other partitions, so no rule looks at their rows: whoever proposes an entry names the tails that
it saw. Tails only grow, so what was pending still is. An entry that comes too late for what it saw changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from broker.core.entry import (
    ANY,
    AckOptions,
    AttemptOptions,
    ClaimOptions,
    Entry,
    LinkOptions,
    Place,
    SubscriptionOptions,
)
from broker.core.glob import glob
from broker.core.offset import START_TOKEN
from broker.core.outcome import Outcome, Result
from broker.core.state import Changes, Link, Stream, Subscription, Wake, subscription_key
from consumer.wire import Code

WEBHOOK = "webhook"
PULL_WAKE = "pull-wake"

_replace = msgspec.structs.replace
_create_options = msgspec.msgpack.Decoder(SubscriptionOptions).decode
_link_options = msgspec.msgpack.Decoder(LinkOptions).decode
_attempt_options = msgspec.msgpack.Decoder(AttemptOptions).decode
_claim_options = msgspec.msgpack.Decoder(ClaimOptions).decode
_ack_options = msgspec.msgpack.Decoder(AckOptions).decode


# -- what follows from a row -----------------------------------------------------------------------------------------


def matches(subscription: Subscription, path: str) -> bool:
    """Whether the pattern covers `path`. Never the wake stream's own: its wakes would wake it for ever."""
    return bool(subscription.pattern) and path != subscription.wake_stream and glob(subscription.pattern).matches(path)


def acked_in(link: Link, incarnation: int) -> int:
    """The cursor of a link in that life of its stream."""
    return link.acked if link.incarnation == incarnation else 0


def is_pending(link: Link, incarnation: int, tail: int) -> bool:
    """Whether a stream that stands there has something for the subscription."""
    return tail > acked_in(link, incarnation)


def is_leased(subscription: Subscription) -> bool:
    """Whether somebody works on a wake, so that a lease may run out.

    A webhook's from its delivery on: until then the attempts are what keeps it alive. A pull-wake that nobody has
    claimed waits for as long as it takes.
    """
    wake = subscription.wake
    if wake is None:
        return False
    return wake.next_attempt_ms is None if subscription.delivery == WEBHOOK else wake.holder != ""


def pending_tails(subscription: Subscription, streams: Mapping[str, Stream]) -> tuple[Place, ...]:
    """The tails of those of its streams that have something for it. `streams` are those that there are."""
    return tuple(
        (known.path, stream.incarnation, stream.tail)
        for known in subscription.links
        if (stream := streams.get(known.path)) is not None and is_pending(known, stream.incarnation, stream.tail)
    )


class StreamInfo(msgspec.Struct, frozen=True):
    """A stream of a subscription as clients are told of it (PROTOCOL.md 7.1, 7.2)."""

    path: str
    link_type: str
    acked_offset: str
    tail_offset: str
    has_pending: bool


def stream_infos(
    subscription: Subscription, streams: Mapping[str, Stream], *, at_wake: bool = False
) -> list[StreamInfo]:
    """All of its streams; of those that match only, the ones that there are. `at_wake`: with the tails of its wake."""
    return [
        _info(known, streams.get(known.path), at_wake=at_wake)
        for known in subscription.links
        if known.explicit or known.path in streams
    ]


def _info(known: Link, stream: Stream | None, *, at_wake: bool) -> StreamInfo:
    link_type = "explicit" if known.explicit else "glob"
    if stream is None:
        return StreamInfo(known.path, link_type, START_TOKEN, START_TOKEN, has_pending=False)
    acked = acked_in(known, stream.incarnation)
    tail = stream.tail
    if at_wake:
        tail = known.wake_tail if known.incarnation == stream.incarnation else acked
    return StreamInfo(known.path, link_type, stream.offset(acked), stream.offset(tail), has_pending=tail > acked)


# -- the entries -----------------------------------------------------------------------------------------------------


def create(changes: Changes, entry: Entry, _index: int, now_ms: int) -> Outcome:
    """PROTOCOL.md 6.2: create, or confirm that the same subscription is there."""
    known = _row(changes, entry)
    if known is not None:
        if known.digest == entry.digest:
            return Outcome(Result.UNCHANGED, subscription=known)
        return _refused(Code.SUBSCRIPTION_ALREADY_EXISTS, known)
    options = _create_options(entry.options)
    subscription = Subscription(
        birth=entry.nonce,
        subscription_id=entry.path,
        digest=entry.digest,
        created_ms=now_ms,
        delivery=options.delivery,
        lease_ms=options.lease_ms,
        pattern=options.pattern,
        webhook_url=options.webhook_url,
        wake_stream=options.wake_stream,
        description=options.description,
        base_url=options.base_url,
        linked=not options.pattern,
    )
    subscription = _replace(subscription, links=_with_links(subscription, options.streams, explicit=True))
    return _put(changes, entry, subscription, Result.CREATED)


def link(changes: Changes, entry: Entry, _index: int, _now_ms: int) -> Outcome:
    """PROTOCOL.md 6.2, 6.4: streams that join, or leave."""
    subscription = _named(changes, entry)
    if isinstance(subscription, Outcome):
        return subscription
    options = _link_options(entry.options)
    links = _without_links(subscription, frozenset(options.drop), explicit=options.explicit)
    kept = _replace(subscription, links=links)
    links = _with_links(kept, options.streams, explicit=options.explicit)
    if len(links) > max(options.links_max, len(kept.links)):
        return _refused(Code.TOO_MANY_LINKS, subscription, f"at most {options.links_max} streams")
    linked = subscription.linked or options.complete
    if links == subscription.links and linked == subscription.linked:
        return Outcome(Result.UNCHANGED, subscription=subscription)
    return _put(changes, entry, _replace(subscription, links=links, linked=linked))


def attempt(changes: Changes, entry: Entry, index: int, now_ms: int) -> Outcome:
    """PROTOCOL.md 7.1: attempt 0 wakes an idle subscription, any other follows the one before when it is due."""
    subscription = _named(changes, entry)
    if isinstance(subscription, Outcome):
        return subscription
    options = _attempt_options(entry.options)
    due_ms = now_ms + options.delay_ms
    wake = subscription.wake
    if options.attempt == 0:
        pending = _pending(subscription, options.tails)
        if wake is not None or options.generation != subscription.generation + 1 or not pending:
            return Outcome(Result.UNCHANGED, subscription=subscription)
        return _put(changes, entry, _woken(subscription, entry, index, now_ms, pending, next_attempt_ms=due_ms))
    if (
        wake is None
        or wake.next_attempt_ms is None
        or wake.next_attempt_ms > now_ms
        or (options.generation, options.attempt) != (subscription.generation, wake.attempt + 1)
    ):
        return Outcome(Result.UNCHANGED, subscription=subscription)
    wake = _replace(wake, attempt=options.attempt, next_attempt_ms=due_ms)
    return _put(changes, entry, _replace(subscription, wake=wake))


def claim(changes: Changes, entry: Entry, index: int, now_ms: int) -> Outcome:
    """PROTOCOL.md 7.2: the first worker gets the lease.

    A wake that is there is handed out even if nothing is pending any more (its streams may be gone): otherwise it would
    stay in the way of the next one.
    """
    subscription = _named(changes, entry)
    if isinstance(subscription, Outcome):
        return subscription
    if subscription.delivery != PULL_WAKE:
        return _refused(Code.INVALID_REQUEST, subscription, "only a pull-wake subscription is claimed")
    options = _claim_options(entry.options)
    wake = subscription.wake
    if wake is not None and wake.holder:
        return _refused(Code.ALREADY_CLAIMED, subscription)
    if wake is None:
        pending = _pending(subscription, options.tails)
        if not pending:
            return _refused(Code.NO_PENDING_WORK, subscription)
        subscription = _woken(subscription, entry, index, now_ms, pending, holder=options.worker)
    else:
        wake = _replace(wake, holder=options.worker, renewed_index=index, next_attempt_ms=None)
        subscription = _replace(subscription, wake=wake)
    return _put(changes, entry, subscription)


def ack(changes: Changes, entry: Entry, index: int, _now_ms: int) -> Outcome:
    """PROTOCOL.md 7.1 to 7.3: cursors move, the lease is renewed or given up. All of it, or nothing."""
    subscription = _named(changes, entry)
    if isinstance(subscription, Outcome):
        return subscription
    options = _ack_options(entry.options)
    wake = subscription.wake
    if wake is None or (options.generation, options.wake_id) != (subscription.generation, wake.wake_id):
        if options.delivered or options.expires is not None:  # nobody waits to be told
            return Outcome(Result.UNCHANGED, subscription=subscription)
        return _refused(Code.FENCED, subscription, "another wake is current, or none")
    if options.expires is not None:
        if options.expires != wake.renewed_index or not is_leased(subscription):
            return Outcome(Result.UNCHANGED, subscription=subscription)
        return _put(changes, entry, _replace(subscription, wake=None))
    if options.delivered and wake.next_attempt_ms is None:
        return Outcome(Result.UNCHANGED, subscription=subscription)
    links = _acked(subscription, _snapshot(subscription) if options.snapshot else options.acks)
    if links is None:
        return _refused(Code.INVALID_OFFSET, subscription, "not ahead in a stream of this subscription")
    renewed = None if options.done else _replace(wake, renewed_index=index, next_attempt_ms=None)
    return _put(changes, entry, _replace(subscription, wake=renewed, links=links))


def delete(changes: Changes, entry: Entry, _index: int, _now_ms: int) -> Outcome:
    """PROTOCOL.md 6.3. Whatever is under way finds no subscription any more, or one of another birth."""
    subscription = _named(changes, entry)
    if isinstance(subscription, Outcome):
        return subscription
    changes.put(subscription_key(entry.path), None)
    return Outcome(Result.ACCEPTED, subscription=subscription)


# -- rows ------------------------------------------------------------------------------------------------------------


def _row(changes: Changes, entry: Entry) -> Subscription | None:
    row = changes.get(subscription_key(entry.path))
    if row is not None and not isinstance(row, Subscription):
        msg = f"a {type(row).__name__} under the key of a Subscription"
        raise TypeError(msg)
    return row


def _named(changes: Changes, entry: Entry) -> Subscription | Outcome:
    """The subscription that the entry means: of the birth that its proposer saw, where that was told."""
    subscription = _row(changes, entry)
    if subscription is None or entry.incarnation not in (ANY, subscription.birth):
        return _refused(Code.SUBSCRIPTION_NOT_FOUND)
    return subscription


def _put(changes: Changes, entry: Entry, subscription: Subscription, result: Result = Result.ACCEPTED) -> Outcome:
    changes.put(subscription_key(entry.path), subscription)
    return Outcome(result, subscription=subscription)


def _refused(code: Code, subscription: Subscription | None = None, detail: str = "") -> Outcome:
    return Outcome(Result.REFUSED, code, detail, subscription=subscription)


# -- links -----------------------------------------------------------------------------------------------------------


def _with_links(subscription: Subscription, streams: Iterable[Place], *, explicit: bool) -> tuple[Link, ...]:
    """The links, and new ones for `streams`; a link that is there keeps its cursor."""
    links = {known.path: known for known in subscription.links}
    for path, incarnation, position in streams:
        if path == subscription.wake_stream:
            continue
        known = links.get(path)
        if known is None:
            links[path] = Link(path, incarnation, position, explicit)
        elif explicit and not known.explicit:
            links[path] = _replace(known, explicit=True)
    return tuple(links.values())


def _without_links(subscription: Subscription, paths: frozenset[str], *, explicit: bool) -> tuple[Link, ...]:
    """The links without those of `paths`: the explicit ones, of which one that matches stays; or those that match."""
    if not paths:
        return subscription.links
    links: list[Link] = []
    for known in subscription.links:
        if known.path not in paths or (known.explicit and not explicit):
            links.append(known)
        elif explicit and matches(subscription, known.path):
            links.append(_replace(known, explicit=False))
    return tuple(links)


def _pending(subscription: Subscription, tails: Sequence[Place]) -> dict[str, Place]:
    """Those of `tails` that have something for the subscription, in the same order."""
    links = {known.path: known for known in subscription.links}
    return {
        path: (path, incarnation, tail)
        for path, incarnation, tail in tails
        if path in links and is_pending(links[path], incarnation, tail)
    }


def _woken(
    subscription: Subscription,
    entry: Entry,
    index: int,
    now_ms: int,
    pending: dict[str, Place],
    *,
    next_attempt_ms: int | None = None,
    holder: str = "",
) -> Subscription:
    """The subscription with its next wake, which names the tails of all that is pending."""
    links = tuple(
        _at_wake(known, *pending[known.path][1:]) if known.path in pending else _replace(known, wake_tail=known.acked)
        for known in subscription.links
    )
    wake = Wake(
        wake_id=f"w_{entry.nonce:016x}",
        path=next(iter(pending)),
        woken_ms=now_ms,
        renewed_index=index,
        next_attempt_ms=next_attempt_ms,
        holder=holder,
    )
    return _replace(subscription, generation=subscription.generation + 1, wake=wake, links=links)


def _at_wake(known: Link, incarnation: int, tail: int) -> Link:
    return _replace(known, incarnation=incarnation, acked=acked_in(known, incarnation), wake_tail=tail)


def _snapshot(subscription: Subscription) -> list[Place]:
    """What the wake said was there. A cursor that a callback has moved beyond it meanwhile stays."""
    return [(known.path, known.incarnation, max(known.acked, known.wake_tail)) for known in subscription.links]


def _acked(subscription: Subscription, acks: Iterable[Place]) -> tuple[Link, ...] | None:
    """The links with their cursors moved; None for a stream that is not linked, or a cursor that would go back."""
    links = {known.path: known for known in subscription.links}
    for path, incarnation, position in acks:
        known = links.get(path)
        if known is None or position < acked_in(known, incarnation):
            return None
        links[path] = _replace(known, incarnation=incarnation, acked=position)
    return tuple(links.values())
