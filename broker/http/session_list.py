"""`GET /v1/sessions`: the sessions by last activity, in pages; and what changes in them, live.

limit=N        at most so many
after=TOKEN    the `next` of the page before
live=sse       what changes from now on, or from `cursor=` or `Last-Event-ID` on: `event: session`, `id: CURSOR`
"""

from __future__ import annotations

import asyncio
import random
import re
from collections import OrderedDict
from collections.abc import AsyncGenerator
from typing import Final

from broker import limits
from broker.core.state import Session, Stream
from broker.http import sse
from broker.http.live_readers import LiveReaders
from broker.http.problems import BadRequest
from broker.http.reads import SSE_HEADERS
from broker.http.request import Receive, Request, parameters_of
from broker.http.response import Header, LiveResponse, Response
from broker.http.session_answers import json_answer, summary
from broker.http.session_routes import LIST, require_id
from broker.partitions import Partitioned
from broker.recent import Change
from broker.settings import Settings
from consumer.plain import JSONObject, encode
from consumer.wire import SESSION_PATH_PREFIX, Code

ROOT: Final = b"/v1/"
PATH: Final = LIST.removeprefix(ROOT.decode())

_PARAMETERS: Final = frozenset({"limit", "after", "live", "cursor"})
_LIMIT: Final = re.compile(r"[1-9][0-9]{0,8}", re.ASCII)
_AFTER: Final = re.compile(r"([0-9a-f]{1,15})_(.+)", re.ASCII)
_CURSOR: Final = re.compile(r"([0-9a-f]{16})_([0-9a-f]{1,15}(?:-[0-9a-f]{1,15})*)", re.ASCII)
_ALLOW: Final[Header] = (b"allow", b"GET, OPTIONS")
_EVENTS_KEPT: Final = 1_000
"""Events kept for others who follow: as many as are told at once, where much changes."""


class SessionList:
    """See the module. Memory: one page, or for a follower nothing: what changed is in the partition, once for all."""

    def __init__(self, partition: Partitioned, settings: Settings, live: LiveReaders) -> None:
        self._partition = partition
        self._settings = settings
        self._live = live
        self._events: OrderedDict[str, tuple[Session, Stream, bytes]] = OrderedDict()  # by path, the newest

    async def respond(self, request: Request, receive: Receive) -> Response | LiveResponse:
        """One request. Raises BadRequest, BrokerError."""
        del receive  # a GET has no body
        if request.path != PATH:
            raise BadRequest(Code.NOT_FOUND)
        if request.method != "GET":
            raise BadRequest(Code.METHOD_NOT_ALLOWED, headers=(_ALLOW,))
        parameters = _parameters(request.query)
        if "live" in parameters:
            self._live.require_room()
            return LiveResponse(list(SSE_HEADERS), self._follow(*await self._begin(request, parameters)))
        return await self._page(parameters)

    # -- pages ---------------------------------------------------------------------------------------------------

    async def _page(self, parameters: dict[str, str]) -> Response:
        if "cursor" in parameters:
            raise BadRequest(Code.INVALID_PARAMETER, "a cursor is for live=sse")
        limit, before = _limit(parameters), _before(parameters)
        if before is not None:  # of a page that another node may have made, which knew more
            await self._partition.catch_up()
        cursor = self._cursor(self._partition.applied_indexes)  # before the look: what changes meanwhile is told again
        found = await self._partition.sessions(before, limit + 1)
        last = found[limit - 1] if len(found) > limit else None
        told: JSONObject = {
            "sessions": [summary(_id_of(path), session, stream) for path, session, stream in found[:limit]],
            "next": None if last is None else f"{last[1].active_ms:x}_{_id_of(last[0])}",
            "cursor": cursor,
        }
        return json_answer(told)

    # -- live ----------------------------------------------------------------------------------------------------

    async def _begin(self, request: Request, parameters: dict[str, str]) -> tuple[int, list[int]]:
        """After which change they are told, and up to where in each partition not. Raises BadRequest, Unavailable."""
        if parameters["live"] != "sse" or parameters.keys() & {"limit", "after"}:
            raise BadRequest(Code.INVALID_PARAMETER, "live is sse, and takes a cursor")
        recent = self._partition.recent
        # A browser that reconnects by itself repeats its first URL, which is behind by now.
        cursor = request.headers.get(b"last-event-id", b"").decode("latin-1") or parameters.get("cursor")
        if cursor is None:
            return recent.number, self._partition.applied_indexes
        match = _CURSOR.fullmatch(cursor)
        if match is None:
            raise BadRequest(Code.INVALID_PARAMETER, "not a cursor of this broker")
        indexes = [int(index, 16) for index in match[2].split("-")]
        number = recent.behind(indexes) if match[1] == recent.life and await self._has_reached(indexes) else None
        if number is None:
            raise BadRequest(Code.OFFSET_GONE, "too long ago: read the list again")
        return number, indexes

    async def _has_reached(self, indexes: list[int]) -> bool:
        """Whether this node has applied as much, now or after it has caught up with the one that said it."""
        here = self._partition.applied_indexes
        if len(here) != len(indexes):
            return False
        if any(index > applied for index, applied in zip(indexes, here, strict=True)):
            await self._partition.catch_up()
            here = self._partition.applied_indexes
        return all(index <= applied for index, applied in zip(indexes, here, strict=True))

    async def _follow(self, number: int, indexes: list[int]) -> AsyncGenerator[bytes]:
        """Events from there on, until the connection has lived long enough or has fallen too far behind."""
        recent, clock = self._partition.recent, asyncio.get_running_loop().time
        ends_at = clock() + self._settings.sse_life_s * random.uniform(0.9, 1.1)  # noqa: S311 -- it spreads load
        with self._live.counted("sse"):
            yield b"id: %b\n\n" % self._cursor(indexes).encode()
            while (left_s := ends_at - clock()) > 0 and number >= recent.forgotten:
                if self._partition.draining:
                    yield sse.LEAVING
                    return
                changed = [change for change in recent.since(number) if change.entry_index > indexes[change.partition]]
                number, reached = recent.number, self._partition.applied_indexes
                for at in range(0, len(changed), _EVENTS_KEPT):
                    yield b"".join([await self._event(change, indexes) for change in changed[at : at + _EVENTS_KEPT]])
                indexes = reached
                if changed:
                    await asyncio.sleep(limits.SESSIONS_ROUND_S)
                    continue
                await recent.wait(number, min(left_s, self._settings.sse_keepalive_s))
                if recent.number <= number and not self._partition.draining:
                    yield sse.KEEP_ALIVE

    async def _event(self, change: Change, indexes: list[int]) -> bytes:
        """How the session is now, and the cursor behind that: `indexes`, which move on."""
        indexes[change.partition] = change.entry_index
        data = await self._data(change.path)
        return b"id: %b\nevent: session\ndata: %b\n\n" % (self._cursor(indexes).encode(), data)

    async def _data(self, path: str) -> bytes:
        """A session as it is now: encoded once, however many follow."""
        session, stream = await self._partition.session(path), await self._partition.stream(path)
        if session is None or stream is None:
            self._events.pop(path, None)
            return encode({"sessionId": _id_of(path), "deleted": True})
        kept = self._events.get(path)
        if kept is not None and kept[0] is session and kept[1] is stream:
            return kept[2]
        data = encode(summary(_id_of(path), session, stream))
        self._events[path] = (session, stream, data)
        self._events.move_to_end(path)
        if len(self._events) > _EVENTS_KEPT:
            self._events.popitem(last=False)
        return data

    def _cursor(self, indexes: list[int]) -> str:
        """What was told: of each partition, up to this index. It means the same on every node of a cluster."""
        return f"{self._partition.recent.life}_{'-'.join(f'{index:x}' for index in indexes)}"


def live_s_max(settings: Settings) -> float:
    """How long a live response may take at most: a connection's life, and a while for a reader that stalls."""
    return settings.sse_life_s * 1.1 + limits.SSE_STALL_S


def _parameters(query: bytes) -> dict[str, str]:
    parameters = parameters_of(query)
    unknown = parameters.keys() - _PARAMETERS
    if unknown:  # a list without what was asked for would pass for one with it
        raise BadRequest(Code.INVALID_PARAMETER, f"unknown: {', '.join(sorted(unknown))[:200]}")
    return parameters


def _limit(parameters: dict[str, str]) -> int:
    text = parameters.get("limit", str(limits.SESSIONS_PAGE))
    if _LIMIT.fullmatch(text) is None or int(text) > limits.SESSIONS_PAGE_MAX:
        raise BadRequest(Code.INVALID_PARAMETER, f"limit: 1 to {limits.SESSIONS_PAGE_MAX}")
    return int(text)


def _before(parameters: dict[str, str]) -> tuple[int, str] | None:
    """Where a page begins: below this time of activity and path."""
    token = parameters.get("after")
    if token is None:
        return None
    match = _AFTER.fullmatch(token)
    if match is None:
        raise BadRequest(Code.INVALID_PARAMETER, "after: the `next` of a page of this list")
    require_id(match[2], "after", Code.INVALID_PARAMETER)
    return int(match[1], 16), SESSION_PATH_PREFIX + match[2]


def _id_of(path: str) -> str:
    return path.removeprefix(SESSION_PATH_PREFIX)
