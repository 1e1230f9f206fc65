"""A resumable reader: catch-up in pages, then live, each record once and in order, across whatever breaks."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import replace
from types import TracebackType
from typing import Any, Final, Self

import msgspec

from consumer.address import checked_id, messages_target, session_target, source_path, stream_url, with_query
from consumer.answer import Response, check, is_true, read
from consumer.batch import Batch
from consumer.client import Client
from consumer.errors import BadAnswer, ClientError, TooLarge
from consumer.follower import Follower, Live, Route
from consumer.limits import Limits
from consumer.offsets import OffsetStore
from consumer.plain import NotJSON, decode, texts_of
from consumer.retry import persist
from consumer.transport import Request
from consumer.values import Values
from consumer.wire import JSON, OFFSET_START, SESSION_PATH_PREFIX, STREAM_NEXT_OFFSET, STREAM_UP_TO_DATE

__all__ = ["Live", "Reader", "Snapshot", "Texts"]

DEFAULT_URL: Final = "http://127.0.0.1:4437"


class Snapshot(msgspec.Struct, rename="camel", frozen=True):
    """The folded messages of a session, and the offset that they stand at: what is newer follows from there."""

    session_id: str
    offset: str
    messages: list[dict[str, Any]]


_snapshots: Final = msgspec.json.Decoder(Snapshot)


class Texts(msgspec.Struct, frozen=True):
    """Records as the JSON texts that they are in the log, and the offset behind them."""

    records: list[bytes]
    next_offset: str


class _Synced(msgspec.Struct):
    offset: str


class Reader:
    """Reads the streams of one broker. `async with Reader(url) as reader:`, or call `aclose` in the end.

    Any number of reads may run at once. `headers` and `params` go with every request; a function among them, async or
    not, is called for each one, so that a token can be renewed. `limits` has every timeout and bound. Connection
    errors, silence, 408, 429 and 5xx are retried with backoff and jitter, as late as `Retry-After` asks.

    Every method raises Refused (NotFound, Gone, AccessDenied, BadRequest, …) for any other 4xx, Unavailable
    (RateLimited) when its deadline has passed, BadAnswer and TooLarge for answers that cannot be used, ValueFailed for
    a header that could not be had, all of `consumer.errors`; and ValueError for a stream that cannot be on this broker.
    """

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        headers: Values | None = None,
        params: Values | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.client = Client(base_url, headers=headers, params=params, limits=limits)
        """What it asks the broker with; views and lists share it."""
        self._limits, self._transport = self.client.limits, self.client.transport
        self._route = Route()
        self._followers: set[Follower] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections; reads under way fail."""
        await self.client.aclose()

    async def reconnect(self) -> None:
        """Give up every connection, and wait for nothing: whoever follows asks again at once, at the same offset.

        For the moment when an application comes to the foreground, or the network back. After a sleep a connection may
        be dead without a sign, and be taken for a quiet one until `silence_s_max` has passed; a wait between attempts
        may have most of its time to go. What was handed out is not handed out again, and deadlines begin anew.
        """
        for follower in self._followers:
            follower.steps.begin_anew()
        await self._transport.renew()

    def name_of(self, stream: str) -> str:
        """The name of a stream in an OffsetStore: the path of its URL, as the broker has it."""
        return source_path(self.client.broker, stream)

    async def follow(
        self,
        stream: str,
        offset: str = OFFSET_START,
        *,
        live: Live = True,
        offsets: OffsetStore | None = None,
    ) -> AsyncGenerator[Batch, None]:
        """The batches of a stream from `offset` on, until it is closed, or without `live` until its present end.

        `stream` is a path such as `sessions/s`, or a URL on the same server. `offset` is `-1` (the start), `now` (only
        what comes), or the `next_offset` of a batch, from which another reader goes on where this one was. Each record
        comes once and in order; where batches are cut means nothing. A batch without records tells that the end was
        reached, or closed. `follow_deadline_s` is the deadline, without `live` it is `deadline_s`.

        What is new comes by SSE, and by long-poll where something on the way holds events back until they are many: if
        nothing arrives though an ordinary read finds that the stream moved, this reader polls for `polling_s`. Text
        comes by long-poll in any case: events turn CR and CR LF into LF. `live="sse"` and `live="long-poll"` insist on
        one of them, for every content type.

        With `offsets`, it begins where that store left off, at `offset` if it knows nothing of the stream. The offset
        behind a batch is saved when the caller comes back for the next one, before that is asked for; so what is saved
        has been handled. A batch out of which the loop is left (`break`, an error, cancellation, a crash) counts as not
        handled: the next reader begins with it, and sees every record from there on once. For exactly once save the
        offset yourself, in the transaction that stores what was made of the records: `SqliteOffsets.put`. After Gone,
        what is stored is of no use: `forget` it.

        Nothing is read ahead of the caller: one that is slow delays nobody and loses nothing. Who leaves the loop early
        frees the connection at once with `contextlib.aclosing`.
        """
        name = self.name_of(stream)
        begin = await offsets.load(name) if offsets is not None else None
        follower = self._follower(stream, begin or offset, live)
        deadline_s = self._limits.follow_deadline_s if live else self._limits.deadline_s
        async with aclosing(self._batches(follower, deadline_s)) as batches:
            async for batch in batches:
                yield batch
                if offsets is not None:
                    await offsets.save(name, batch.next_offset)
                if batch.up_to_date and not live:
                    return

    def follow_session(self, session_id: str, offset: str) -> AsyncGenerator[Batch, None]:
        """The batches of a session behind the offset of its `messages`, as `follow` has them, but live at once.

        Little can lie behind a snapshot that has just come, and the live connection tells it: `follow` would ask for a
        page first. For an offset of long ago `follow` is better, whose pages may be compressed, and cached on the way.
        """
        checked_id("session_id", session_id)
        follower = self._follower(SESSION_PATH_PREFIX + session_id, offset, live=True)
        follower.skip_pages(JSON)
        return self._batches(follower, self._limits.follow_deadline_s)

    async def _batches(self, follower: Follower, deadline_s: float | None) -> AsyncGenerator[Batch, None]:
        """What the follower brings, until the stream is closed."""
        self._followers.add(follower)
        try:
            while True:
                batch = await self._step(follower, deadline_s)
                if batch is None:
                    continue
                yield batch
                if batch.closed:
                    return
        finally:
            self._followers.discard(follower)
            await follower.aclose()

    async def read(self, stream: str, offset: str = OFFSET_START) -> Batch:
        """All that lies between `offset` and the present end, as one batch. For long streams use `follow`.

        Raises TooLarge above `read_bytes_max`.
        """
        follower = self._follower(stream, offset, live=False)
        batches: list[Batch] = []
        while not (batches and batches[-1].up_to_date):
            batch = await self._step(follower, self._limits.deadline_s, go_on_at=offset)
            if batch is not None:
                batches.append(batch)
            if follower.bytes_read > self._limits.read_bytes_max:
                raise TooLarge(f"more than {self._limits.read_bytes_max} bytes; read_bytes_max allows no more")
        return replace(batches[-1], records=_joined(batches))

    async def texts(self, stream: str, offset: str = OFFSET_START) -> AsyncGenerator[Texts, None]:
        """The records of a JSON stream as they were spelled, in pages, from `offset` to the present end."""
        url = str(stream_url(self.client.broker, stream))
        up_to_date = False
        while not up_to_date:
            request = Request("GET", with_query(url, {"offset": offset}))

            async def attempt(request: Request = request) -> Response:
                answer = await self._transport.send(request)
                check(answer)
                return answer

            answer = await persist(attempt, self._limits, deadline_s=self._limits.deadline_s, interrupts=False)
            up_to_date = is_true(answer.headers.get(STREAM_UP_TO_DATE))
            found = _texts(answer)
            if not up_to_date and found.next_offset == offset:
                raise BadAnswer("a page that is not the last one leads nowhere")
            offset = found.next_offset
            yield found

    async def session(self, session_id: str) -> dict[str, Any]:
        """The state of a session: `createdAt`, `lastActivityAt`, `status`, `offset`, open `generations`, `metadata`."""
        request = Request("GET", session_target(session_id))

        async def attempt() -> dict[str, Any]:
            answer = await self._transport.send(request)
            check(answer)
            return _state(answer.body)

        return await persist(attempt, self._limits, deadline_s=self._limits.deadline_s, interrupts=False)

    async def wait_for_txid(self, session_id: str, txid: str, *, offset: str = OFFSET_START) -> str:
        """The offset behind the records that carry the txid, as soon as they are durable: a read up to it has them.

        `offset` is where to look from; without it the whole session is looked through. Raises Unavailable if there are
        none within `deadline_s`, Gone if the session is deleted or reset meanwhile.
        """
        checked_id("txid", txid)
        query = {"offset": offset, "timeoutMs": str(int(self._limits.attempt_timeout_s * 500))}
        request = Request("GET", with_query(f"{session_target(session_id)}/txids/{txid}", query))

        async def attempt() -> str:
            return read(await self._transport.send(request), _Synced).offset

        return await persist(attempt, self._limits, deadline_s=self._limits.deadline_s)

    async def messages(self, session_id: str, *, at: str | None = None) -> Snapshot:
        """The messages of a session as the broker has folded them: now, or as they stood at an offset."""
        request = Request("GET", with_query(messages_target(session_id), {"at": at}))

        async def attempt() -> Snapshot:
            answer = await self._transport.send(request)
            check(answer)
            return _snapshot(answer.body)

        return await persist(attempt, self._limits, deadline_s=self._limits.deadline_s, interrupts=False)

    async def _step(self, follower: Follower, deadline_s: float | None, *, go_on_at: str | None = None) -> Batch | None:
        """One step of the follower. What it raises tells where its caller goes on, which has nothing of this step."""
        try:
            return await follower.steps.next(deadline_s)
        except ClientError as error:
            error.offset = error.offset or go_on_at or follower.offset
            raise

    def _follower(self, stream: str, offset: str, live: Live) -> Follower:
        url = str(stream_url(self.client.broker, stream))
        return Follower(self._transport, self._limits, self._route, url=url, offset=offset, live=live)


def _joined(batches: list[Batch]) -> list[Any] | bytes:
    if isinstance(batches[-1].records, bytes):
        return b"".join(bytes(batch.records) for batch in batches)
    return [record for batch in batches for record in batch.records]


def _state(body: bytes) -> dict[str, Any]:
    try:
        return msgspec.convert(decode(body), dict[str, Any])
    except (NotJSON, msgspec.ValidationError) as error:
        raise BadAnswer(f"the answer is not the state of a session: {error}") from error


def _snapshot(body: bytes) -> Snapshot:
    with suppress(msgspec.DecodeError, UnicodeError, RecursionError):
        return _snapshots.decode(body)
    try:  # what msgspec alone refuses
        return msgspec.convert(decode(body), Snapshot)
    except (NotJSON, msgspec.ValidationError) as error:
        raise BadAnswer(f"the answer is not the messages of a session: {error}") from error


def _texts(answer: Response) -> Texts:
    next_offset = answer.headers.get(STREAM_NEXT_OFFSET)
    if next_offset is None:
        raise BadAnswer("a page does not say where it ends")
    try:
        return Texts(texts_of(answer.body), next_offset)
    except NotJSON as error:
        raise BadAnswer(f"a page is no array of records: {error}") from error
