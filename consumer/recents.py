"""The sessions of a broker by last activity, kept up to date."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

import anyio

from consumer.client import Client
from consumer.limits import Limits
from consumer.session_list import Break, Moved, Page, SessionSummary, SessionTail, page_request
from consumer.steps import Steps
from consumer.transport import Request
from consumer.values import Values

__all__ = ["Recents", "RecentsChange"]

_PAGE_MAX: Final = 500
"""Sessions in one page: more are refused by a broker."""


@dataclass(frozen=True, slots=True)
class RecentsChange:
    """What happened to the list."""

    sessions: list[SessionSummary]
    """Those that are new or changed, the newest first."""
    removed: list[str]
    """The ids of those that are there no more; of sessions that were never in this list nothing is told."""


class Recents:
    """The latest sessions, newest first: `async with Recents(url) as recents`, for a list that people look at.

    Entering reads the first `limit` of them (1 to 500); `more` reads on; `follow` keeps all that were read up to date,
    and adds what is new. At most `sessions_max` are kept, then the oldest are forgotten. `headers`, `params` and
    `limits` are those of a Reader. Entering, `more` and `follow` raise what its methods raise.
    """

    def __init__(
        self,
        base_url: str,
        *,
        limit: int = 50,
        headers: Values | None = None,
        params: Values | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._client = Client(base_url, headers=headers, params=params, limits=limits)
        self._limits = self._client.limits
        self._limit = limit
        self._sessions: dict[str, SessionSummary] = {}  # by id, the newest last
        self._after: str | None = None
        self._removed: set[str] = set()  # since `more` asked: its page may be of the time before
        self._tail = SessionTail(self._client)
        self._polling_until_s = 0.0
        self._first_event_s_max = self._limits.first_event_s_max
        self._steps = Steps(self._attempt, self._tail.drop, self._limits)
        self._is_followed = False

    async def __aenter__(self) -> Self:
        try:
            self._renew(await self._client.ask(self._first_page(), Page))
        except BaseException:
            await self._client.aclose()
            raise
        return self

    async def __aexit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._client.aclose()

    @property
    def sessions(self) -> list[SessionSummary]:
        """Those that are known, the latest activity first."""
        return [*reversed(self._sessions.values())]

    @property
    def has_more(self) -> bool:
        """Whether there are older ones to read."""
        return self._after is not None and len(self._sessions) < self._limits.sessions_max

    async def more(self) -> list[SessionSummary]:
        """Read the next `limit` older sessions, and return those that were not known; none if there are no more.

        None as well if the list was read anew meanwhile; ask again then.
        """
        after = self._after
        if after is None or not self.has_more:
            return []
        self._removed = set()
        page = await self._client.ask(page_request(self._limit, after), Page)
        if self._after != after:
            return []
        self._after = page.next
        known = self._sessions.keys() | self._removed
        older = {found.session_id: found for found in reversed(page.sessions) if found.session_id not in known}
        self._sessions = {**older, **self._sessions}
        return [*reversed(older.values())]

    async def follow(self) -> AsyncGenerator[RecentsChange, None]:
        """Changes as they come, for ever. When one is handed out, `sessions` has it already. One follower at a time.

        They come live, and are read as a list every `polling_wait_s` where something on the way holds events back.
        Where the broker does not know any more what changed since (it was restarted, or this was away for long), the
        list is read anew, as many as were known but no more than 500, and the change says how it differs.
        """
        if self._is_followed:
            raise RuntimeError("follow the list once at a time")
        self._is_followed = True
        try:
            while True:
                change = await self._steps.next(self._limits.follow_deadline_s)
                if change is not None and (change.sessions or change.removed):
                    yield change
        finally:
            self._is_followed = False
            await self._tail.drop()

    async def reconnect(self) -> None:
        """Give up every connection and ask again at once: see `Reader.reconnect`."""
        self._steps.begin_anew()
        await self._client.transport.renew()

    # -- the list -------------------------------------------------------------------------------------------------

    def _first_page(self) -> Request:
        """As much as was known, or as was asked for."""
        return page_request(max(self._limit, min(len(self._sessions), _PAGE_MAX)), None)

    async def _load(self) -> RecentsChange:
        """Read the list anew; how it differs from what was known."""
        return self._renew(await self._client.ask_once(self._first_page(), Page))

    def _renew(self, page: Page) -> RecentsChange:
        known, self._sessions = self._sessions, {found.session_id: found for found in reversed(page.sessions)}
        self._after, self._tail.cursor = page.next, page.cursor
        return RecentsChange(
            [found for found in page.sessions if known.get(found.session_id) != found],
            [session_id for session_id in known if session_id not in self._sessions],
        )

    # -- live -----------------------------------------------------------------------------------------------------

    async def _attempt(self) -> RecentsChange | None:
        """The next change; None if there was none yet, and it is worth asking again at once."""
        if not self._tail.is_connected and anyio.current_time() < self._polling_until_s:
            await anyio.sleep(self._limits.polling_wait_s)
            return await self._load()
        moved = await self._tail.step(self._first_event_s_max)
        if moved is Break.FORGOTTEN:
            return await self._load()
        if moved is Break.SILENT:
            return await self._look_past()
        return None if moved is None else self._take(moved)

    async def _look_past(self) -> RecentsChange:
        """After silence: whether the list changed meanwhile. If it did, something on the way holds events back."""
        change = await self._load()
        if change.sessions or change.removed:
            self._polling_until_s = anyio.current_time() + self._limits.polling_s
        else:
            self._first_event_s_max = min(2 * self._first_event_s_max, self._limits.silence_s_max)
        return change

    def _take(self, moved: Moved) -> RecentsChange:
        session_id = moved if isinstance(moved, str) else moved.session_id
        known = self._sessions.pop(session_id, None)
        if isinstance(moved, str):
            self._removed.add(moved)
            return RecentsChange([], [moved] if known is not None else [])
        self._sessions[session_id] = moved
        if len(self._sessions) <= self._limits.sessions_max:
            return RecentsChange([moved], [])
        oldest = next(iter(self._sessions))
        del self._sessions[oldest]
        return RecentsChange([moved], [oldest])
