"""A session as it is seen: its messages, and how they change."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from consumer.batch import Batch
from consumer.limits import Limits
from consumer.reader import Reader, Snapshot
from consumer.session import SessionFold
from consumer.values import Values
from consumer.wire import OFFSET_START, SESSION_PATH_PREFIX

__all__ = ["Change", "SessionView"]


@dataclass(frozen=True, slots=True)
class Change:
    """What some records did to a session. It may be nothing, when only the end was reached or closed."""

    messages: list[dict[str, Any]]
    """The items that changed, as they are now, in the order of the session."""
    offset: str
    up_to_date: bool
    closed: bool


class SessionView:
    """The messages of one session, kept up to date: `async with SessionView(url, session_id) as view`.

    It starts with the broker's snapshot and follows the log from the snapshot's offset. While an answer is running,
    its message alone does not tell how the next chunk changes it; then the log is folded from its start instead, which
    costs the length of the session once. So it is when a generation goes on with an answer that was cut short before.
    Either way the view equals what `GET /messages` answers at the same offset.

    `headers`, `params` and `limits` are those of a Reader. Entering raises what `Reader.messages` and `Reader.follow`
    raise.
    """

    def __init__(
        self,
        base_url: str,
        session_id: str,
        *,
        headers: Values | None = None,
        params: Values | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.session_id = session_id
        self.offset = OFFSET_START
        """Where the view stands in the session's stream."""
        self._reader = Reader(base_url, headers=headers, params=params, limits=limits)
        self._stream = SESSION_PATH_PREFIX + session_id
        self._fold = SessionFold()
        self._of_items = False  # it began with the broker's items, and not with records

    async def __aenter__(self) -> Self:
        try:
            await self._load(await self._reader.messages(self.session_id))
        except BaseException:
            await self._reader.aclose()
            raise
        return self

    async def __aexit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._reader.aclose()

    @property
    def messages(self) -> list[dict[str, Any]]:
        """All messages in order, as `GET /messages` lists them. They stay as they are while the view goes on."""
        return self._fold.items()

    def message(self, message_id: str) -> dict[str, Any] | None:
        """One of `messages`; None if there is no such message."""
        return self._fold.item(message_id)

    async def follow(self) -> AsyncGenerator[Change, None]:
        """Changes as they come, from where the view stands, until the session is closed.

        When a change is handed out, `messages` and `offset` have it already. One follower at a time. Raises what
        `Reader.follow` raises; after Gone or NotFound the session was deleted or reset: open a new view.
        """
        while True:
            async with aclosing(self._reader.follow(self._stream, self.offset)) as batches:
                async for batch in batches:
                    change = self._take(batch)
                    if self._of_items and not self._fold.is_whole:
                        break
                    yield change
                else:
                    return
            await self._fold_anew()
            yield Change(self.messages, self.offset, up_to_date=True, closed=False)

    async def _load(self, snapshot: Snapshot) -> None:
        with suppress(ValueError):  # an answer is running
            self._fold = SessionFold.of_items(snapshot.messages)
            self.offset = snapshot.offset
            self._of_items = True
            return
        await self._fold_anew()

    async def _fold_anew(self) -> None:
        """Fold the log from its start: what an answer goes on from cannot be told from its message alone."""
        self._fold = SessionFold()
        self._of_items = False
        async with aclosing(self._reader.follow(self._stream, live=False)) as batches:
            async for batch in batches:
                self._take(batch)

    def _take(self, batch: Batch) -> Change:
        changed: set[str] = set()
        for record in batch.records:
            message_id = self._fold.add(record)
            if message_id is not None:
                changed.add(message_id)
        self.offset = batch.next_offset
        items = [item for item in map(self._fold.item, sorted(changed, key=self._fold.ordinal)) if item is not None]
        return Change(items, batch.next_offset, batch.up_to_date, batch.closed)
