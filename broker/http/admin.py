"""`/v1/admin/…`: what an operator may change while a broker runs."""

from __future__ import annotations

import logging

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from broker.http.bodies import Bodies
from broker.http.problems import BadRequest
from broker.http.request import headers_of
from broker.partitions import Partitioned
from consumer.wire import Code

log = logging.getLogger("streamfold.admin")


class _Durability(msgspec.Struct, forbid_unknown_fields=True):
    synchronous: bool


_wanted = msgspec.json.Decoder(_Durability).decode


def routes(partition: Partitioned, bodies: Bodies) -> list[Route]:
    """Read and set how writes become durable."""

    async def read(_request: Request) -> Response:
        return _told(partition)

    async def write(request: Request) -> Response:
        body = await bodies.read(headers_of(request.scope["headers"]), request.receive)
        try:
            wanted = _wanted(body)
        except msgspec.DecodeError as error:
            raise BadRequest(Code.INVALID_BODY, f'{{"synchronous": true or false}} is expected: {error}') from None
        switch(partition, synchronous=wanted.synchronous)
        return _told(partition)

    path = "/v1/admin/durability"
    return [Route(path, read, methods=["GET"]), Route(path, write, methods=["PUT"])]


def switch(partition: Partitioned, *, synchronous: bool) -> None:
    """Give every entry a commit of its own, or let those that wait share one again. Effective at once."""
    partition.synchronous = synchronous
    log.warning("synchronous commits are %s", "on: every write has its own" if synchronous else "off")


def _told(partition: Partitioned) -> Response:
    told = {"synchronous": partition.synchronous, "durability": partition.durability}
    return JSONResponse(told, headers={"cache-control": "no-store"})
