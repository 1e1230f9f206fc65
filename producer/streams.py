"""Raw streams: all that the Durable Streams protocol knows of writing (PROTOCOL.md 4.2, 5.1 to 5.5)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from functools import partial
from http import HTTPStatus
from typing import Any, TypeVar

from yarl import URL

from consumer.address import source_path, stream_url
from consumer.answer import Response, check
from consumer.errors import AttemptFailed, ClientError, Conflict, Gone, NotFound, Unavailable
from consumer.retry import persist
from consumer.transport import Request, Transport
from consumer.wire import JSON
from producer import protocol
from producer.encoding import encode, framing_of
from producer.limits import Limits
from producer.pipeline import Pipeline
from producer.protocol import Appended, StreamInfo
from producer.stream_producer import StreamProducer

__all__ = ["Streams"]

T = TypeVar("T")


class Streams:
    """The streams of one broker, told by path (`logs/1`) or by URL; made by `Producer.streams`.

    What is written are records of a JSON stream (any JSON value each; an array is one record), or for any other content
    type pieces of bytes or text, which are joined. A single request here is tried until it is answered or `deadline_s`
    has passed. Its errors are those of `consumer.errors`: NotFound, Conflict, Closed, Gone, BodyTooLarge, BadRequest,
    AccessDenied as the broker answered, Unavailable and RateLimited when it did not; TypeError for a record that is no
    JSON, ValueError for what can be no stream or no header.
    """

    def __init__(
        self, broker: URL, transport: Transport, limits: Limits, start: Callable[[Pipeline[Any]], None]
    ) -> None:
        self._broker = broker
        self._transport = transport
        self._limits = limits
        self._start = start

    async def create(
        self,
        stream: str,
        *records: Any,
        content_type: str = JSON,
        ttl_s: int | None = None,
        expires_at: datetime | str | None = None,
        closed: bool = False,
    ) -> StreamInfo:
        """Create a stream, with its first records; or confirm that it is there with the same configuration.

        `ttl_s` is how long it lives without being read or written, `expires_at` when it ends in any case. With `closed`
        the records are all that it will ever hold. Raises Conflict if it is there with another configuration.
        """
        body = _body(content_type, records)
        given = protocol.create(
            self._url(stream), body, content_type=content_type, ttl_s=ttl_s, expires_at=expires_at, closed=closed
        )
        return await self._persist(given, protocol.info)

    async def fork(
        self,
        stream: str,
        source: str,
        *,
        offset: str | None = None,
        sub_offset: int | None = None,
        content_type: str | None = None,
        ttl_s: int | None = None,
        expires_at: datetime | str | None = None,
    ) -> StreamInfo:
        """Create a stream that begins with what `source` holds up to `offset` (default: its present end).

        `sub_offset` goes on from there by so many records, or bytes. The content type is the source's; naming another
        is a Conflict. Raises NotFound if there is no such source, BadRequest for a place that it has not reached.
        """
        made = protocol.create(self._url(stream), content_type=content_type, ttl_s=ttl_s, expires_at=expires_at)
        path = source_path(self._broker, source)
        return await self._persist(protocol.fork(made, path, offset=offset, sub_offset=sub_offset), protocol.info)

    async def append(
        self,
        stream: str,
        *records: Any,
        content_type: str = JSON,
        stream_seq: str | None = None,
        close: bool = False,
    ) -> Appended:
        """Append these records in one batch; with `close` they are the last, in the same step.

        Nothing tells a second copy of such an append from the first. So when an attempt may have had its effect (the
        connection was lost after it left, or a 5xx other than 503), it is not repeated: Unavailable is raised at once,
        and whether the records are there is for the caller to find out. With `stream_seq`, which has to be above that
        of the append before, it is repeated: if the first copy did arrive, that ends in a Conflict
        (`STREAM_SEQ_REGRESSION`) with a note that says so. For exactly once use `producer`.

        Raises Closed if the stream is closed, Conflict for another content type than the stream's.
        """
        if not records and not close:
            raise ValueError("an append needs at least one record")
        request = protocol.append(
            self._url(stream),
            _body(content_type, records),
            content_type=content_type,
            stream_seq=stream_seq,
            closes=close,
        )
        once = _Once(repeatable=stream_seq is not None or not request.body)
        return await self._persist(request, protocol.appended, once)

    async def close(self, stream: str) -> Appended:
        """Close a stream: it takes no more, and its readers learn where it ends. Closed already is a success."""
        return await self.append(stream, close=True)

    async def delete(self, stream: str) -> None:
        """Delete a stream. While it has forks only they can read on, and it is Gone.

        Raises NotFound or Gone if it was not there, unless an attempt before may just have deleted it.
        """
        once = _Once(repeatable=True)
        try:
            await self._persist(Request("DELETE", self._url(stream)), _deleted, once)
        except (NotFound, Gone):
            if not once.uncertain:
                raise

    async def head(self, stream: str) -> StreamInfo:
        """Where a stream ends, of which type it is, whether it is closed, and how long it lives."""
        return await self._persist(Request("HEAD", self._url(stream)), protocol.info)

    def producer(
        self,
        stream: str,
        producer_id: str,
        *,
        content_type: str | None = None,
        epoch: int = 0,
        next_seq: int = 0,
        auto_claim: bool = False,
    ) -> StreamProducer:
        """An idempotent producer, to enter with `async with`: everything appended arrives once and in order.

        The broker knows it by `producer_id` and `epoch`. Every life of a producer needs an epoch of its own, above the
        one before (PROTOCOL.md 5.2.1); who cannot keep count says `auto_claim`: it begins at `epoch`, and takes the
        next one that is free when it runs into another life, shutting that one out. Who kept count of the batches as
        well goes on with `next_seq`, and has to send again what was unacknowledged, in the same batches.

        Without `content_type` entering asks the broker for it. Raises ValueError for an impossible id or number.
        """
        if auto_claim and next_seq:
            raise ValueError("auto_claim begins a new epoch, with seq 0")
        identity = protocol.Identity(producer_id, epoch, next_seq)
        return StreamProducer(
            self,
            self._url(stream),
            identity,
            transport=self._transport,
            limits=self._limits,
            start=self._start,
            content_type=content_type,
            auto_claim=auto_claim,
        )

    def _url(self, stream: str) -> str:
        return str(stream_url(self._broker, stream))

    async def _persist(self, request: Request, read: Callable[[Response], T], once: _Once | None = None) -> T:
        async def attempt() -> T:
            return read(await self._transport.send(request))

        guarded = partial(once.guard, attempt) if once else attempt
        return await persist(guarded, self._limits, deadline_s=self._limits.deadline_s)


class _Once:
    """Watches the attempts of a request that must not have its effect twice."""

    def __init__(self, *, repeatable: bool) -> None:
        self.uncertain = False
        """An attempt may have had its effect."""
        self._repeatable = repeatable

    async def guard(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Raises Unavailable instead of AttemptFailed where another attempt could be one too many."""
        try:
            return await attempt()
        except AttemptFailed as error:
            self.uncertain = self.uncertain or error.effect_unknown
            if self.uncertain and not self._repeatable:
                raise Unavailable(
                    f"it may have been stored, and is not sent again ({error})",
                    unacknowledged_batches=1,
                    status=error.status,
                ) from error
            raise
        except Conflict as error:
            self._note(error)
            raise

    def _note(self, error: ClientError) -> None:
        if self.uncertain:
            error.add_note(
                "an attempt before this one had no answer and may have been stored: this may be its own copy"
            )


def _body(content_type: str, records: tuple[Any, ...]) -> bytes:
    return framing_of(content_type).body([encode(content_type, record) for record in records]) if records else b""


def _deleted(response: Response) -> None:
    check(response)
    if response.status != HTTPStatus.NO_CONTENT:
        raise AttemptFailed("the answer is not a broker's: a delete has no content", status=response.status)
