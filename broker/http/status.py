"""`/health`, `/ready` and `/metrics`: for those who operate a broker."""

from __future__ import annotations

from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from broker import limits
from broker.partitions import Partitioned


def routes(partition: Partitioned, exposition: Callable[[], bytes], exposition_type: str) -> list[Route]:
    """The three routes."""

    async def health(_request: Request) -> Response:
        """200 while the engine acknowledges; restart the process when it does not."""
        return _told(partition.healthy, "stopped")

    async def ready(_request: Request) -> Response:
        """200 while new requests are welcome; send them elsewhere when they are not."""
        if partition.healthy and not partition.draining:
            return _told(partition.lag_s < limits.LAG_S_MAX, "behind")
        return _told(False, "draining" if partition.healthy else "stopped")  # noqa: FBT003 -- as above

    async def metrics(_request: Request) -> Response:
        return Response(exposition(), media_type=None, headers={"content-type": exposition_type})

    return [Route("/health", health), Route("/ready", ready), Route("/metrics", metrics)]


def _told(fine: bool, otherwise: str) -> Response:  # noqa: FBT001 -- a condition, named where it is given
    if fine:
        return JSONResponse({"status": "ok"}, headers={"cache-control": "no-store"})
    return JSONResponse({"status": otherwise}, 503, headers={"cache-control": "no-store", "retry-after": "1"})
