"""The operations of the session API, one for each route: what it does, takes and answers, and what it is refused with.

A table, of which `openapi` makes the document. Codes that every operation may be refused with are not in it.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import msgspec

from broker import limits
from broker.http import session_types as t
from broker.http.session_routes import LIST, Route
from consumer.wire import SEQ_MAX, Code

Schema = dict[str, Any]


class Parameter(NamedTuple):
    """A query parameter or a header."""

    name: str
    schema: Schema
    description: str
    place: str = "query"
    required: bool = False


class Operation(NamedTuple):
    """What a route does.

    `answers` are successes: by status what the body holds, None for none or for another media type.
    """

    name: str
    summary: str
    answers: dict[int, type | None]
    parameters: tuple[Parameter, ...] = ()
    body: type | Schema | None = None
    body_required: bool = False
    codes: tuple[Code, ...] = ()


def _schema(of: Any) -> Schema:
    schema: Schema = msgspec.json.schema(of)
    return schema


def _up_to(most: int) -> Schema:
    return {"type": "integer", "minimum": 1, "maximum": most}


_id, _text = _schema(t.Id), {"type": "string"}
_TXID: Final = Parameter("txid", _id, "Names this write: its records carry it.")
_SEQ: Final = Parameter(
    "Producer-Seq",
    {"type": "integer", "minimum": 0, "maximum": SEQ_MAX},
    "Counts the batches of the generation from 0, the finish included.",
    "header",
    required=True,
)
_OPENING: Final = (
    Parameter("messageId", _id, "The message to write; the generation's id if it is not given."),
    Parameter("lane", _id, "One generation runs in a lane at a time; `main` if it is not given."),
    Parameter("format", _schema(t.Format), "Of the chunks."),
    Parameter("role", _id, "Of the message."),
    Parameter("actorId", _id, "Who writes."),
    Parameter("leaseMs", _schema(t.LeaseMs), "How long the generation may be silent, in ms."),
    Parameter("onConflict", {"enum": ["interrupt", "reject"]}, "What becomes of one that runs in the lane."),
    Parameter("continues", _id, "The generation whose message this one goes on with."),
)
_AT: Final = Parameter("at", _schema(t.Offset), "The messages as they stood there.")
_AS: Final = Parameter("as", {"const": "ui"}, "Each message as a UI message of the AI SDK.")

# A batch: any JSON text but an empty array.
_BATCH: Final[Schema] = {
    "oneOf": [
        {"type": "array", "minItems": 1},
        {"type": ["object", "string", "number", "boolean", "null"]},
    ],
    "description": f"A chunk, or an array of at most {limits.BATCH_CHUNKS_MAX} chunks.",
}

_WRITES: Final = (Code.SESSION_NOT_FOUND,)
_OF_SEQ: Final = (
    Code.SESSION_NOT_FOUND,
    Code.INVALID_PRODUCER,
    Code.UNKNOWN_FORMAT,
    Code.FENCED,
    Code.SEQ_GAP,
    Code.PAYLOAD_MISMATCH,
    Code.MESSAGE_EXISTS,
    Code.LANE_BUSY,
    Code.GENERATION_MISMATCH,
    Code.GENERATION_NOT_FOUND,
    Code.LOST_CHUNKS,
    Code.TOO_MANY_GENERATIONS,
    Code.TOO_MANY_LANES,
)
_SESSION: Final = "/v1/sessions/{sid}"
_GENERATION: Final = f"{_SESSION}/generations/{{gid}}"

_FLAT: Final = (
    Code.SESSION_NOT_FOUND,
    Code.GENERATION_MISMATCH,
    Code.SEQ_GAP,
    Code.PAYLOAD_MISMATCH,
    Code.LANE_BUSY,
    Code.TOO_MANY_GENERATIONS,
    Code.TOO_MANY_LANES,
)
_MAYBE_SEQ: Final = _SEQ._replace(required=False, description="The broker numbers a batch that does not say.")

OPERATIONS: Final[dict[Route, Operation]] = {
    Route("GET", LIST): Operation(
        "listSessions",
        "The sessions, latest activity first; or what changes in them, as server-sent events",
        {200: t.Sessions},
        (
            Parameter(
                "limit", {"type": "integer", "minimum": 1, "maximum": limits.SESSIONS_PAGE_MAX}, "At most so many."
            ),
            Parameter("after", _text, "The `next` of the page before."),
            Parameter("live", {"const": "sse"}, "Follow what changes."),
            Parameter("cursor", _text, "Where to follow from."),
            Parameter("Last-Event-ID", _text, "The same, as browsers say it.", "header"),
        ),
        codes=(Code.OFFSET_GONE,),
    ),
    Route("POST", f"{_SESSION}/import"): Operation(
        "importSession",
        "Make a session out of the records that lie in a JSON stream",
        {201: t.Created, 200: t.Created},
        (_TXID,),
        t.Import,
        body_required=True,
        codes=(Code.SESSION_EXISTS, Code.STREAM_NOT_FOUND, Code.FORK_TOO_LARGE),
    ),
    Route("POST", f"{_SESSION}/chunks"): Operation(
        "writeChunk",
        "Write one chunk, for writers that know no batches",
        {200: t.Written},
        (_MAYBE_SEQ, *_OPENING, _TXID),
        t.FlatChunk,
        body_required=True,
        codes=(*_FLAT, Code.WRITE_FAILED),
    ),
    Route("POST", f"{_SESSION}/chunks/batch"): Operation(
        "writeChunkBatch",
        "Write chunks, for writers that know no batches",
        {200: t.Written},
        (_MAYBE_SEQ, *_OPENING, _TXID),
        t.FlatChunks,
        body_required=True,
        codes=(*_FLAT, Code.WRITE_FAILED),
    ),
    Route("POST", f"{_SESSION}/generations/finish"): Operation(
        "finish",
        "End a generation, for writers that know no batches",
        {200: t.Written},
        (_MAYBE_SEQ, *_OPENING, _TXID),
        t.FlatFinish,
        body_required=True,
        codes=(*_FLAT, Code.FINISH_FAILED),
    ),
    Route("PUT", _SESSION): Operation(
        "createSession",
        "Create a session, or confirm it",
        {201: t.Created, 200: t.Created},
        (_TXID,),
        t.SessionCreation,
        codes=(Code.SESSION_EXISTS, Code.MESSAGE_EXISTS),
    ),
    Route("GET", _SESSION): Operation("getSession", "A session in a few words", {200: t.Session}, codes=_WRITES),
    Route("DELETE", _SESSION): Operation(
        "deleteSession",
        "Delete a session, when nothing of it is on its way any more",
        {204: None},
        (_TXID,),
        codes=_WRITES,
    ),
    Route("POST", f"{_SESSION}/reset"): Operation(
        "resetSession", "Empty a session and begin it anew", {200: t.WasReset}, (_TXID,), t.Reset, codes=_WRITES
    ),
    Route("POST", f"{_SESSION}/fork"): Operation(
        "forkSession",
        "Make a session that begins with this one's records",
        {201: t.Forked, 200: t.Forked},
        (_TXID,),
        t.Fork,
        body_required=True,
        codes=(
            Code.SESSION_NOT_FOUND,
            Code.MESSAGE_NOT_FOUND,
            Code.SESSION_EXISTS,
            Code.FORK_TOO_LARGE,
            Code.INVALID_OFFSET,
            Code.OFFSET_GONE,
            Code.TOO_MANY_FORKS,
        ),
    ),
    Route("POST", f"{_SESSION}/stop"): Operation(
        "stopSession", "Stop what runs in a session", {200: t.Stopped}, (_TXID,), t.SessionStop, codes=_WRITES
    ),
    Route("POST", f"{_SESSION}/records"): Operation(
        "addRecord",
        "Upsert a presence, an approval or a settlement",
        {201: t.Added},
        (_TXID,),
        t.Record,
        body_required=True,
        codes=_WRITES,
    ),
    Route("POST", f"{_SESSION}/messages"): Operation(
        "addMessage",
        "Add a whole message",
        {201: t.AddedMessage, 200: t.AddedMessage},
        (_TXID,),
        t.Message,
        body_required=True,
        codes=(Code.SESSION_NOT_FOUND, Code.MESSAGE_EXISTS),
    ),
    Route("GET", f"{_SESSION}/messages"): Operation(
        "getMessages",
        "The folded messages",
        {200: t.Messages, 304: None},
        (
            _AT,
            Parameter("limit", _up_to(limits.MESSAGES_PAGE_MAX), "At most so many."),
            Parameter("after", _schema(t.Offset), "The `next` of the page before."),
            _AS,
            Parameter("If-None-Match", _text, "The `ETag` of what the client has.", "header"),
        ),
        codes=(Code.SESSION_NOT_FOUND, Code.OFFSET_GONE, Code.INVALID_OFFSET),
    ),
    Route("GET", f"{_SESSION}/messages/{{mid}}"): Operation(
        "getMessage",
        "One of them",
        {200: t.OneMessage, 304: None},
        (_AT, _AS),
        codes=(Code.SESSION_NOT_FOUND, Code.MESSAGE_NOT_FOUND, Code.OFFSET_GONE, Code.INVALID_OFFSET),
    ),
    Route("PUT", _GENERATION): Operation(
        "openGeneration",
        "Open a generation ahead of its first batch",
        {201: t.Opened, 200: t.Opened},
        (_TXID,),
        t.Opening,
        codes=_OF_SEQ,
    ),
    Route("POST", f"{_GENERATION}/chunks"): Operation(
        "writeChunks",
        "Write the next batch of a generation; the first opens it",
        {200: t.Written, 202: t.Accepted},
        (
            _SEQ,
            *_OPENING,
            _TXID,
            Parameter("Prefer", _text, "`respond-async`, where the operator allows it.", "header"),
        ),
        _BATCH,
        body_required=True,
        codes=_OF_SEQ,
    ),
    Route("GET", f"{_GENERATION}/upload"): Operation(
        "uploadChunks",
        "Write batches over a WebSocket",
        {101: None},
        (*_OPENING, _TXID),
        codes=(*_OF_SEQ, Code.UPGRADE_REQUIRED),
    ),
    Route("POST", f"{_GENERATION}/finish"): Operation(
        "finishGeneration", "End a generation", {200: t.Written}, (_SEQ, *_OPENING, _TXID), t.Finish, codes=_OF_SEQ
    ),
    Route("POST", f"{_GENERATION}/heartbeat"): Operation(
        "renewLease",
        "Renew the lease of a generation",
        {200: t.Renewed},
        (_TXID,),
        t.Stop,
        codes=(Code.SESSION_NOT_FOUND, Code.GENERATION_NOT_FOUND, Code.FENCED),
    ),
    Route("POST", f"{_GENERATION}/stop"): Operation(
        "stopGeneration",
        "Stop a generation, from anywhere",
        {200: t.Ended},
        (_TXID,),
        t.Stop,
        codes=(Code.SESSION_NOT_FOUND, Code.GENERATION_NOT_FOUND),
    ),
    Route("GET", _GENERATION): Operation(
        "getGeneration",
        "What is known of a generation",
        {200: t.Generation},
        codes=(Code.SESSION_NOT_FOUND, Code.GENERATION_NOT_FOUND),
    ),
    Route("GET", f"{_SESSION}/txids/{{txid}}"): Operation(
        "awaitTxid",
        "Wait until the records that carry a txid can be read",
        {200: t.Synced},
        (
            Parameter(
                "timeoutMs",
                {"type": "integer", "minimum": 0, "maximum": int(limits.LONG_POLL_S * 1000)},
                "How long to wait, in ms.",
            ),
            Parameter("offset", _schema(t.Offset), "Where to look from."),
        ),
        codes=(Code.SESSION_NOT_FOUND, Code.TXID_TIMEOUT, Code.OFFSET_GONE, Code.INVALID_OFFSET),
    ),
    Route("GET", f"{_SESSION}/ui-stream"): Operation(
        "resumeChat",
        "The running answer for the AI SDK's `useChat`, as server-sent events",
        {200: None, 204: None},
        (
            Parameter("lane", _id, "Where it runs."),
            Parameter("offset", _schema(t.Offset), "The first answer opened there or later."),
        ),
        codes=(Code.SESSION_NOT_FOUND, Code.OFFSET_GONE, Code.INVALID_OFFSET),
    ),
}
ADMIN: Final[dict[Route, Operation]] = {
    Route("GET", "/v1/admin/durability"): Operation("getDurability", "How writes become durable", {200: t.Durability}),
    Route("PUT", "/v1/admin/durability"): Operation(
        "setDurability",
        "Give every write a commit of its own, or not",
        {200: t.Durability},
        (),
        t.Switch,
        body_required=True,
    ),
}
