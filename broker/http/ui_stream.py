"""`GET /v1/sessions/{sid}/ui-stream`: an answer for the AI SDK's `useChat`, from its first chunk and then live.

What `HttpChatTransport` of `ai` 7 reads (its `ui-message-stream-headers.ts` and `json-to-sse-transform-stream.ts`):

data: {"type":"start","messageId":ID}    first, whatever the writer began with; ID is the session's own message id
data: CHUNK                              as the writer spelled it, one event each
data: {"type":"abort","reason":…}        or {"type":"error","errorText":…}, where the generation did not complete
data: [DONE]

That client takes any end of a body for the end of the answer, `[DONE]` or not. So a connection that ends before the
generation does is cut off in the middle of its body: `useChat` calls that a disconnect, and resumes.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Final

import msgspec

from broker import limits
from broker.core.page import Page, before, records
from broker.core.state import Generation, Stream
from broker.errors import Unavailable
from broker.http import caching, sse
from broker.http.live_readers import LiveReaders
from broker.http.problems import BadRequest, answer_with, problem
from broker.http.reads import SSE_HEADERS, position_of
from broker.http.request import Request, parameters_of
from broker.http.response import CutOff, Header, LiveResponse, Response
from broker.http.session_routes import Target, require_id
from broker.http.ui_events import DONE, FORMAT, Answer, Conversion, GenerationRecord, frame_of, gone_frame, opening_in
from broker.partitions import Partitioned
from broker.settings import Settings
from consumer.fold import FORMATS
from consumer.wire import Code

_HEADERS: Final[list[Header]] = [*SSE_HEADERS, (b"x-vercel-ai-ui-message-stream", b"v1")]
_LOOK_BACK_RECORDS: Final = 64
"""How far the first step goes back beyond an answer's own records; each further step goes four times as far."""


class UIStreams:
    """The endpoint, over one partition."""

    def __init__(
        self, partition: Partitioned, settings: Settings, live: LiveReaders, life_s: float = limits.UI_STREAM_LIFE_S
    ) -> None:
        self._partition = partition
        self._settings = settings
        self._live = live
        self._life_s = life_s
        self._frames = sse.FrameCache(limits.UI_STREAM_CACHE_BYTES)
        # By (incarnation, generation id), while somebody reads them.
        self._conversions: dict[tuple[int, str], Conversion] = {}

    async def get(self, request: Request, target: Target) -> Response | LiveResponse:
        """The answer that runs in `lane`; 204 when none does.

        With `offset`, the first answer of the lane that was opened at or behind it, running or over; 204 when none has
        been after `Settings.long_poll_s`. Raises BadRequest, Overloaded, Unavailable.
        """
        lane, offset = _parameters(request)
        session = await self._partition.session(target.path)
        stream = await self._partition.stream(target.path)  # after the session, so that its tail lies behind all of it
        if session is None or stream is None or stream.deleted:
            return _not_found(request, target)
        self._live.require_room()
        if offset is not None:
            answer = await self._next_answer(target.path, stream, position_of(offset, stream), lane)
        else:
            running = next((generation for generation in session.open if generation.lane == lane), None)
            answer = None if running is None else await self._running_answer(target.path, stream, running)
        if answer is None:
            return Response(204, [caching.NO_STORE])
        if answer.format not in FORMATS:  # a newer broker has opened it
            raise BadRequest(Code.UNKNOWN_FORMAT, f"the answer is written in {answer.format}")
        return LiveResponse(list(_HEADERS), self._events(answer))

    # -- where an answer begins --------------------------------------------------------------------------------------

    async def _next_answer(self, path: str, stream: Stream, position: int, lane: str) -> Answer | None:
        """The first answer of the lane opened at or behind `position`, waited for; None when the time is up."""
        incarnation, ends_at = stream.incarnation, _clock() + self._settings.long_poll_s
        with self._live.counted("ui-stream"):
            while True:
                async for at, record in self._records(path, stream, position, stream.tail):
                    opened = opening_in(record)
                    if opened is not None and opened.value.lane == lane:
                        return await self._from_its_start(path, stream, at, opened)
                position, left_s = stream.tail, ends_at - _clock()
                if left_s <= 0 or self._partition.draining:
                    return None
                await self._partition.wait(path, incarnation, position, left_s)
                stream = await self._same_life(path, incarnation)

    async def _running_answer(self, path: str, stream: Stream, running: Generation) -> Answer:
        # At least its own chunks lie behind the record that opened it.
        before_position = stream.tail - running.chunks
        at, opened = await self._opening_of(path, stream, running.generation_id, before_position)
        return await self._from_its_start(path, stream, at, opened)

    async def _from_its_start(self, path: str, stream: Stream, at: int, opening: GenerationRecord) -> Answer:
        """The answer of the generation opened at `at`: it begins where the first one began that this one continues."""
        told, first = opening.value, opening.value
        while first.continues:
            at, earlier = await self._opening_of(path, stream, first.continues, at)
            first = earlier.value
        return Answer(path, stream.incarnation, at, opening.key, told.message_id, told.format)

    async def _opening_of(
        self, path: str, stream: Stream, generation_id: str, end: int
    ) -> tuple[int, GenerationRecord]:
        """The record that opened a generation, and its position, which lies below `end`.

        Looked for backwards in steps that grow: what it costs depends on the answer, not on the session before it.
        """
        step = _LOOK_BACK_RECORDS
        while end > 0:
            start = max(0, end - step)
            async for at, record in self._records(path, stream, start, end):
                opened = opening_in(record)
                if opened is not None and opened.key == generation_id:
                    return at, opened
            end, step = start, step * 4
        raise Unavailable(f"the start of generation {generation_id} could not be read just now")

    async def _records(self, path: str, stream: Stream, start: int, end: int) -> AsyncIterator[tuple[int, bytes]]:
        """The records [start, end) of the stream with their positions. Raises Unavailable."""
        while start < end:
            page = before(await self._page(path, stream, start), end)
            for at, record in enumerate(records(page), page.start):
                yield at, record
            start = page.end

    async def _page(self, path: str, stream: Stream, position: int) -> Page:
        page = await self._partition.read(path, stream, position, limits.UI_STREAM_READ_BYTES)
        if page is None:
            raise Unavailable("what was stored could not be read just now")
        return page

    async def _same_life(self, path: str, incarnation: int) -> Stream:
        stream = await self._partition.stream(path)
        if stream is None or stream.deleted or stream.incarnation != incarnation:
            raise BadRequest(Code.OFFSET_GONE, "the session was deleted or reset")
        return stream

    # -- telling it --------------------------------------------------------------------------------------------------

    async def _events(self, answer: Answer) -> AsyncGenerator[bytes]:
        """All of the answer, then what comes; ends with its generation.

        Raises CutOff when the broker cannot or may not go on before that: the same answer can be asked for again.
        """
        # Not all at once: readers that came together after a restart would else come back together for ever.
        ends_at = _clock() + self._life_s * random.uniform(0.9, 1.1)  # noqa: S311 -- it spreads load, it guards nothing
        position, begun, told_at = answer.start, False, _clock()
        with self._live.counted("ui-stream"), self._conversion(answer) as conversion:
            while True:
                stream = await self._partition.stream(answer.path)
                if stream is None or stream.deleted or stream.incarnation != answer.incarnation:
                    yield gone_frame(answer, begun=begun)
                    return
                try:
                    frame, position = await self._frame(answer, conversion, stream, position, begun=begun)
                except Unavailable:
                    raise CutOff from None
                begun = begun or bool(frame)
                now = _clock()
                if frame or now - told_at >= self._settings.sse_keepalive_s:
                    told_at = now
                    yield frame or sse.KEEP_ALIVE
                if frame.endswith(DONE):
                    return
                if self._partition.draining or now >= ends_at:
                    raise CutOff
                if position < stream.tail:
                    await asyncio.sleep(0)  # whoever is far behind takes turns with everybody else
                else:
                    until = min(ends_at, told_at + self._settings.sse_keepalive_s)
                    await self._partition.wait(answer.path, answer.incarnation, position, max(0.0, until - now))

    async def _frame(
        self, answer: Answer, conversion: Conversion | None, stream: Stream, position: int, *, begun: bool
    ) -> tuple[bytes, int]:
        """What the next records tell of the answer, maybe nothing, and the position behind them. Raises Unavailable.

        All readers of an answer begin at the same record, so `begun` is the same for all that stand at `position`, and
        what is encoded for one of them serves every other.
        """
        if conversion is not None:
            return await self._converted(answer, conversion, stream, position)
        if position >= stream.tail:
            return b"", position
        page = await self._page(answer.path, stream, position)
        key = (answer.incarnation, page.start, page.end, answer.generation_id)
        frame = self._frames.get(key)
        if frame is None:
            frame = frame_of(answer, records(page), begun=begun)
            if frame:  # the cache is bounded by bytes
                self._frames.put(key, frame)
        return frame, page.end

    async def _converted(
        self, answer: Answer, conversion: Conversion, stream: Stream, position: int
    ) -> tuple[bytes, int]:
        async with conversion.lock:
            if position not in conversion.frames and position < stream.tail:
                page = await self._page(answer.path, stream, position)
                conversion.take(page.start, page.end, records(page))
            return conversion.frames_from(position, limits.UI_STREAM_READ_BYTES)

    @contextmanager
    def _conversion(self, answer: Answer) -> Iterator[Conversion | None]:
        """The conversion of the answer, for as long as this lasts; None where there is nothing to convert."""
        if answer.format == FORMAT:
            yield None
            return
        key = (answer.incarnation, answer.generation_id)
        conversion = self._conversions.get(key)
        if conversion is None:
            conversion = self._conversions[key] = Conversion(answer)
        conversion.readers += 1
        try:
            yield conversion
        finally:
            conversion.readers -= 1
            if not conversion.readers:
                del self._conversions[key]


# -- requests ----------------------------------------------------------------------------------------------------


def _parameters(request: Request) -> tuple[str, str | None]:
    """The lane and the offset that are asked for."""
    parameters = parameters_of(request.query)
    if not parameters.keys() <= {"lane", "offset"}:
        raise BadRequest(Code.INVALID_PARAMETER, "known here: lane, offset")
    lane = parameters.get("lane", "main")
    require_id(lane, "lane", Code.INVALID_PARAMETER)
    return lane, parameters.get("offset")


def _not_found(request: Request, target: Target) -> Response:
    told = problem(Code.SESSION_NOT_FOUND, request_id=request.request_id)
    return answer_with(msgspec.structs.replace(told, session_id=target.session_id))


def _clock() -> float:
    return asyncio.get_running_loop().time()
