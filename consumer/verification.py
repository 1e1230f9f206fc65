"""Whether a broker's messages are what its log folds to: the log is folded here anew, and the two are compared."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any, Final

import msgspec

from consumer.address import with_query
from consumer.plain import JSON, decode, encode
from consumer.reader import Reader
from consumer.session import SessionFold
from consumer.transport import Request
from consumer.wire import OFFSET_START, SESSION_PATH_PREFIX

__all__ = ["Verdict", "session_ids", "verify"]

DIFFERENCES_MAX: Final = 100
"""Told of one session: enough to see what is wrong with it."""


class Verdict(msgspec.Struct, rename="camel", frozen=True):
    """What was compared, and where it differs: nowhere, if all is well."""

    session_id: str
    offset: str
    """Where both stand."""
    records: int
    messages: int
    differences: list[str]


async def session_ids(reader: Reader) -> AsyncGenerator[str, None]:
    """All sessions of the broker; one that comes or moves meanwhile may be missing, or come twice."""
    after: str | None = None
    while True:
        page = await reader.client.ask(Request("GET", with_query("/v1/sessions", {"after": after})), _Page)
        for session in page.sessions:
            yield session.session_id
        after = page.next
        if after is None:
            return


class _Listed(msgspec.Struct, rename="camel"):
    session_id: str


class _Page(msgspec.Struct):
    sessions: list[_Listed]
    next: str | None = None


async def verify(reader: Reader, session_id: str) -> Verdict:
    """Fold a session's log up to its present end, and compare with what the broker tells of that offset.

    The session may be written to meanwhile. Holds one page of the log and the messages in memory. Raises what
    `Reader.follow` and `Reader.messages` raise: Gone and NotFound when the session was reset or deleted meanwhile.
    """
    fold, offset, records = SessionFold(), OFFSET_START, 0
    async with aclosing(reader.texts(SESSION_PATH_PREFIX + session_id)) as pages:
        async for page in pages:
            for record in page.records:
                fold.add(record)
            offset, records = page.next_offset, records + len(page.records)
    told = await reader.messages(session_id, at=offset)
    differences = [*_malformed(fold), *_differences(fold.items(), told.messages)]
    return Verdict(session_id, offset, records, len(told.messages), differences[:DIFFERENCES_MAX])


def _malformed(fold: SessionFold) -> list[str]:
    return [f"{fold.malformed} records contradict the log before them"] if fold.malformed else []


def _differences(folded: list[dict[str, Any]], told: list[dict[str, Any]]) -> Iterator[str]:
    expected = {str(item["id"]): decode(encode(item)) for item in folded}
    got: dict[str, JSON] = {str(item.get("id")): item for item in told}
    for message_id in [*expected, *(known for known in got if known not in expected)]:
        if message_id not in got:
            yield f"message {message_id}: the broker does not tell it"
        elif message_id not in expected:
            yield f"message {message_id}: the log does not have it"
        else:
            yield from _parted(expected[message_id], got[message_id], f"message {message_id}")
    if [*expected] != [*got] and expected.keys() == got.keys():
        yield "the messages stand in another order"


def _parted(expected: JSON, got: JSON, where: str) -> Iterator[str]:
    """Where two JSON values part."""
    if isinstance(expected, dict) and isinstance(got, dict):
        for name in [*expected, *(name for name in got if name not in expected)]:
            if name not in expected or name not in got:
                yield f"{where}.{name}: only {'the log' if name in expected else 'the broker'} has it"
            else:
                yield from _parted(expected[name], got[name], f"{where}.{name}")
    elif isinstance(expected, list) and isinstance(got, list) and len(expected) == len(got):
        for number, (one, other) in enumerate(zip(expected, got, strict=True)):
            yield from _parted(one, other, f"{where}[{number}]")
    elif encode(expected) != encode(got):
        yield f"{where}: the log folds to {_short(expected)}, the broker tells {_short(got)}"


_SHOWN_BYTES_MAX: Final = 60


def _short(value: JSON) -> str:
    text = encode(value)
    shown = text[:_SHOWN_BYTES_MAX].decode(errors="replace")
    return shown if len(text) <= _SHOWN_BYTES_MAX else f"{shown}… ({len(text)} bytes)"
