"""Refusals as HTTP: one table from error code to status, one form of answer (RFC 9457)."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import Final, NamedTuple

import msgspec

from broker.errors import BrokerError, EngineStopped, Overloaded
from broker.http.response import Header, Response
from consumer.wire import PROBLEM_JSON, Code, Problem


class BadRequest(Exception):
    """The request cannot become an entry or a read, now or later: an answer by its code, and nothing has changed."""

    def __init__(self, code: Code, detail: str = "", *, headers: tuple[Header, ...] = ()) -> None:
        super().__init__(code, detail)
        self.code = code
        self.detail = detail
        self.headers = headers


class Standing(NamedTuple):
    """What a code means in HTTP. `retryable`: the same request may succeed later."""

    status: int
    title: str
    retryable: bool = False


standing_of: Final[dict[Code, Standing]] = {
    Code.INVALID_BODY: Standing(400, "The body does not have the expected form"),
    Code.INVALID_JSON: Standing(400, "The body is not valid JSON"),
    Code.EMPTY_BODY: Standing(400, "The body is empty"),
    Code.EMPTY_ARRAY: Standing(400, "The array holds no record"),
    Code.INVALID_HEADER: Standing(400, "A header is not valid"),
    Code.INVALID_PRODUCER: Standing(400, "The producer headers are not valid"),
    Code.EPOCH_START: Standing(400, "A new epoch begins with seq 0"),
    Code.INVALID_OFFSET: Standing(400, "The offset is not valid"),
    Code.INVALID_PARAMETER: Standing(400, "A parameter is not valid"),
    Code.INVALID_PATH: Standing(400, "The path is not valid"),
    Code.INVALID_CONTENT_TYPE: Standing(400, "The content type is missing or not valid"),
    Code.UNKNOWN_FORMAT: Standing(400, "The chunk format is not known"),
    Code.INVALID_REQUEST: Standing(400, "The request does not have the expected form"),
    Code.WEBHOOK_URL_REJECTED: Standing(400, "The webhook's URL may not be called"),
    Code.TOKEN_INVALID: Standing(401, "The token is not valid"),
    Code.TOKEN_EXPIRED: Standing(401, "The token has expired"),
    Code.METHOD_NOT_ALLOWED: Standing(405, "The method is not allowed here"),
    Code.BODY_TOO_LARGE: Standing(413, "The body is too large"),
    Code.UNSUPPORTED_CODING: Standing(415, "The content coding is not known"),
    Code.UPGRADE_REQUIRED: Standing(426, "This is spoken over a WebSocket"),
    Code.NOT_FOUND: Standing(404, "There is nothing here"),
    Code.STREAM_NOT_FOUND: Standing(404, "There is no such stream"),
    Code.SESSION_NOT_FOUND: Standing(404, "There is no such session"),
    Code.GENERATION_NOT_FOUND: Standing(404, "There is no such generation"),
    Code.MESSAGE_NOT_FOUND: Standing(404, "There is no such message"),
    Code.SUBSCRIPTION_NOT_FOUND: Standing(404, "There is no such subscription"),
    Code.OFFSET_GONE: Standing(410, "The offset belongs to an earlier life of the stream"),
    Code.STREAM_GONE: Standing(410, "The stream was deleted"),
    Code.STREAM_CLOSED: Standing(409, "The stream is closed"),
    Code.STREAM_EXISTS: Standing(409, "A stream with another configuration exists"),
    Code.FORK_SOURCE_GONE: Standing(409, "The source of the fork was deleted"),
    Code.CONTENT_TYPE_MISMATCH: Standing(409, "The stream has another content type"),
    Code.STREAM_SEQ_REGRESSION: Standing(409, "Stream-Seq does not rise"),
    Code.PAYLOAD_MISMATCH: Standing(409, "This seq was accepted with other content"),
    Code.MESSAGE_EXISTS: Standing(409, "A different message has this id"),
    Code.SESSION_EXISTS: Standing(409, "A session with other content exists"),
    # Not retryable by itself: what lies before it has to be sent first.
    Code.SEQ_GAP: Standing(409, "Batches before this one are missing"),
    Code.LANE_BUSY: Standing(409, "Another generation is running in the lane"),
    Code.GENERATION_MISMATCH: Standing(409, "The generation is another one than this says"),
    Code.FORK_TOO_LARGE: Standing(409, "There is too much before the fork position"),
    Code.LOST_CHUNKS: Standing(409, "Batches that were accepted are lost"),
    Code.SUBSCRIPTION_ALREADY_EXISTS: Standing(409, "A subscription with another configuration exists"),
    Code.ALREADY_CLAIMED: Standing(409, "Another worker holds the lease"),
    Code.NO_PENDING_WORK: Standing(409, "There is nothing to do"),
    Code.FENCED: Standing(403, "A newer writer has taken over"),
    Code.TXID_TIMEOUT: Standing(504, "No record has this txid yet", retryable=True),
    Code.TOO_MANY_FORKS: Standing(429, "The source has too many forks", retryable=True),
    Code.TOO_MANY_PRODUCERS: Standing(429, "The stream has too many producers", retryable=True),
    Code.TOO_MANY_GENERATIONS: Standing(429, "Too many generations are open", retryable=True),
    Code.TOO_MANY_LANES: Standing(429, "The session has too many lanes", retryable=True),
    Code.TOO_MANY_LINKS: Standing(429, "The subscription has too many streams", retryable=True),
    Code.TOO_MANY_SUBSCRIPTIONS: Standing(429, "There are too many subscriptions", retryable=True),
    Code.OVERLOADED: Standing(503, "The broker is overloaded", retryable=True),
    Code.UNAVAILABLE: Standing(503, "The broker is unavailable", retryable=True),
    Code.ENGINE_STOPPED: Standing(503, "The engine has stopped", retryable=True),
    Code.WRITE_FAILED: Standing(503, "The chunks could not be written", retryable=True),
    Code.FINISH_FAILED: Standing(503, "The generation could not be finished", retryable=True),
    Code.INTERNAL: Standing(500, "Internal error", retryable=True),
}

RETRY_AFTER_MS: Final = 1_000
"""When to come back where nothing better is known: a client that is told nothing comes back at once."""

_encode = msgspec.json.Encoder().encode


def problem(code: Code, detail: str = "", *, request_id: str = "", retry_after_ms: int | None = None) -> Problem:
    """The problem for `code`; the caller adds the facts that it knows."""
    standing = standing_of[code]
    if retry_after_ms is None and standing.retryable:
        retry_after_ms = RETRY_AFTER_MS
    return Problem(
        status=standing.status,
        code=code.value,
        title=standing.title,
        detail=detail,
        request_id=request_id,
        retryable=standing.retryable,
        retry_after_ms=retry_after_ms,
    )


def answer_with(problem: Problem, headers: tuple[Header, ...] = ()) -> Response:
    """A problem as a response."""
    body = _encode(problem)
    told = [
        (b"content-type", PROBLEM_JSON.encode()),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
        *headers,
    ]
    if problem.retry_after_ms is not None:
        told.append((b"retry-after", b"%d" % ceil(problem.retry_after_ms / 1000)))
    return Response(problem.status, told, body)


Form = Callable[[Problem, tuple[Header, ...]], Response]
"""How a problem is told: `answer_with`, but where the protocol has a form of its own."""


def answer_bad_request(error: BadRequest, request_id: str, form: Form = answer_with) -> Response:
    """What a request gets that made no sense."""
    return form(problem(error.code, error.detail, request_id=request_id), error.headers)


def answer_broker_error(error: BrokerError, request_id: str, form: Form = answer_with) -> Response:
    """What a request gets when the broker could not do its part: always 503."""
    code = Code.UNAVAILABLE
    if isinstance(error, Overloaded):
        code = Code.OVERLOADED
    elif isinstance(error, EngineStopped):
        code = Code.ENGINE_STOPPED
    # The text of an engine's failure is for the operator's log: it may name files.
    detail = "" if code is Code.ENGINE_STOPPED else str(error)
    return form(problem(code, detail, request_id=request_id, retry_after_ms=error.retry_after_ms), ())


def answer_bug(request_id: str, form: Form = answer_with) -> Response:
    """What a request gets that ran into a bug of ours: its id, to be found in the log, and nothing of the inside."""
    return form(problem(Code.INTERNAL, request_id=request_id), ())
