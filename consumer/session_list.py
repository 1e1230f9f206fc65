"""The list of sessions as a broker gives it: in pages, and live from where a page stood."""

from __future__ import annotations

from enum import Enum, auto
from typing import Any, Final, TypeAlias

import msgspec

from consumer.address import with_query
from consumer.client import Client
from consumer.errors import BadAnswer, Gone
from consumer.live import LiveConnection, Silence
from consumer.transport import Request

__all__ = ["Break", "Moved", "Page", "SessionSummary", "SessionTail", "page_request"]

_LIST: Final = "/v1/sessions"
_SESSION: Final = "session"


class SessionSummary(msgspec.Struct, rename="camel", frozen=True):
    """One session as the list has it; times are RFC 3339, to the millisecond."""

    session_id: str
    created_at: str
    last_activity_at: str
    status: str
    """`streaming` while an answer is running, else `idle`."""
    offset: str
    """Where its stream ended at that time."""
    generations: list[dict[str, Any]] = []
    """Those that are open."""
    metadata: dict[str, Any] | None = None


Moved: TypeAlias = SessionSummary | str
"""A session as it is now, or the id of one that was deleted."""


class Break(Enum):
    """Why the tail leads no further: what happened since has to be looked up in the list."""

    FORGOTTEN = auto()  # the broker does not know any more what has changed since the cursor
    SILENT = auto()  # nothing is heard, not even that nothing happens: something on the way may hold events back


class Page(msgspec.Struct):
    """Some sessions of the list."""

    sessions: list[SessionSummary]
    """The latest activity first."""
    next: str | None
    """What the page after it is asked for with."""
    cursor: str
    """From where on the tail tells what happens after the first page was read."""


def page_request(limit: int, after: str | None) -> Request:
    """Asks for a Page: the first one, or the one after another."""
    return Request("GET", with_query(_LIST, {"limit": str(limit), "after": after}))


class SessionTail:
    """What happens to sessions from a cursor on, over one live connection after another.

    One step at a time. It may be cancelled wherever it waits; what it told then is told again.
    """

    def __init__(self, client: Client) -> None:
        self.cursor: str | None = None
        """Behind what was told last. To be set before the first step."""
        self._silence_s_max = client.limits.silence_s_max
        self._connection = LiveConnection(client.transport, client.limits)

    @property
    def is_connected(self) -> bool:
        return self._connection.is_open

    async def step(self, first_event_s_max: float) -> Moved | Break | None:
        """The next thing that happened; None if nothing has yet, and it is worth asking again at once.

        A new connection has to say something within `first_event_s_max`. Raises AttemptFailed and the errors of Reader.
        """
        try:
            if not self._connection.is_open:
                await self._connection.open(self._request(), first_event_s_max)
            return await self._next()
        except Gone:
            return Break.FORGOTTEN
        except Silence:
            return Break.SILENT

    async def drop(self) -> None:
        """Give up the connection, if there is one."""
        await self._connection.drop()

    async def _next(self) -> Moved | None:
        while (event := await self._connection.next_event()) is not None:
            if event.event == _SESSION:
                self._connection.batch_taken(is_news=True)
                moved = _moved(event.data)
                self.cursor = event.id
                return moved
        return None

    def _request(self) -> Request:
        target = with_query(_LIST, {"live": "sse", "cursor": self.cursor})
        return Request("GET", target, silence_s_max=self._silence_s_max)


class _Told(msgspec.Struct, rename="camel"):
    """As much of an event as says what it is."""

    session_id: str
    deleted: bool = False


def _moved(data: str) -> Moved:
    try:
        told = msgspec.json.decode(data, type=_Told)
        return told.session_id if told.deleted else msgspec.json.decode(data, type=SessionSummary)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise BadAnswer(f"not a session of the list: {error}") from error
