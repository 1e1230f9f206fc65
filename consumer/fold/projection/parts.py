"""The parts of one UI message, put together in the order in which they are read."""

from __future__ import annotations

from typing import Any, Final, NamedTuple, Self

from msgspec import UNSET, UnsetType

from consumer.fold.partial_json import JS_BLANKS, parse_ai_sdk
from consumer.plain import JSON, JSONObject

_NOT_JSON: Final = "The input of the tool call is not JSON."
_OCTETS: Final = "application/octet-stream"
_MEDIA_TYPES: Final = {"image": "image/*", "audio": "audio/*", "video": "video/*", "document": "application/pdf"}
"""Of a file whose writer says only what kind of thing it is."""


class Input(NamedTuple):
    """The input of a tool call, as its part shows it: while more may come, behind it, and when it is surely whole."""

    streaming: JSONObject
    followed: JSONObject
    whole: JSONObject

    @classmethod
    def of_json(cls, text: JSON) -> Self:
        """An input that arrives as JSON text. One that is wrong in the end makes the call fail."""
        raw = text if isinstance(text, str) else ""
        parsed = parse_ai_sdk(raw)
        known: JSONObject = {} if isinstance(parsed.value, UnsetType) else {"input": parsed.value}
        streaming: JSONObject = {"state": "input-streaming", **known, "rawInput": raw}
        if parsed.state == "successful-parse":
            available: JSONObject = {"state": "input-available", **known}
            return cls(streaming, available, available)
        if not raw.strip(JS_BLANKS):  # how a call without arguments is told
            return cls(streaming, streaming, {"state": "input-available", "input": {}})
        return cls(streaming, streaming, {"state": "output-error", "input": raw, "errorText": _NOT_JSON})

    @classmethod
    def of_text(cls, text: JSON) -> Self:
        """An input that is free text."""
        raw = text if isinstance(text, str) else ""
        available: JSONObject = {"state": "input-available", "input": raw}
        return cls(
            {**available, "state": "input-streaming", "rawInput": raw, "inputEncoding": "text"}, *[available] * 2
        )

    @classmethod
    def of_value(cls, value: JSON | UnsetType) -> Self:
        """An input whose value the fold itself has made out; UNSET while it has none."""
        if isinstance(value, UnsetType):
            streaming: JSONObject = {"state": "input-streaming"}
            return cls(streaming, streaming, {"state": "output-error", "errorText": _NOT_JSON})
        available: JSONObject = {"state": "input-available", "input": value}
        return cls({**available, "state": "input-streaming"}, available, available)


class _Call:
    """A tool call. `result` is what came after its input, and takes the place of its state."""

    __slots__ = ("given", "head", "result", "shown")

    def __init__(self, head: JSONObject, given: Input, shown: JSONObject) -> None:
        self.head = head
        self.given = given
        self.shown = shown
        self.result: JSONObject = {}

    def told(self) -> JSONObject:
        if not self.result:
            return {**self.head, **self.shown}
        return {**self.head, "input": self.given.whole.get("input"), **self.result}


class UIParts:
    """Collects parts. The last text, reasoning or call is taken to be going on until another part follows it."""

    __slots__ = ("_calls", "_ended", "_open", "_parts", "_sources")

    def __init__(self, *, ended: bool) -> None:
        self._ended = ended
        self._parts: list[JSONObject | _Call] = []
        self._calls: dict[str, _Call] = {}
        """By their ids; of two that share one, the last."""
        self._sources: set[str] = set()
        self._open: JSONObject | _Call | None = None

    def told(self) -> list[JSON]:
        if self._ended:
            self._follow()
        return [part.told() if isinstance(part, _Call) else part for part in self._parts]

    def _push(self, part: JSONObject | _Call, *, goes_on: bool = False) -> None:
        self._follow()
        self._parts.append(part)
        self._open = part if goes_on else None

    def _follow(self) -> None:
        if isinstance(self._open, _Call):
            self._open.shown = self._open.given.followed
        elif self._open is not None:
            self._open["state"] = "done"
        self._open = None

    # -- what is said ------------------------------------------------------------------------------------------------

    def text(self, text: JSON, more: JSONObject | None = None, *, done: bool = False) -> None:
        """A text, with `more` of its fields; none if it is empty or nothing of the kind. `done`: it will not go on."""
        if isinstance(text, str) and text:
            self._say({"type": "text", **(more or {}), "text": text}, done=done)

    def reasoning(self, text: JSON, more: JSONObject | None = None, *, done: bool = False) -> None:
        """Likewise; one that is empty is a part if it has metadata, which is all that hidden reasoning consists of."""
        told = text if isinstance(text, str) else ""
        if told or "providerMetadata" in (more or {}):
            self._say({"type": "reasoning", **(more or {}), "text": told}, done=done)

    def _say(self, part: JSONObject, *, done: bool) -> None:
        self._push({**part, "state": "done" if done else "streaming"}, goes_on=not done)

    # -- what comes whole ----------------------------------------------------------------------------------------------

    def step(self) -> None:
        """What follows is another call of the model."""
        self._push({"type": "step-start"})

    def data(self, kind: JSON, value: JSON, more: JSONObject | None = None) -> None:
        """Something that the model has no part for."""
        name = kind if isinstance(kind, str) and kind else "part"
        self._push({"type": f"data-{name}", **(more or {}), "data": value})

    def file(self, url: JSON, media_type: JSON, filename: JSON = None) -> None:
        """A file at a URL, which may hold it all; none without one."""
        if isinstance(url, str) and url:
            named: JSONObject = {"filename": filename} if isinstance(filename, str) else {}
            kind = media_type if isinstance(media_type, str) and media_type else _OCTETS
            self._push({"type": "file", "mediaType": kind, **named, "url": url})

    def file_of_base64(self, data: JSON, media_type: JSON, filename: JSON = None) -> None:
        """A file by its content."""
        if isinstance(data, str) and data:
            kind = media_type if isinstance(media_type, str) and media_type else _OCTETS
            self.file(f"data:{kind};base64,{data}", kind, filename)

    def media(self, source: JSON, kind: str, filename: JSON = None) -> None:
        """A file as Anthropic (`data`, `url`, `media_type`) and AG-UI (`value`, `mimeType`) name where it is."""
        told = fields_of(source)
        media_type = told.get("media_type") or told.get("mimeType") or _MEDIA_TYPES.get(kind, _OCTETS)
        if told.get("type") == "url":
            self.file(told.get("url") or told.get("value"), media_type, filename)
        else:
            self.file_of_base64(told.get("data") or told.get("value"), media_type, filename)

    def source(self, url: JSON, title: JSON = None) -> None:
        """A page that the text before refers to; once for each URL."""
        if isinstance(url, str) and url and url not in self._sources:
            named: JSONObject = {"title": title} if isinstance(title, str) else {}
            self._add_source(url, {"type": "source-url", "sourceId": url, "url": url, **named})

    def document(self, source_id: str, title: JSON, media_type: str, filename: JSON = None) -> None:
        """A document that the text before refers to; once for each id."""
        if source_id not in self._sources:
            named: JSONObject = {"filename": filename} if isinstance(filename, str) else {}
            part: JSONObject = {"type": "source-document", "sourceId": source_id, "mediaType": media_type}
            self._add_source(source_id, {**part, "title": title if isinstance(title, str) else source_id, **named})

    def _add_source(self, source_id: str, part: JSONObject) -> None:
        # Beside the text that refers to it, which goes on.
        self._sources.add(source_id)
        self._parts.append(part)

    # -- tool calls ------------------------------------------------------------------------------------------------

    def call(self, call_id: JSON, name: JSON, given: Input, *, whole: bool = False, by_provider: bool = False) -> str:
        """A tool call. `whole`: the format says that its input is. The id that it has here."""
        known_id = call_id if isinstance(call_id, str) and call_id else f"call-{len(self._calls)}"
        executed: JSONObject = {"providerExecuted": True} if by_provider else {}
        head: JSONObject = {"type": "dynamic-tool", "toolName": name if isinstance(name, str) else ""}
        is_whole = whole or self._ended
        call = _Call({**head, "toolCallId": known_id, **executed}, given, given.whole if is_whole else given.streaming)
        self._push(call, goes_on=not is_whole)
        self._calls[known_id] = call
        return known_id

    def output(self, call_id: JSON, output: JSON, *, name: JSON = None) -> None:
        """What a tool gave back. `name` is the tool's, for a call that is not here."""
        self._settle(call_id, name, {"state": "output-available", "output": output})

    def failure(self, call_id: JSON, text: JSON, *, name: JSON = None) -> None:
        """A tool failed, or was not run."""
        told = text if isinstance(text, str) and text else "The tool call failed."
        self._settle(call_id, name, {"state": "output-error", "errorText": told})

    def approval(self, call_id: JSON, approval: JSONObject) -> None:
        """A call waits for approval, or has been answered: `{id, approved?}`. Not if it has a result already."""
        call = self._calls.get(call_id) if isinstance(call_id, str) else None
        if call is not None and not call.result:
            state = "approval-responded" if "approved" in approval else "approval-requested"
            call.result = {"state": state, "approval": approval}

    def has_result(self, call_id: JSON) -> bool:
        call = self._calls.get(call_id) if isinstance(call_id, str) else None
        return call is not None and "approval" not in call.result and bool(call.result)

    def _settle(self, call_id: JSON, name: JSON, result: JSONObject) -> None:
        known_id = call_id if isinstance(call_id, str) and call_id in self._calls else None
        if known_id is None:
            known_id = self.call(call_id, name, Input({}, {}, {}))
        self._calls[known_id].result = result


# -- reading what may be anything --------------------------------------------------------------------------------------


def objects(value: JSON) -> list[dict[str, Any]]:
    """The objects in a list; none if it is no list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def text_at(holder: JSON, field: str) -> str:
    """A text of an object, or an empty one where there is none."""
    value = holder.get(field) if isinstance(holder, dict) else None
    return value if isinstance(value, str) else ""


def fields_of(value: JSON) -> dict[str, Any]:
    """The object, or an empty one where there is none."""
    return value if isinstance(value, dict) else {}


def given(holder: JSONObject, *fields: str) -> JSONObject:
    """Those of the fields that are there and not null."""
    return {field: holder[field] for field in fields if holder.get(field) is not None}


def input_at(holder: JSONObject, field: str) -> JSON | UnsetType:
    """The value of a field; UNSET where there is none."""
    return holder.get(field, UNSET)
