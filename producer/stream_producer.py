"""The idempotent producer of one raw stream, as an asynchronous context manager (PROTOCOL.md 5.2.1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import Any, Final, Protocol, Self

import anyio

from consumer.errors import AttemptFailed, ClientError, Conflict, Fenced
from consumer.transport import Transport
from consumer.wire import Code
from producer import protocol
from producer.batcher import Batch
from producer.encoding import encode, framing_of
from producer.limits import Limits
from producer.pipeline import Pipeline
from producer.protocol import Appended, Identity, StreamInfo

__all__ = ["StreamProducer"]

CLAIMS_MAX: Final = 10
"""Epochs that are tried in a row. More than a few others that claim the same id at once are a mistake, no restart."""


class Head(Protocol):
    """What tells how a stream stands."""

    async def head(self, stream: str) -> StreamInfo: ...


class StreamProducer:
    """Append inside `async with`; made by `Streams.producer`.

    Order and completeness: records become durable in the order in which they were appended, each once, with none
    missing before one that is there. Sending goes on in the background, in batches, several of them under way at once;
    `append` returns before a record is durable, `flush` and `close` return after.

    Leaving the context sends everything that was appended, however it is left, within `finish_timeout_s`; no
    cancellation cuts it short. The stream stays open unless it was closed. An error of the ending is raised when the
    context is left normally, unless a call had raised it before; otherwise it is added to the exception under way as a
    note, and is in `error`.

    Another life of this producer may shut this one out by a higher epoch. Then `fenced` is set, and every call raises
    Fenced. Entering raises NotFound and whatever else `Streams.head` raises, if the content type was not given.
    """

    def __init__(
        self,
        streams: Head,
        url: str,
        identity: Identity,
        *,
        transport: Transport,
        limits: Limits,
        start: Callable[[Pipeline[Any]], None],
        content_type: str | None,
        auto_claim: bool,
    ) -> None:
        self._streams = streams
        self._url = url
        self._identity = identity
        self._transport = transport
        self._limits = limits
        self._start = start
        self._content_type = content_type
        self._auto_claim = auto_claim
        self._entered: _Posts | None = None

    @property
    def producer_id(self) -> str:
        return self._identity.producer_id

    @property
    def epoch(self) -> int:
        """As it was given, or as it was claimed by the first batch."""
        return self._identity.epoch if self._entered is None else self._entered.epoch

    @property
    def receipt(self) -> Appended | None:
        """The newest acknowledgement with everything before it acknowledged; None before the first."""
        return self._posts.receipt

    @property
    def durable_records(self) -> int:
        """How many of the appended records, or pieces, are known to be durable."""
        return self._posts.chunks_acked

    @property
    def fenced(self) -> anyio.Event:
        """Set as soon as it is known that another has taken its place; `error` then says who."""
        return self._posts.fenced

    @property
    def error(self) -> ClientError | None:
        """Why it can go no further; None while it can, and after an ending that went well."""
        return self._posts.error

    async def append(self, data: Any) -> None:
        """Queue one record of a JSON stream (any JSON value), or a piece of bytes or text.

        Waits while the buffer is full; when cancelled, it is not queued. No bytes at all are nothing to append. Raises
        TypeError if it cannot be encoded and ChunkTooLarge if it is above the limit; neither does harm. Raises Fenced,
        Gap, Closed or another Refused, Unavailable or BadAnswer if something earlier could not be delivered (nothing
        more can be appended), Finished after `close`.
        """
        encoded = self._encoded(data)
        if encoded is not None:
            await self._posts.put(encoded)

    def append_nowait(self, data: Any) -> None:
        """As `append`, but raises BufferFull instead of waiting; it is then not queued."""
        encoded = self._encoded(data)
        if encoded is not None:
            self._posts.put_nowait(encoded)

    async def flush(self) -> Appended | None:
        """Wait until everything appended before the call is durable; the newest receipt, None if there was nothing.

        Raises what `append` raises, and Unavailable if it took longer than `flush_timeout_s`; the sending goes on.
        """
        return await self._posts.flush()

    async def close(self, *records: Any) -> Appended:
        """Close the stream behind everything that was appended, and these last records in the same step.

        Returns when all of it is durable. Raises what `append` raises, and Unavailable if it took longer than
        `finish_timeout_s`.
        """
        self._posts.check()
        self._posts.close([encode(self._type, record) for record in records])
        await self._posts.over.wait()
        self._posts.raise_error()
        assert self.receipt is not None
        return self.receipt

    async def __aenter__(self) -> Self:
        if self._entered is not None:
            raise RuntimeError("a producer of a stream can be entered once; make another, with a higher epoch")
        if self._content_type is None:
            self._content_type = (await self._streams.head(self._url)).content_type
        self._entered = _Posts(
            self._transport,
            self._limits,
            self._url,
            self._identity,
            content_type=self._content_type,
            auto_claim=self._auto_claim,
        )
        self._start(self._entered)
        return self

    async def __aexit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._posts.abort()
        await self._posts.leave(error)

    @property
    def _posts(self) -> _Posts:
        if self._entered is None:
            raise RuntimeError("use the producer of a stream inside 'async with'")
        return self._entered

    @property
    def _type(self) -> str:
        assert self._content_type is not None
        return self._content_type

    def _encoded(self, data: Any) -> bytes | None:
        """As it is to be queued; None if there is nothing to append."""
        self._posts.check()
        return encode(self._type, data) or None


class _Posts(Pipeline[Appended]):
    """What is appended to one stream, on its way."""

    def __init__(
        self,
        transport: Transport,
        limits: Limits,
        url: str,
        identity: Identity,
        *,
        content_type: str,
        auto_claim: bool,
    ) -> None:
        name = f"the producer {identity.producer_id} of {url}"
        super().__init__(name, limits, framing_of(content_type), next_seq=identity.seq)
        self._transport = transport
        self._url = url
        self._identity = identity
        self._content_type = content_type
        self._claims = auto_claim
        self._uncertain = False
        """The first batch may have been accepted in this epoch by an attempt that had no answer."""

    @property
    def epoch(self) -> int:
        return self._identity.epoch

    def close(self, records: list[bytes]) -> None:
        """Queue the close, with the last records."""
        body = self._framing.body(records) if records else b""
        self.end(Batch(body, len(records), sum(map(len, records)), last=True, since_s=anyio.current_time()))

    def abort(self) -> None:
        """Nothing more comes; what was appended is sent."""
        if not self.closing and self.error is None:
            self.end()

    async def _post(self, seq: int, batch: Batch) -> Appended:
        if self._claims and self.receipt is None:
            return await self._claim(seq, batch)
        return await self._send(seq, batch)

    async def _claim(self, seq: int, batch: Batch) -> Appended:
        """Send the first batch in the first epoch that no other life holds (PROTOCOL.md 5.2.1, auto-claim).

        Nothing else is under way. Another life shows by a fence, by other bytes under this seq, or by a duplicate of
        what was never sent. After an attempt without an answer a fence is final: the batch may be in the log already,
        and in another epoch it would come a second time.
        """
        for _ in range(CLAIMS_MAX):
            try:
                receipt = await self._send(seq, batch)
            except AttemptFailed as error:
                self._uncertain = self._uncertain or error.effect_unknown
                raise
            except Fenced as fence:
                if self._uncertain or fence.current_epoch is None:
                    raise
                self._take_epoch(fence.current_epoch + 1)
            except Conflict as conflict:
                if conflict.code != Code.PAYLOAD_MISMATCH:
                    raise
                self._take_epoch(self.epoch + 1)
            else:
                if self._uncertain or not receipt.duplicate:
                    return receipt
                self._take_epoch(self.epoch + 1)
        raise Fenced(f"{CLAIMS_MAX} epochs in a row were taken by others", current_epoch=self.epoch)

    def _take_epoch(self, epoch: int) -> None:
        self._identity = replace(self._identity, epoch=epoch)
        self._uncertain = False

    async def _send(self, seq: int, batch: Batch) -> Appended:
        identity = replace(self._identity, seq=seq)
        request = protocol.append(
            self._url, batch.body, content_type=self._content_type, closes=batch.last, identity=identity
        )
        return protocol.appended(await self._transport.send(request), identity, is_close_only=not batch.body)
