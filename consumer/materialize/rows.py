"""What is written to a database of a session's messages. Pure."""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from consumer.fold import ui_message
from consumer.plain import JSON, encode
from consumer.session import SessionFold
from consumer.session_list import SessionSummary
from consumer.wire import ENDED

__all__ = ["Change", "MessageRow", "message_row"]

_UNSTORABLE: Final = re.compile("[\x00\ud800-\udfff]")


class MessageRow(msgspec.Struct, frozen=True):
    """One row of `streamfold_messages`: its columns in their order, JSON as text, times as the broker tells them."""

    session_id: str
    message_id: str
    position: int
    role: str
    status: str
    generation_id: str | None
    lane: str | None
    format: str | None
    message: str | None
    text: str
    reason: str | None
    error: str | None
    usage: str | None
    metadata: str | None
    missing: str | None
    created_at: str | None
    ended_at: str | None
    fold_state: bytes


class Change(msgspec.Struct, frozen=True):
    """What one transaction writes of a session: where it stood, where it stands, and the messages that this changed."""

    session: SessionSummary
    status: str
    offset: str
    """Where the session has to stand for this to be written."""
    next_offset: str
    messages: list[MessageRow]
    replaces: bool
    """Whether these are the messages of another life of the session: those that are there go first."""

    @property
    def metadata(self) -> str | None:
        return _json(self.session.metadata)


def message_row(session_id: str, fold: SessionFold, message_id: str) -> MessageRow:
    """A message as it is folded. Raises KeyError if there is none."""
    position = fold.ordinal(message_id)
    item = fold.item(message_id)
    assert item is not None
    return MessageRow(
        session_id=session_id,
        message_id=message_id,
        position=position,
        role=_storable(str(item["role"])),
        status=str(item["status"]),
        generation_id=_text(item, "generationId"),
        lane=_text(item, "lane"),
        format=_text(item, "format"),
        message=_json(item["message"]),
        text=_storable(_said(item)),
        reason=_text(item, "reason"),
        error=_json(item.get("error")),
        usage=_json(item.get("usage")),
        metadata=_json(item.get("metadata")),
        missing=_json(item.get("missing")),
        created_at=_text(item, "createdAt"),
        ended_at=_text(item, "endedAt"),
        fold_state=fold.dump(message_id),
    )


def _said(item: dict[str, Any]) -> str:
    """The texts of its parts, in the model that all formats are projected to."""
    parts = ui_message(item.get("format"), item["message"], ended=item["status"] in ENDED)["parts"]
    assert isinstance(parts, list)
    texts = [part.get("text") for part in parts if isinstance(part, dict) and part.get("type") == "text"]
    return "\n\n".join(text for text in texts if isinstance(text, str))


def _text(item: dict[str, Any], name: str) -> str | None:
    value = item.get(name)
    return _storable(value) if isinstance(value, str) else None


def _json(value: JSON) -> str | None:
    return None if value is None else encode(value).decode()


def _storable(text: str) -> str:
    """NUL and half a surrogate pair, which a model may say, fit into no text column; the JSON has them."""
    return _UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", text)
