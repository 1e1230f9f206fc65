"""Where one reader of one stream stands, and its next step: pages to the end of the stream, then what is live."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import anyio

from consumer.address import with_query
from consumer.answer import check
from consumer.batch import Batch, Events, Form, is_text, page
from consumer.errors import BadAnswer
from consumer.limits import Limits
from consumer.live import LiveConnection, Silence
from consumer.steps import Steps
from consumer.transport import HttpTransport, Request

Live: TypeAlias = bool | Literal["sse", "long-poll"]
"""Whether what is new is waited for, and if so by which way: by whichever works, unless one is named."""


@dataclass
class Route:
    """What is known of the way to the broker."""

    held_back_until_s: float = -math.inf
    """Until then live connections are not tried: something on the way kept events to itself."""

    @property
    def holds_events_back(self) -> bool:
        return anyio.current_time() < self.held_back_until_s


class Follower:
    """Where a follower stands, and how it takes its next step.

    `offset` is where the next request begins: behind the last batch that was handed out, and nothing else moves it. So
    whatever an attempt had begun to receive when it failed comes again, and comes once.
    """

    def __init__(
        self, transport: HttpTransport, limits: Limits, route: Route, *, url: str, offset: str, live: Live
    ) -> None:
        self.bytes_read = 0
        """In pages, as far as they were taken."""
        self._transport = transport
        self._limits = limits
        self._route = route
        self._url = url
        self.offset = offset
        self._live = live
        self._cursor: str | None = None
        self._content_type = ""
        self._up_to_date = False  # what the caller was told last
        self._caught_up = False  # once true, it stays: whatever is missed later comes over the live connection as well
        self._first_event_s_max = limits.first_event_s_max
        self._connection = LiveConnection(transport, limits)
        self._events = Events(Form.JSON)
        self.steps = Steps(self._attempt, self.aclose, limits)

    async def _attempt(self) -> Batch | None:
        """The next batch that tells something; None if there was none yet, and it is worth asking again at once.

        Raises AttemptFailed when waiting is better, and whatever ends the following.
        """
        if not self._caught_up:
            return await self._next_page(None, self._limits.attempt_timeout_s)
        if self._polls:
            return await self._next_page("long-poll", self._limits.silence_s_max)
        return await self._next_live()

    def skip_pages(self, content_type: str) -> None:
        """Begin with what is live, on a stream of this type: a page would tell the type, and little else."""
        self._content_type, self._caught_up = content_type, True

    async def aclose(self) -> None:
        await self._connection.drop()

    @property
    def _polls(self) -> bool:
        """Whether what is new comes by long-poll. An open connection is used to its end."""
        if self._live in ("sse", "long-poll"):
            return self._live == "long-poll"
        # Event lines cannot tell CR LF from LF, so text that must arrive as it was sent comes by long-poll.
        return is_text(self._content_type) or (not self._connection.is_open and self._route.holds_events_back)

    async def _next_page(self, live: str | None, silence_s_max: float) -> Batch | None:
        answer = await self._transport.send(self._request(live, silence_s_max))
        check(answer)
        batch = page(answer.headers, answer.body)
        if not batch.up_to_date and batch.next_offset == self.offset:
            raise BadAnswer("a page that is not the last one leads nowhere")
        self.bytes_read += len(answer.body)
        self._content_type = answer.headers.get("content-type", self._content_type)
        self._caught_up = self._caught_up or batch.up_to_date
        return batch if self._take(batch) else None

    async def _next_live(self) -> Batch | None:
        try:
            if not self._connection.is_open:
                await self._connect()
            while (event := await self._connection.next_event()) is not None:
                batch = self._events.take(event.event, event.data)
                if batch is None:
                    continue
                is_news = self._take(batch)
                self._connection.batch_taken(is_news=is_news)
                if is_news:
                    return batch
        except Silence:
            return await self._look_past()
        return None

    async def _connect(self) -> None:
        insists = self._live == "sse"
        headers = await self._connection.open(
            self._request("sse", self._limits.silence_s_max), math.inf if insists else self._first_event_s_max
        )
        self._events = Events(Form.of(self._content_type, headers))

    async def _look_past(self) -> Batch | None:
        """After silence: whether the stream moved meanwhile. If it did, something on the way holds events back."""
        batch = await self._next_page(None, self._limits.attempt_timeout_s)
        if batch is None:
            self._first_event_s_max = min(2 * self._first_event_s_max, self._limits.silence_s_max)
        else:
            self._route.held_back_until_s = anyio.current_time() + self._limits.polling_s
        return batch

    def _take(self, batch: Batch) -> bool:
        """Move behind this batch. Whether it tells the caller anything new."""
        news = bool(batch.records) or batch.closed
        news = news or (batch.next_offset, batch.up_to_date) != (self.offset, self._up_to_date)
        self.offset, self._up_to_date = batch.next_offset, batch.up_to_date
        self._cursor = batch.cursor or self._cursor
        return news

    def _request(self, live: str | None, silence_s_max: float) -> Request:
        query = {"offset": self.offset, "live": live, "cursor": self._cursor if live else None}
        return Request("GET", with_query(self._url, query), silence_s_max=silence_s_max)
