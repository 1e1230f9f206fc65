"""A small broker for the producer to speak to: the session API's rules with dicts, over real sockets, and with faults.

It is the model that the producer is judged by: `log` holds what a reader would see, in order.
"""

from __future__ import annotations

import gzip
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

import anyio
import anyio.to_thread
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

BODY_BYTES_MAX = 1024 * 1024
GATE_S_MAX = 30.0


class Fault(Enum):
    """What happens to one request."""

    REFUSE = auto()  # 503, without effect
    RESET = auto()  # the connection is cut, without effect
    LOSE_ANSWER = auto()  # it has its effect, and the connection is cut
    FAIL_AFTER = auto()  # it has its effect, and is answered 500


class Stranger(Enum):
    """Who answers one request in the broker's place, without effect."""

    LIMIT = auto()  # 429
    PORTAL = auto()  # a login page, with 200
    REDIRECT = auto()  # 307


@dataclass
class Batch:
    body: bytes
    offset: str


@dataclass
class Generation:
    """One generation, as the API's rules see it."""

    message_id: str
    options: dict[str, str]
    fence: int
    status: str = "streaming"
    reason: str | None = None
    end: dict[str, Any] = field(default_factory=dict)
    batches: list[Batch] = field(default_factory=list)
    chunks: list[Any] = field(default_factory=list)
    heartbeats: int = 0


@dataclass
class Session:
    metadata: dict[str, Any]
    messages: dict[str, tuple[dict[str, Any], str]] = field(default_factory=dict)
    generations: dict[str, Generation] = field(default_factory=dict)
    records: int = 0

    def record(self, count: int = 1) -> str:
        self.records += count
        return f"{self.records:016x}_{1:016x}"


class ModelBroker:
    """The state, and the faults to come. It outlives its server, as a data folder outlives a process."""

    def __init__(self) -> None:
        self.sessions: dict[str, Session] = {}
        self.requests: list[tuple[str, str, bytes]] = []
        """Method, path and body of everything that arrived."""
        self.seqs: list[tuple[str, int, bytes]] = []
        """Verb, seq and body of every batch that arrived."""
        self.fault: Callable[[Request], Fault | Stranger | None] = lambda _: None
        """Asked for every request, in the order of arrival."""
        self.delay_s: Callable[[Request], float] = lambda _: 0.0
        """How long a request is held up before it has its effect: lets others overtake it."""
        self.retry_after: str | None = None
        """Sent with every 503."""
        self.body_bytes_max = BODY_BYTES_MAX
        self.require_token = ""
        """Asked of every request, if there is one."""
        self.gate = threading.Event()
        """While cleared, requests wait before they have their effect."""
        self.gate.set()
        self.hold_answer: Callable[[Request], bool] = lambda _: False
        """Whether the answer waits for `answers`, after the request has had its effect."""
        self.answers = threading.Event()
        self.concurrent = 0
        self.concurrent_max = 0

    def create(self, session_id: str) -> None:
        self.sessions[session_id] = Session({})

    def log(self, session_id: str, generation_id: str) -> list[Any]:
        """The chunks of a generation as a reader would see them."""
        return self.generation(session_id, generation_id).chunks

    def generation(self, session_id: str, generation_id: str) -> Generation:
        return self.sessions[session_id].generations[generation_id]

    def expire(self, session_id: str, generation_id: str) -> None:
        """Its lease runs out."""
        generation = self.generation(session_id, generation_id)
        generation.status, generation.reason = "failed", "LEASE_EXPIRED"

    def batch(self, body: bytes) -> Batch:
        return Batch(body, "")

    def app(self) -> Starlette:
        session, generation = "/v1/sessions/{sid}", "/v1/sessions/{sid}/generations/{gid}"
        return Starlette(
            routes=[
                Route(session, self._faulty(self._create), methods=["PUT"]),
                Route(f"{session}/messages", self._faulty(self._message), methods=["POST"]),
                Route(generation, self._faulty(self._state), methods=["GET"]),
                Route(f"{generation}/chunks", self._faulty(self._append), methods=["POST"]),
                Route(f"{generation}/finish", self._faulty(self._append), methods=["POST"]),
                Route(f"{generation}/heartbeat", self._faulty(self._heartbeat), methods=["POST"]),
                Route(f"{generation}/stop", self._faulty(self._stop), methods=["POST"]),
            ]
        )

    def _faulty(self, handle: Callable[[Request, bytes], Response]) -> Callable[[Request], Any]:
        async def endpoint(request: Request) -> Response:
            coding = request.headers.get("content-encoding")
            if coding not in (None, "gzip"):  # one coding is enough for a model
                return problem(415, "UNSUPPORTED_CODING", headers={"accept-encoding": "gzip"})
            body = await request.body()
            body = gzip.decompress(body) if coding else body
            self.requests.append((request.method, request.url.path, body))
            if "producer-seq" in request.headers:
                self.seqs.append((verb_of(request), int(request.headers["producer-seq"]), body))
            self.concurrent += 1
            self.concurrent_max = max(self.concurrent_max, self.concurrent)
            try:
                return await self._answer(handle, request, body)
            finally:
                self.concurrent -= 1

        return endpoint

    async def _answer(self, handle: Callable[[Request, bytes], Response], request: Request, body: bytes) -> Response:
        fault = self.fault(request)
        if isinstance(fault, Stranger):
            return STRANGE_ANSWERS[fault]()
        if fault is Fault.RESET:
            return CutOff()
        if fault is Fault.REFUSE:
            return problem(503, "UNAVAILABLE", headers={"retry-after": self.retry_after} if self.retry_after else {})
        await anyio.sleep(self.delay_s(request))
        await anyio.to_thread.run_sync(self.gate.wait, GATE_S_MAX)
        if self.require_token and request.headers.get("authorization") != f"Bearer {self.require_token}":
            return problem(401, "TOKEN_EXPIRED")
        if len(body) > self.body_bytes_max:
            return problem(413, "BODY_TOO_LARGE")
        answer = handle(request, body)
        if self.hold_answer(request):
            await anyio.to_thread.run_sync(self.answers.wait, GATE_S_MAX)
        if fault is Fault.LOSE_ANSWER:
            return CutOff()
        return problem(500, "INTERNAL") if fault is Fault.FAIL_AFTER else answer

    def _create(self, request: Request, body: bytes) -> Response:
        given = json.loads(body or b"{}")
        sid = request.path_params["sid"]
        created = sid not in self.sessions
        session = self.sessions.setdefault(sid, Session(given.get("metadata", {})))
        if message := given.get("message"):
            known = session.messages.setdefault(message["id"], (message, session.record()))
            if known[0] != message:
                return problem(409, "MESSAGE_EXISTS")
        answer = {"sessionId": sid, "offset": session.record(0), "createdAt": "2026-01-01T00:00:00Z"}
        return JSONResponse({**answer, "created": created}, 201 if created else 200)

    def _message(self, request: Request, body: bytes) -> Response:
        session = self.sessions.get(request.path_params["sid"])
        if session is None:
            return problem(404, "SESSION_NOT_FOUND")
        message = json.loads(body)
        answer = {"messageId": message["id"], "txid": request.query_params.get("txid")}
        if known := session.messages.get(message["id"]):
            same = {**answer, "offset": known[1], "duplicate": True}
            return JSONResponse(same) if known[0] == message else problem(409, "MESSAGE_EXISTS")
        session.messages[message["id"]] = (message, session.record())
        return JSONResponse({**answer, "offset": session.record(0)}, 201)

    def _append(self, request: Request, body: bytes) -> Response:
        """The rule of the seq."""
        session = self.sessions.get(request.path_params["sid"])
        if session is None:
            return problem(404, "SESSION_NOT_FOUND")
        gid, seq = request.path_params["gid"], int(request.headers["producer-seq"])
        generation = session.generations.get(gid)
        expected = len(generation.batches) if generation else 0
        if seq < expected and generation:
            same = generation.batches[seq].body == body
            return accepted(generation, gid, seq, duplicate=True) if same else problem(409, "PAYLOAD_MISMATCH")
        if generation and generation.status != "streaming":
            return fenced(generation)
        if seq > expected:
            return problem(409, "SEQ_GAP", expectedSeq=expected, receivedSeq=seq)
        options = dict(request.query_params)
        if generation is None and options.get("onConflict") == "reject" and running_in(session, options):
            return problem(409, "LANE_BUSY")
        generation = generation or self._open(session, gid, options)
        if verb_of(request) == "finish":
            generation.end = json.loads(body or b"{}")
            generation.status = generation.end.get("status", "complete")
            generation.reason = generation.end.get("reason")
            offset = session.record()
        else:
            value = json.loads(body)
            chunks = value if isinstance(value, list) else [value]
            generation.chunks += chunks
            offset = session.record(len(chunks))
        generation.batches.append(Batch(body, offset))
        return accepted(generation, gid, seq)

    def _open(self, session: Session, gid: str, options: dict[str, str]) -> Generation:
        for other in running_in(session, options):
            other.status, other.reason = "aborted", "superseded"
        fence = len(session.generations) + 1
        generation = Generation(options.get("messageId", gid), options, fence)
        session.generations[gid] = generation
        session.record()
        return generation

    def _state(self, request: Request, _: bytes) -> Response:
        session = self.sessions.get(request.path_params["sid"])
        if session is None:
            return problem(404, "SESSION_NOT_FOUND")
        generation = session.generations.get(request.path_params["gid"])
        if generation is None:
            return problem(404, "GENERATION_NOT_FOUND")
        answer = {"status": generation.status, "fence": generation.fence, "seq": len(generation.batches) - 1}
        more = {"reason": generation.reason, "generationId": request.path_params["gid"]}
        return JSONResponse({**answer, **more, "chunks": len(generation.chunks)})

    def _heartbeat(self, request: Request, _: bytes) -> Response:
        generation = self.sessions[request.path_params["sid"]].generations.get(request.path_params["gid"])
        if generation is None:
            return problem(404, "GENERATION_NOT_FOUND")
        if generation.status != "streaming":
            return fenced(generation)
        generation.heartbeats += 1
        return JSONResponse({"generationId": request.path_params["gid"], "leaseMs": 1000})

    def _stop(self, request: Request, _: bytes) -> Response:
        session = self.sessions[request.path_params["sid"]]
        gid = request.path_params["gid"]
        generation = session.generations.get(gid)
        if generation is None:
            return problem(404, "GENERATION_NOT_FOUND")
        if generation.status == "streaming":
            generation.status, generation.reason = "aborted", "stopped"
            session.record(2)
        answer = {"generationId": gid, "status": generation.status, "reason": generation.reason}
        return JSONResponse({**answer, "offset": session.record(0)})


def running_in(session: Session, options: dict[str, str]) -> list[Generation]:
    """What runs in the lane that these options name."""
    lane = options.get("lane", "main")
    known = session.generations.values()
    return [other for other in known if other.status == "streaming" and other.options.get("lane", "main") == lane]


def verb_of(request: Request) -> str:
    return request.url.path.rpartition("/")[2]


def accepted(generation: Generation, gid: str, seq: int, *, duplicate: bool = False) -> Response:
    answer = {"generationId": gid, "messageId": generation.message_id, "lane": generation.options.get("lane", "main")}
    more = {"fence": generation.fence, "seq": seq, "offset": generation.batches[seq].offset}
    twice = {"duplicate": True} if duplicate else {}
    return JSONResponse({**answer, **more, **twice}, headers={"stream-durability": "memory"})


def fenced(generation: Generation) -> Response:
    reason = generation.reason or "finished"
    return problem(403, "FENCED", reason=reason, generationStatus=generation.status, currentEpoch=generation.fence)


def problem(status: int, code: str, headers: dict[str, str] | None = None, **facts: Any) -> Response:
    body = {"status": status, "code": code, "title": code.lower(), **facts}
    return JSONResponse(body, status, headers, media_type="application/problem+json")


class CutOff(Response):
    """The connection is closed in the middle of the answer."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  what ASGI passes
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"100")]})
        await send({"type": "http.response.body", "body": b"{", "more_body": True})
        # Returning without the rest makes the server close the connection.


@asynccontextmanager
async def serving(broker: ModelBroker, port: int | None = None) -> AsyncIterator[str]:
    """Serve it from a thread with a loop of its own, on real sockets; gives its URL. Leaving cuts every connection."""
    listener = socket.create_server(("127.0.0.1", port or 0))
    config = uvicorn.Config(broker.app(), log_level="critical", lifespan="off", timeout_graceful_shutdown=0)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        server.force_exit = True
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(thread.join)
        listener.close()


STRANGE_ANSWERS: dict[Stranger, Callable[[], Response]] = {
    Stranger.LIMIT: lambda: problem(429, "OVERLOADED", headers={"retry-after": "7"}),
    Stranger.PORTAL: lambda: Response("<html>Please log in", media_type="text/html"),
    Stranger.REDIRECT: lambda: Response(status_code=307, headers={"location": "http://127.0.0.1:1/"}),
}


def in_turn(*faults: Fault | None) -> Callable[[Request], Fault | None]:
    """These faults for the requests to come, one each; none after them."""
    left = iter(faults)
    return lambda _: next(left, None)
