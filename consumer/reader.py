"""A resumable reader: catch-up in pages, then live, each record once and in order, across whatever breaks."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import replace
from types import TracebackType
from typing import Any, Final, Self

import httpx
import msgspec

from consumer.address import broker_url, messages_url, stream_url, with_query
from consumer.batch import Batch, Events, is_json, is_text, page
from consumer.errors import AttemptFailed, BadAnswer, TooLarge
from consumer.limits import Limits
from consumer.plain import NotJSON, decode
from consumer.retry import persist
from consumer.transport import EventConnection, Transport
from consumer.wire import OFFSET_START, STREAM_SSE_DATA_ENCODING

__all__ = ["Reader", "Snapshot"]

DEFAULT_URL: Final = "http://127.0.0.1:4437"


class Snapshot(msgspec.Struct, rename="camel", frozen=True):
    """The folded messages of a session, and the offset that they stand at: what is newer follows from there."""

    session_id: str
    offset: str
    messages: list[dict[str, Any]]


class Reader:
    """Reads the streams of one broker. `async with Reader(url) as reader:`, or call `aclose` in the end.

    Any number of reads may run at once. `headers` go with every request; `limits` has every timeout and bound.
    Connection errors, silence, 408, 429 and 5xx are retried with backoff and jitter, as late as `Retry-After` asks.

    Every method raises Refused (StreamNotFound, OffsetGone, AccessDenied) for any other 4xx, Unavailable when its
    deadline has passed, BadAnswer and TooLarge for answers that cannot be used, all of `consumer.errors`; and
    ValueError for a stream that cannot be on this broker.
    """

    def __init__(
        self, base_url: str = DEFAULT_URL, *, headers: Mapping[str, str] | None = None, limits: Limits | None = None
    ) -> None:
        self._broker = broker_url(base_url)
        self._limits = limits or Limits()
        self._transport = Transport(self._limits, headers)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections; reads under way fail."""
        await self._transport.aclose()

    async def follow(
        self, stream: str, offset: str = OFFSET_START, *, live: bool = True
    ) -> AsyncGenerator[Batch, None]:
        """The batches of a stream from `offset` on, until it is closed, or without `live` until its present end.

        `stream` is a path such as `sessions/s`, or a URL on the same server. `offset` is `-1` (the start), `now` (only
        what comes), or the `next_offset` of a batch, from which another reader goes on where this one was. Each record
        comes once and in order; where batches are cut means nothing. A batch without records tells that the end was
        reached, or closed. `follow_deadline_s` is the deadline, without `live` it is `deadline_s`.

        Nothing is read ahead of the caller: one that is slow delays nobody and loses nothing. Who leaves the loop early
        frees the connection at once with `contextlib.aclosing`.
        """
        follower = _Follower(self._transport, self._limits, stream_url(self._broker, stream), offset)
        deadline_s = self._limits.follow_deadline_s if live else self._limits.deadline_s
        try:
            while True:
                batch = await persist(follower.attempt, self._limits, deadline_s)
                if batch is None:
                    continue
                yield batch
                if batch.closed or (batch.up_to_date and not live):
                    return
        finally:
            await follower.aclose()

    async def read(self, stream: str, offset: str = OFFSET_START) -> Batch:
        """All that lies between `offset` and the present end, as one batch. For long streams use `follow`.

        Raises TooLarge above `read_bytes_max`.
        """
        follower = _Follower(self._transport, self._limits, stream_url(self._broker, stream), offset)
        batches: list[Batch] = []
        while not (batches and batches[-1].up_to_date):
            batch = await persist(follower.attempt, self._limits, self._limits.deadline_s)
            if batch is not None:
                batches.append(batch)
            if follower.bytes_read > self._limits.read_bytes_max:
                raise TooLarge(self._limits.read_bytes_max)
        return replace(batches[-1], records=_joined(batches))

    async def messages(self, session_id: str) -> Snapshot:
        """The messages of a session as the broker has folded them."""
        url = messages_url(self._broker, session_id)

        async def attempt() -> Snapshot:
            answer = await self._transport.get(url, silence_s_max=self._limits.attempt_timeout_s)
            return _snapshot(answer.body)

        return await persist(attempt, self._limits, self._limits.deadline_s)


class _Follower:
    """Where a follower stands, and how it takes its next step.

    `offset` is where the next request begins: behind the last batch that was handed out, and nothing else moves it. So
    whatever an attempt had begun to receive when it failed comes again, and comes once.
    """

    def __init__(self, transport: Transport, limits: Limits, url: httpx.URL, offset: str) -> None:
        self.bytes_read = 0
        """In pages, as far as they were taken."""
        self._transport = transport
        self._limits = limits
        self._url = url
        self._offset = offset
        self._cursor: str | None = None
        self._content_type = ""
        self._up_to_date = False  # what the caller was told last
        self._caught_up = False  # once true, it stays: whatever is missed later comes over the live connection as well
        self._connection: EventConnection | None = None
        self._events = Events(json=True)

    async def attempt(self) -> Batch | None:
        """The next batch that tells something; None if there was none yet, and it is worth asking again at once.

        Raises AttemptFailed when waiting is better, and whatever ends the following.
        """
        if not self._caught_up:
            return await self._next_page(None, self._limits.attempt_timeout_s)
        # Event lines cannot tell CR LF from LF, so text that must arrive as it was sent comes by long-poll.
        if is_text(self._content_type):
            return await self._next_page("long-poll", self._limits.silence_s_max)
        return await self._next_live()

    async def aclose(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.aclose()

    async def _next_page(self, live: str | None, silence_s_max: float) -> Batch | None:
        answer = await self._transport.get(self._request_url(live), silence_s_max=silence_s_max)
        batch = page(answer.headers, answer.body)
        if not batch.up_to_date and batch.next_offset == self._offset:
            raise BadAnswer("a page that is not the last one leads nowhere")
        self.bytes_read += len(answer.body)
        self._content_type = answer.headers.get("content-type", self._content_type)
        self._caught_up = self._caught_up or batch.up_to_date
        return batch if self._take(batch) else None

    async def _next_live(self) -> Batch | None:
        connection = self._connection or await self._connect()
        failure = AttemptFailed("the live connection ended at once")
        try:
            while (event := await connection.next_event()) is not None:
                batch = self._events.take(event.event, event.data)
                if batch is None:
                    continue
                connection.batch_taken()
                if self._take(batch):
                    connection.is_useful = True
                    return batch
        except AttemptFailed as error:
            failure = error
        await self.aclose()
        if connection.is_useful or connection.age_s >= self._limits.life_s_min:
            return None
        raise failure

    async def _connect(self) -> EventConnection:
        self._connection = connection = await self._transport.connect(self._request_url("sse"))
        json = is_json(self._content_type)
        if not json and connection.headers.get(STREAM_SSE_DATA_ENCODING) != "base64":
            raise BadAnswer(f"the events of a {self._content_type or 'byte'} stream are not in base64")
        self._events = Events(json=json)
        return connection

    def _take(self, batch: Batch) -> bool:
        """Move behind this batch. Whether it tells the caller anything new."""
        news = bool(batch.records) or batch.closed
        news = news or (batch.next_offset, batch.up_to_date) != (self._offset, self._up_to_date)
        self._offset, self._up_to_date = batch.next_offset, batch.up_to_date
        self._cursor = batch.cursor or self._cursor
        return news

    def _request_url(self, live: str | None) -> httpx.URL:
        return with_query(self._url, {"offset": self._offset, "live": live, "cursor": self._cursor if live else None})


def _joined(batches: list[Batch]) -> list[Any] | bytes:
    if isinstance(batches[-1].records, bytes):
        return b"".join(bytes(batch.records) for batch in batches)
    return [record for batch in batches for record in batch.records]


def _snapshot(body: bytes) -> Snapshot:
    try:
        return msgspec.convert(decode(body), Snapshot)
    except (NotJSON, msgspec.ValidationError) as error:
        raise BadAnswer(f"the answer is not the messages of a session: {error}") from error
