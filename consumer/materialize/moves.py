"""Which sessions of a broker have moved: all of them as they are listed, then each as it changes."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from functools import partial
from typing import Final

import anyio

from consumer.address import session_target
from consumer.client import Client
from consumer.session_list import Break, Moved, Page, SessionSummary, SessionTail, page_request
from consumer.steps import Steps
from consumer.transport import Request

__all__ = ["Moves"]

_PAGE_SESSIONS: Final = 200


class Moves:
    """Reads the list of sessions, then its live tail from where the list began: nothing can fall between the two.

    A page and an event are in memory at a time: who takes them slowly is waited for, and whoever waits too long for
    the broker's liking begins with the list again.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._limits = client.limits
        self._tail = SessionTail(client)
        step = partial(self._tail.step, self._limits.first_event_s_max)
        self._steps: Steps[Moved | Break | None] = Steps(step, self._tail.drop, self._limits)

    async def listed(self) -> AsyncGenerator[list[SessionSummary], None]:
        """All sessions, in pages. Raises as `Client.ask`."""
        page = await self.begin(_PAGE_SESSIONS)
        while True:
            yield page.sessions
            if page.next is None:
                return
            page = await self._client.ask(page_request(_PAGE_SESSIONS, page.next), Page)

    async def begin(self, limit: int = 1) -> Page:
        """The first page of the list; `changed` begins with what happens from now on. Raises as `Client.ask`."""
        page = await self._client.ask(page_request(limit, None), Page)
        self._tail.cursor = page.cursor
        return page

    async def session(self, session_id: str) -> SessionSummary:
        """One session as it is now. Raises as `Client.ask`: NotFound if it is none, or no more."""
        return await self._client.ask(Request("GET", session_target(session_id)), SessionSummary)

    async def changed(self) -> AsyncGenerator[Moved, None]:
        """Sessions as they change, and the ids of those that were deleted.

        Ends when the broker does not know any more what has changed since, or when something on the way holds events
        back: go on with the list. Outages are waited out.
        """
        try:
            while True:
                moved = await self._steps.next(self._limits.follow_deadline_s)
                if isinstance(moved, Break):
                    return
                if moved is not None:
                    yield moved
        finally:
            with anyio.CancelScope(shield=True):
                await self._tail.drop()
