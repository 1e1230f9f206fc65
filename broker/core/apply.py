"""`apply`: the one place where an entry meets the state. Synchronous, pure, deterministic.

The same entries at the same indexes and times make the same rows, records and outcomes, on every engine, on every node,
after every restart. Nothing else decides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from broker.core import admission, fork, generation, session, stream, subscription
from broker.core.entry import Entry, Kind, ProducerForgetOptions
from broker.core.outcome import Outcome, Result
from broker.core.state import Changes, Key, Row, producer_key, stream_key, subscription_key

_of_stream: dict[int, Callable[[Changes, Entry, int], Outcome]] = {
    Kind.CREATE: stream.create,
    Kind.APPEND: stream.append,
    Kind.CLOSE: stream.append,
    Kind.DELETE: stream.delete,
    Kind.EXPIRE: stream.expire,
    Kind.TOUCH: stream.touch,
    Kind.PRODUCER_FORGET: stream.forget_producer,
    Kind.FORK_REF: fork.ref,
    Kind.FORK: fork.fork,
    Kind.FORK_UNREF: fork.unref,
}
_of_session: dict[int, Callable[[Changes, Entry, int, int], Outcome]] = {
    Kind.SESSION_CREATE: session.create,
    Kind.SESSION_DELETE: session.delete,
    Kind.MESSAGE: session.add_message,
    Kind.RECORD: session.add_record,
    Kind.SESSION_RESET: session.reset,
    Kind.SESSION_FORK: session.fork,
    Kind.SESSION_STOP: session.stop,
    Kind.SESSION_EXPIRE: session.expire,
    Kind.IMPORT: session.import_records,
    Kind.GENERATION_OPEN: generation.open_ahead,
    Kind.CHUNKS: generation.write,
    Kind.FINISH: generation.write,
    Kind.STOP: generation.stop,
    Kind.HEARTBEAT: generation.heartbeat,
    Kind.LEASE_EXPIRE: generation.expire_lease,
}
_of_subscription: dict[int, Callable[[Changes, Entry, int, int], Outcome]] = {
    Kind.SUBSCRIPTION_CREATE: subscription.create,
    Kind.SUBSCRIPTION_LINK: subscription.link,
    Kind.SUBSCRIPTION_ATTEMPT: subscription.attempt,
    Kind.SUBSCRIPTION_CLAIM: subscription.claim,
    Kind.SUBSCRIPTION_ACK: subscription.ack,
    Kind.SUBSCRIPTION_DELETE: subscription.delete,
}
_APPENDS = frozenset({Kind.APPEND, Kind.CLOSE})
_WRITES = frozenset({Kind.CHUNKS, Kind.FINISH})


def keys(entry: Entry) -> list[Key]:
    """Every row that the entry may need, completely; from the entry alone, so that they can be loaded ahead."""
    if entry.kind in _of_session:
        return session.keys(entry)
    if entry.kind in _of_subscription:
        return [subscription_key(entry.path)]
    if entry.kind not in _of_stream:
        return []
    found = [stream_key(entry.path)]
    if entry.producer_id:
        found.append(producer_key(entry.path, entry.producer_id))
    elif entry.kind == Kind.PRODUCER_FORGET:
        options = msgspec.msgpack.decode(entry.options, type=ProducerForgetOptions)
        found.append(producer_key(entry.path, options.producer_id))
    return found


def apply(rows: Mapping[Key, Row | None], entry: Entry, index: int, now_ms: int) -> tuple[Outcome, Changes]:
    """What `entry` does to `rows`, which hold all of `keys(entry)`, at `index` and partition time `now_ms`.

    Nothing is changed here: the caller installs `Changes`, whole. Any exception is a bug, not a refusal; the caller
    must stop the partition, because another node may not have raised it.
    """
    changes = Changes(rows)
    of_session = _of_session.get(entry.kind)
    if of_session is not None:
        return of_session(changes, entry, index, now_ms), changes
    of_stream = _of_stream.get(entry.kind)
    if of_stream is not None:
        return of_stream(changes, entry, now_ms), changes
    of_subscription = _of_subscription.get(entry.kind)
    if of_subscription is not None:
        return of_subscription(changes, entry, index, now_ms), changes
    if entry.kind == Kind.NOOP:
        return Outcome(Result.ACCEPTED), changes
    msg = f"entry kind {entry.kind} is reserved; this program cannot apply it"
    raise ValueError(msg)


def unchanging(rows: Mapping[Key, Row | None], entry: Entry, index: int, now_ms: int) -> Outcome | None:
    """What `apply` would tell of `entry`, if that changes nothing; None where it would change something.

    Entries that come in masses are only judged: most of them would change something, and what is not asked for.
    """
    changes = Changes(rows)
    judged: object
    if entry.kind in _APPENDS:
        judged = stream.judge(changes, entry, now_ms)
    elif entry.kind in _WRITES:
        judged = admission.judge(changes, entry, index, now_ms)
    else:
        outcome, changes = apply(rows, entry, index, now_ms)
        judged = None if outcome.changed else outcome
    return judged if isinstance(judged, Outcome) and not changes.puts else None
