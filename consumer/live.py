"""The live connection of whoever follows something, and the next one when that has ended."""

from __future__ import annotations

from collections.abc import Mapping

import anyio

from consumer.errors import AttemptFailed
from consumer.event_parser import Event
from consumer.limits import Limits
from consumer.transport import EventConnection, HttpTransport, Request

__all__ = ["LiveConnection", "Silence"]


class Silence(Exception):
    """Nothing was heard for too long, not even that nothing happens: something on the way may hold events back."""


class LiveConnection:
    """One live connection at a time: opened if it says something in time, given up when it ends or falls silent.

    Whoever follows may be cancelled wherever this waits, and asks again, or drops it.
    """

    def __init__(self, transport: HttpTransport, limits: Limits) -> None:
        self._transport = transport
        self._limits = limits
        self._connection: EventConnection | None = None

    @property
    def is_open(self) -> bool:
        return self._connection is not None

    async def open(self, request: Request, first_event_s_max: float) -> Mapping[str, str]:
        """The headers of a new connection that has said something, be it a comment.

        Raises Silence if it did not within `first_event_s_max`, and as `HttpTransport.connect`.
        """
        with anyio.move_on_after(first_event_s_max):
            connection = await self._transport.connect(request)
            try:
                await connection.hear()
            except BaseException:
                with anyio.CancelScope(shield=True):
                    await connection.aclose()
                raise
            self._connection = connection
            return connection.headers
        raise Silence

    async def next_event(self) -> Event | None:
        """The next event; None when the connection has ended, and opening another at once is worth it.

        Raises Silence, and AttemptFailed when waiting is better: it ended soon, and brought no news. It is closed then.
        """
        connection = self._connection
        assert connection is not None, "no live connection is open"
        failure = AttemptFailed("the live connection ended at once")
        try:
            event = await connection.next_event()
            if event is not None:
                return event
        except AttemptFailed as error:
            failure = error
        await self.drop()
        if connection.fell_silent:
            raise Silence
        if connection.is_useful or connection.age_s >= self._limits.life_s_min:
            return None
        raise failure

    def batch_taken(self, *, is_news: bool) -> None:
        """What has come so far is dealt with: count anew what is held. `is_news`: it was worth the connection."""
        if self._connection is not None:
            self._connection.batch_taken()
            self._connection.is_useful |= is_news

    async def drop(self) -> None:
        """Give up the connection, if there is one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.aclose()
