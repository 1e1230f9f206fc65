"""Which sessions of a broker have moved: all of them as they are listed, then each as it changes."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Final

import anyio
import msgspec

from consumer.address import session_target, with_query
from consumer.client import Client
from consumer.errors import AttemptFailed, BadAnswer, Gone
from consumer.recents import SessionSummary
from consumer.steps import Steps
from consumer.transport import EventConnection, Request

__all__ = ["Moves"]

_LIST: Final = "/v1/sessions"
_SESSION: Final = "session"
_PAGE_SESSIONS: Final = 200


class _Page(msgspec.Struct):
    sessions: list[SessionSummary]
    next: str | None
    cursor: str


class _Told(msgspec.Struct, rename="camel"):
    """As much of an event as says what it is."""

    session_id: str
    deleted: bool = False


class Moves:
    """Reads the list of sessions, then its live tail from where the list began: nothing can fall between the two.

    A page and an event are in memory at a time: who takes them slowly is waited for, and whoever waits too long for
    the broker's liking begins with the list again.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._limits = client.limits
        self._cursor: str | None = None
        self._connection: EventConnection | None = None
        self._steps = Steps(self._attempt, self._drop, self._limits)

    async def listed(self) -> AsyncGenerator[list[SessionSummary], None]:
        """All sessions, in pages. Raises as `Client.ask`."""
        page = await self.begin(_PAGE_SESSIONS)
        while True:
            yield page.sessions
            if page.next is None:
                return
            page = await self._client.ask(_page_request(_PAGE_SESSIONS, page.next), _Page)

    async def begin(self, limit: int = 1) -> _Page:
        """The first page of the list; `changed` begins with what happens from now on. Raises as `Client.ask`."""
        page = await self._client.ask(_page_request(limit, None), _Page)
        self._cursor = page.cursor
        return page

    async def session(self, session_id: str) -> SessionSummary:
        """One session as it is now. Raises as `Client.ask`: NotFound if it is none, or no more."""
        return await self._client.ask(Request("GET", session_target(session_id)), SessionSummary)

    async def changed(self) -> AsyncGenerator[SessionSummary | str, None]:
        """Sessions as they change, and the ids of those that were deleted.

        Ends when the broker does not know any more what has changed since, or when something on the way holds events
        back: go on with the list. Outages are waited out.
        """
        try:
            while True:
                moved = await self._steps.next(self._limits.follow_deadline_s)
                if moved is _LIST_ANEW:
                    return
                if moved is not None:
                    yield moved
        finally:
            with anyio.CancelScope(shield=True):
                await self._drop()

    async def _attempt(self) -> SessionSummary | str | None:
        """The next change; None if there was none yet, and it is worth asking again at once."""
        try:
            connection = self._connection or await self._connect()
        except Gone:
            return _LIST_ANEW
        return _LIST_ANEW if connection is None else await self._next(connection)

    async def _connect(self) -> EventConnection | None:
        """A live connection that has said something; None if it did not in time."""
        target = with_query(_LIST, {"live": "sse", "cursor": self._cursor})
        with anyio.move_on_after(self._limits.first_event_s_max):
            connection = await self._client.transport.connect(
                Request("GET", target, silence_s_max=self._limits.silence_s_max)
            )
            try:
                await connection.hear()
            except BaseException:
                with anyio.CancelScope(shield=True):
                    await connection.aclose()
                raise
            self._connection = connection
            return connection
        return None

    async def _next(self, connection: EventConnection) -> SessionSummary | str | None:
        failure = AttemptFailed("the live connection ended at once")
        try:
            while (event := await connection.next_event()) is not None:
                if event.event == _SESSION:
                    connection.batch_taken()
                    connection.is_useful = True
                    moved = _moved(event.data)
                    self._cursor = event.id
                    return moved
        except AttemptFailed as error:
            failure = error
        await self._drop()
        if connection.fell_silent:
            return _LIST_ANEW
        if connection.is_useful or connection.age_s >= self._limits.life_s_min:
            return None
        raise failure

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.aclose()


_LIST_ANEW: Final = ""  # no session has this id


def _moved(data: str) -> SessionSummary | str:
    try:
        told = msgspec.json.decode(data, type=_Told)
        return told.session_id if told.deleted else msgspec.json.decode(data, type=SessionSummary)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise BadAnswer(f"not a session of the list: {error}") from error


def _page_request(limit: int, after: str | None) -> Request:
    return Request("GET", with_query(_LIST, {"limit": str(limit), "after": after}))
