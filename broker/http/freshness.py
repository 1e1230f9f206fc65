"""What a node of a cluster says of others' writes: a little late, yes; that there is nothing, only when it is sure.

Whoever created a session through one node may read it through the next a moment later. What that one has applied so far
is a state that was, so what it finds may be told; that it finds nothing, or an end, may be its own delay. Catching up
costs a record in the log, which all share who ask at the same time: so only these reads do, and only where they look.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from broker.http.endpoint import Respond
from broker.http.problems import BadRequest
from broker.http.request import Receive, Request
from broker.http.response import LiveResponse, Response
from consumer.wire import STREAM_FORKED_FROM, Code

_READS: Final = frozenset({"GET", "HEAD"})
_MISSING: Final = frozenset({204, 404, 410})
_MISSING_CODES: Final = frozenset(
    {
        Code.NOT_FOUND,
        Code.STREAM_NOT_FOUND,
        Code.STREAM_GONE,
        Code.SUBSCRIPTION_NOT_FOUND,
        Code.OFFSET_GONE,
        Code.INVALID_OFFSET,  # of a position that this node has not reached
    }
)


_LOOK_FIRST: Final = ("/fork", "/import")
_FORKED_FROM: Final = STREAM_FORKED_FROM.encode()


def fresh(
    respond: Respond,
    catch_up: Callable[[], Awaitable[bool]],
    catch_up_there: Callable[[Request], Awaitable[bool]] | None = None,
    *,
    looks_first: bool = False,
) -> Respond:
    """`respond`, whose reads are answered anew, by a node that has caught up, before it is said that nothing is there.

    `catch_up` is `Partitioned.catch_up`, and `catch_up_there` the same of the partition that holds what is read; None
    where that may be in any. Most writes need none of it: what they come upon is decided by the log. A node catches up
    before those that look at what is there to make their entries; all of them, where an API `looks_first`.
    """

    def caught_up(request: Request) -> Awaitable[bool]:
        return catch_up() if catch_up_there is None else catch_up_there(request)

    async def responded(request: Request, receive: Receive) -> Response | LiveResponse:
        if request.method not in _READS:
            if looks_first or _FORKED_FROM in request.headers or request.path.endswith(_LOOK_FIRST):
                await catch_up()
            return await respond(request, receive)
        if _asks_for_the_end(request) and await caught_up(request):
            return await respond(request, receive)
        try:
            response = await respond(request, receive)
        except BadRequest as error:
            if error.code in _MISSING_CODES and await caught_up(request):
                return await respond(request, receive)
            raise
        if isinstance(response, Response) and response.status in _MISSING and not _is_poll(request):
            return await respond(request, receive) if await caught_up(request) else response
        return response

    return responded


def _asks_for_the_end(request: Request) -> bool:
    """And for nothing else: an older one would pass for it. Whoever waits for more besides is told that anyway."""
    return request.method == "HEAD" or (b"offset=now" in request.query and b"live=" not in request.query)


def _is_poll(request: Request) -> bool:
    """Whether a 204 means that it was waited for."""
    return b"live=long-poll" in request.query
