"""`GET …/txids/{txid}`: wait until a write can be read by everybody.

A writer names its write by a txid of its own, and the write's records carry it. Whoever is told of the txid, in another
tab or another service, waits here until it is in the stream, and knows from which offset on a read has it.
"""

from __future__ import annotations

import asyncio
import re
from typing import Final

import msgspec

from broker import limits
from broker.core.page import Page, records
from broker.core.state import Stream
from broker.errors import Unavailable
from broker.http.live_readers import LiveReaders
from broker.http.problems import BadRequest, answer_with, problem
from broker.http.reads import position_of
from broker.http.request import Request, parameters_of
from broker.http.response import Response
from broker.http.session_answers import json_answer, not_found
from broker.http.session_routes import Target
from broker.partitions import Partitioned
from consumer.plain import JSONObject, decode
from consumer.wire import Code

_MILLISECONDS: Final = re.compile(r"[0-9]{1,9}", re.ASCII)


class Txids:
    """See the module."""

    def __init__(self, partition: Partitioned, live: LiveReaders) -> None:
        self._partition = partition
        self._live = live

    async def get(self, request: Request, target: Target) -> Response:
        """The offset behind a record with the txid, or 504. Raises BadRequest, Overloaded, Unavailable."""
        timeout_s, offset = _parameters(request)
        stream = await self._partition.stream(target.path)
        if stream is None or stream.deleted:
            return not_found(Code.SESSION_NOT_FOUND, request, Target(target.session_id))
        self._live.require_room()
        with self._live.counted("long-poll"):
            found = await self._find(target, stream, position_of(offset, stream), timeout_s)
        if found is None:
            told = problem(Code.TXID_TIMEOUT, f"not within {timeout_s:g} s", request_id=request.request_id)
            return answer_with(msgspec.structs.replace(told, session_id=target.session_id))
        found_at = stream.offset(found)
        return json_answer({"sessionId": target.session_id, "txid": target.part_id, "offset": found_at})

    async def _find(self, target: Target, stream: Stream, position: int, timeout_s: float) -> int | None:
        """Where the stream stands behind a record with the txid, from `position` on; None when the time is up."""
        loop, life = asyncio.get_running_loop(), stream.incarnation
        ends_at = loop.time() + timeout_s
        while True:
            while position < stream.tail:
                page = await self._partition.read(target.path, stream, position, limits.READ_BYTES_MAX)
                if page is None:
                    raise Unavailable("what was stored could not be read just now")
                found = _behind(page, target.part_id)
                if found is not None:
                    return found
                position = page.end
                await asyncio.sleep(0)
            left_s = ends_at - loop.time()
            if left_s <= 0:
                return None
            if self._partition.draining:
                raise Unavailable("the broker is shutting down")
            await self._partition.wait(target.path, life, position, left_s)
            now = await self._partition.stream(target.path)
            if now is None or now.deleted or now.incarnation != life:
                raise BadRequest(Code.OFFSET_GONE, "the session was deleted or reset")
            stream = now


def _behind(page: Page, txid: str) -> int | None:
    """The position behind the last record of a page that carries the txid.

    A chunk may say anything, the very bytes of a txid too: only what the headers say counts.
    """
    spelled = b'"txid":"%b"' % txid.encode()
    if spelled not in page.data:
        return None
    end = page.end
    for record in reversed(records(page)):
        if spelled in record and _txid_of(record) == txid:
            return end
        end -= 1
    return None


def _txid_of(record: bytes) -> object:
    told = decode(record)
    headers: JSONObject = told["headers"] if isinstance(told, dict) and isinstance(told["headers"], dict) else {}
    return headers.get("txid")


def _parameters(request: Request) -> tuple[float, str | None]:
    parameters = parameters_of(request.query)
    if not parameters.keys() <= {"timeoutMs", "offset"}:
        raise BadRequest(Code.INVALID_PARAMETER, "known here: timeoutMs, offset")
    text = parameters.get("timeoutMs", str(limits.TXID_WAIT_MS))
    highest = round(limits.LONG_POLL_S * 1000)
    if _MILLISECONDS.fullmatch(text) is None or int(text) > highest:
        raise BadRequest(Code.INVALID_PARAMETER, f"timeoutMs: 0 to {highest}")
    return int(text) / 1000, parameters.get("offset")
