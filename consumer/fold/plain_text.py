"""The `text` format: an answer that is only text.

A chunk is a JSON string, or an object with a string `text` or else a string `delta`; that string is appended. All
chunks make one text part. It has no `state`: the chunks do not say when they end, the generation does.
"""

from __future__ import annotations

from typing import Any, Self

import msgspec

from consumer.fold.draft import ChunkFault, parts_of, start_message
from consumer.fold.growing import Growing
from consumer.plain import JSON, JSONObject


class _State(msgspec.Struct, forbid_unknown_fields=True):
    message: dict[str, Any]
    grown: bool


class PlainTextDraft:
    """One text part, appended to. A message that is continued goes on in its last part if that is a text."""

    __slots__ = ("_grown", "_head", "_parts", "_text")

    def __init__(self, message: JSONObject) -> None:
        self._head: JSONObject = {**message, "parts": []}
        self._parts = parts_of(message)
        self._grown = False
        self._text: Growing | None = None
        last = self._parts[-1] if self._parts else {}
        text = last.get("text")
        if last.get("type") == "text" and isinstance(text, str):
            self._text = Growing(len(self._parts) - 1, text)

    @classmethod
    def start(cls, initial: JSONObject | None) -> Self:
        return cls(start_message(initial))

    @classmethod
    def restore(cls, state: JSON) -> Self:
        stored = msgspec.convert(state, _State)
        draft = cls(stored.message)
        draft._grown = stored.grown
        return draft

    def apply(self, chunk: JSON) -> bool:
        delta = chunk
        if isinstance(chunk, dict):
            delta = chunk.get("text")
            if not isinstance(delta, str):
                delta = chunk.get("delta")
        if not isinstance(delta, str):
            raise ChunkFault("malformed", "a chunk of text is a string, or an object with a string `text` or `delta`")
        self._growing().pieces.append(delta)
        return True

    def _growing(self) -> Growing:
        if self._text is None:
            self._text = Growing(len(self._parts))
            self._parts.append({"type": "text", "text": ""})
        self._grown = True
        return self._text

    def message(self) -> JSONObject:
        if self._text is not None and self._text.behind:
            self._parts[self._text.index] = {**self._parts[self._text.index], "text": self._text.text()}
        return {**self._head, "parts": [*self._parts]}

    def emitted(self) -> JSONObject | None:
        return self.message() if self._grown else None

    def final(self) -> JSONObject:
        return self.message()

    @property
    def finish_reason(self) -> str | None:
        return None

    def state(self) -> JSONObject:
        return {"message": self.message(), "grown": self._grown}
