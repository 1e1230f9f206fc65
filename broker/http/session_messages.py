"""`GET /v1/sessions/{sid}/messages[/{mid}]`: what is asked for, and the answer.

at=OFFSET     the messages as they stood there; without it, as they stand now
limit=N       at most so many; `next` tells where the others begin
after=TOKEN   the `next` of the page before. Pages of one state are had by the first one's `offset` as their `at`
as=ui         each message as a UI message of the AI SDK, whatever format its chunks came in
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Final

import msgspec

from broker import limits
from broker.core.offset import InvalidOffset, format_offset, parse_offset
from broker.core.state import Stream
from broker.folded import Folded, Item
from broker.http import caching
from broker.http.problems import BadRequest
from broker.http.reads import position_of
from broker.http.request import Request, parameters_of
from broker.http.response import Header, Response
from broker.http.session_answers import encoded_answer, not_found
from broker.http.session_routes import Target
from broker.materializer import Messages
from consumer.fold import ui_message
from consumer.plain import JSONObject, encode
from consumer.wire import ENDED, Code

_LIMIT: Final = re.compile(r"[1-9][0-9]{0,8}", re.ASCII)
_OF_LIST: Final = frozenset({"at", "limit", "after", "as"})
_OF_ONE: Final = frozenset({"at", "as"})
_REVALIDATE: Final[Header] = (b"cache-control", b"private, no-cache")


class Query(msgspec.Struct, frozen=True):
    """What is asked for. `after` is the life that a page belongs to, and how many messages lie before it."""

    at: str | None = None
    limit: int | None = None
    after: tuple[int, int] | None = None
    as_ui: bool = False


class _Listed(msgspec.Struct, frozen=True, rename="camel"):
    session_id: str
    offset: str
    messages: list[msgspec.Raw]
    next: str | None


def query_of(request: Request, target: Target) -> Query:
    """Raises BadRequest for a parameter that is unknown or means nothing."""
    parameters = parameters_of(request.query)
    unknown = parameters.keys() - (_OF_ONE if target.part_id else _OF_LIST)
    if unknown:  # an answer without what was asked for would pass for one with it
        raise BadRequest(Code.INVALID_PARAMETER, f"unknown: {', '.join(sorted(unknown))[:200]}")
    if parameters.get("as", "ui") != "ui":
        raise BadRequest(Code.INVALID_PARAMETER, "as: ui")
    return Query(
        parameters.get("at"), _limit(parameters.get("limit")), _after(parameters.get("after")), "as" in parameters
    )


def _limit(text: str | None) -> int | None:
    if text is None:
        return None
    if _LIMIT.fullmatch(text) is None or int(text) > limits.MESSAGES_PAGE_MAX:
        raise BadRequest(Code.INVALID_PARAMETER, f"limit: 1 to {limits.MESSAGES_PAGE_MAX}")
    return int(text)


def _after(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    try:
        count, life = parse_offset(text)
    except InvalidOffset:
        raise BadRequest(Code.INVALID_PARAMETER, "after: the `next` of a page") from None
    return life, count


def position_asked_for(query: Query, stream: Stream) -> int | None:
    """Where in the session's log; None for its end. Raises BadRequest: OFFSET_GONE, INVALID_OFFSET."""
    if query.after is not None and query.after[0] != stream.incarnation:
        raise BadRequest(Code.OFFSET_GONE, "the session began anew since that page")
    return None if query.at is None else position_of(query.at, stream)


def unchanged(request: Request, target: Target, stream: Stream, position: int) -> Response | None:
    """The answer to a client that has the list as it is at that position: nothing needs to be folded for it."""
    headers = _headers(stream, position)
    if target.part_id or not caching.matches(request.headers.get(b"if-none-match"), headers[0][1]):
        return None
    return Response(304, headers)


async def messages_answer(request: Request, target: Target, query: Query, messages: Messages) -> Response:
    """The answer. The offset says what is in the messages, so it is their entity tag."""
    headers = _headers(messages.stream, messages.position)
    body = _one(target, query, messages) if target.part_id else await _list(target, query, messages)
    if body is None:
        return not_found(Code.MESSAGE_NOT_FOUND, request, target)
    if caching.matches(request.headers.get(b"if-none-match"), headers[0][1]):
        return Response(304, headers)
    return encoded_answer(body, headers[:-1], cache=headers[-1])


def _headers(stream: Stream, position: int) -> list[Header]:
    offset = stream.offset(position).encode()
    return [(b"etag", b'"%b"' % offset), (b"stream-next-offset", offset), _REVALIDATE]


def _one(target: Target, query: Query, messages: Messages) -> bytes | None:
    found = next((item for item in messages.items if item.message_id == target.part_id), None)
    if found is None:
        return None
    return encode({"sessionId": target.session_id, **(_as_ui(found.facts) if query.as_ui else found.facts)})


async def _list(target: Target, query: Query, messages: Messages) -> bytes:
    first = query.after[1] if query.after else 0
    end = len(messages.items) if query.limit is None else first + query.limit
    listed = _Listed(
        target.session_id,
        messages.stream.offset(messages.position),
        await _encoded(messages.items[first:end], messages.folded, as_ui=query.as_ui),
        format_offset(end, messages.stream.incarnation) if end < len(messages.items) else None,
    )
    return msgspec.json.encode(listed)


async def _encoded(items: Sequence[Item], folded: Folded, *, as_ui: bool) -> list[msgspec.Raw]:
    """Each item as JSON, with pauses after what had to be encoded."""
    encoded: list[msgspec.Raw] = []
    since_pause_bytes = 0
    for item in items:
        is_known = item.text is not None and not as_ui
        text = encode(_as_ui(item.facts)) if as_ui else folded.text(item)
        encoded.append(msgspec.Raw(text))
        since_pause_bytes += 0 if is_known else len(text)
        if since_pause_bytes >= limits.MESSAGES_STEP_BYTES:
            since_pause_bytes = 0
            await asyncio.sleep(0)
    return encoded


def _as_ui(item: JSONObject) -> JSONObject:
    """The item with its message in the one model."""
    chunk_format = item.get("format")
    projected = ui_message(
        chunk_format if isinstance(chunk_format, str) else None,
        item["message"],
        message_id=str(item["id"]),
        role=str(item["role"]),
        ended=item["status"] in ENDED,
    )
    return {**item, "message": projected}
