"""The model broker's raw streams: the protocol's rules of writing with dicts, told by status and headers alone.

It states no codes, as any other server of the protocol; and like most of them it takes (producer, epoch, seq) for a
duplicate without a look at the bytes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tests.producer.model import ModelBroker


@dataclass
class Stream:
    content_type: str
    data: bytes = b""
    records: list[Any] = field(default_factory=list)
    closed: bool = False
    stream_seq: str = ""
    producers: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Epoch and seq of the newest batch, by id."""

    def add(self, body: bytes) -> None:
        if self.content_type == "application/json":
            value = json.loads(body) if body else []
            self.records += value if isinstance(value, list) else [value]
        self.data += body

    @property
    def headers(self) -> dict[str, str]:
        closed = {"stream-closed": "true"} if self.closed else {}
        return {"stream-next-offset": f"{len(self.data):08}", "content-type": self.content_type, **closed}


class StreamsModel(ModelBroker):
    """`streams` is what readers would see; faults are those of the model broker."""

    def __init__(self) -> None:
        super().__init__()
        self.streams: dict[str, Stream] = {}
        self.headers: list[dict[str, str]] = []
        self.queries: list[dict[str, str]] = []

    def app(self) -> Starlette:
        methods = ["PUT", "POST", "DELETE", "HEAD"]
        return Starlette(routes=[Route("/v1/stream/{path:path}", self._faulty(self._answered), methods=methods)])

    def _answered(self, request: Request, body: bytes) -> Response:
        self.headers.append(dict(request.headers))
        self.queries.append(dict(request.query_params))
        path = request.path_params["path"]
        if request.method == "PUT":
            return self._put(path, request, body)
        stream = self.streams.get(path)
        if stream is None:
            return Response(status_code=404)
        if request.method == "DELETE":
            del self.streams[path]
            return Response(status_code=204)
        return Response(headers=stream.headers) if request.method == "HEAD" else post(stream, request, body)

    def _put(self, path: str, request: Request, body: bytes) -> Response:
        known = self.streams.get(path)
        if known is None:
            known = self.streams[path] = Stream(request.headers["content-type"])
            known.add(body)
            known.closed = "stream-closed" in request.headers
            return Response(status_code=201, headers=known.headers)
        same = known.content_type == request.headers["content-type"]
        return Response(status_code=200 if same else 409, headers=known.headers if same else {})


def post(stream: Stream, request: Request, body: bytes) -> Response:
    headers = request.headers
    writer, epoch, seq = headers.get("producer-id"), headers.get("producer-epoch"), headers.get("producer-seq")
    identity = (int(epoch), int(seq)) if epoch and seq else None
    known = stream.producers.get(writer or "", (0, -1))
    echo = {"producer-epoch": epoch or "", "producer-seq": seq or ""} if identity else {}
    if identity and identity[0] == known[0] and identity[1] <= known[1]:
        return Response(status_code=204, headers={**stream.headers, **echo})
    if stream.closed and not (not body and not identity):
        return Response(status_code=409, headers=stream.headers)
    if identity and identity[0] < known[0]:
        return Response(status_code=403, headers={"producer-epoch": str(known[0])})
    if identity and identity[0] == known[0] and identity[1] > known[1] + 1:
        gap = {"producer-expected-seq": str(known[1] + 1), "producer-received-seq": str(identity[1])}
        return Response(status_code=409, headers=gap)
    if "stream-seq" in headers:
        if headers["stream-seq"] <= stream.stream_seq:
            return Response(status_code=409)
        stream.stream_seq = headers["stream-seq"]
    if body and headers["content-type"] != stream.content_type:
        return Response(status_code=409)
    stream.add(body)
    stream.closed = stream.closed or "stream-closed" in headers
    if identity:
        stream.producers[writer or ""] = identity
    return Response(status_code=200 if identity and body else 204, headers={**stream.headers, **echo})
