"""How a generation ends: as its writer says, as its context was left, or as somebody else decided. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from consumer.errors import ClientError, Fenced, Refused
from consumer.wire import ENDED, Code, Status
from producer.encoding import encode_chunk

__all__ = ["Ended", "Finish", "described", "end_because", "ended_by", "finish_of"]

ERROR_CHARS_MAX = 2_000
"""Of an exception's text in the log of a session: a message for people, not a dump."""


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """A generation that is over, as whoever settles it is told."""

    session_id: str
    generation_id: str
    """As its application calls it. The same at every call for it: what is settled can be known by it."""
    message_id: str
    status: str
    """`complete`, `failed` or `aborted`."""
    reason: str | None = None
    """`stopped`, `superseded`, `LEASE_EXPIRED`, …; or the code of the error for which it could go no further."""
    is_certain: bool = True
    """False if the broker could not be asked: it may have taken the end all the same, or its lease has ended it."""


def ended_by(
    session_id: str, generation_id: str, message_id: str, *, told: Status, error: ClientError | None
) -> Ended | None:
    """How it ended whose end was `told`, unless it ran into an error; None if it turned out to be another writer's."""
    status, reason, is_certain = str(told), None, True
    if isinstance(error, Fenced):
        status, reason = error.generation_status or Status.ABORTED, error.reason
    elif isinstance(error, Refused):
        if error.code == Code.PAYLOAD_MISMATCH:
            return None
        status, reason = Status.FAILED, error.code
    elif error is not None:
        status, reason, is_certain = Status.FAILED, error.code, False
    return Ended(
        session_id=session_id,
        generation_id=generation_id,
        message_id=message_id,
        status=status,
        reason=reason,
        is_certain=is_certain,
    )


class Finish(msgspec.Struct, frozen=True):
    """The end that a writer tells."""

    status: Status
    body: bytes
    """The request that tells it."""
    txid: str | None = None
    """What it is called; the record of the end carries it."""

    @classmethod
    def decoded(cls, body: bytes) -> Finish:
        """The finish with this body."""
        return cls(msgspec.json.decode(body, type=_Told).status, body)


class _Told(msgspec.Struct):
    """As much of the body as says how it ends."""

    status: Status = Status.COMPLETE


def finish_of(
    status: Status | str,
    *,
    reason: str | None = None,
    error: Any = None,
    usage: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
    txid: str | None = None,
) -> Finish:
    """The finish with what is not None. Raises ValueError if `status` is no end, TypeError if a value is no JSON."""
    end = Status(status)
    if end not in ENDED:
        raise ValueError(f"a generation cannot be finished as {end}")
    facts = {"reason": reason, "error": error, "usage": usage, "metadata": metadata}
    given = {name: fact for name, fact in facts.items() if fact is not None}
    return Finish(end, encode_chunk({"status": end, **given}), txid)


def end_because(error: BaseException | None) -> dict[str, Any]:
    """How a generation ends that its writer left like this, as `finish_of` takes it."""
    if error is None:
        return {"status": Status.COMPLETE}
    if isinstance(error, Exception):
        return {"status": Status.FAILED, "error": described(error)}
    return {"status": Status.ABORTED, "reason": "cancelled"}


def described(error: Exception) -> dict[str, str]:
    """An exception, as readers of the log are told of it."""
    return {"type": type(error).__name__, "message": str(error)[:ERROR_CHARS_MAX]}
