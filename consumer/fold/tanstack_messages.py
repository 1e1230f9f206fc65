"""The messages of a TanStack conversation in the making, and their parts found by what events name them by.

Messages and parts are edited in place here and copied when they are told. Where two messages share an id, both are
changed; of two parts that share one, the first, as the reference does.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterable
from typing import Any, Final

from consumer.fold.partial_json import JS_BLANKS
from consumer.fold.tree import Items, Object, plain
from consumer.plain import JSON, JSONObject, encode

_ISO_8601: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}(T[0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,6})?)?(Z|[+-][0-9]{2}:[0-9]{2})?)?"
)
_INTEGRAL_FLOAT_MAX: Final = 1e21
"""From here on JavaScript writes a whole number with an exponent."""


class UIMessage:
    """One message. `fields` are all but its parts."""

    __slots__ = ("_named", "fields", "parts")

    def __init__(self, message: JSONObject) -> None:
        self.fields = Object({field: value for field, value in message.items() if field != "parts"})
        parts = message.get("parts")
        self.parts = Items()
        self._named: dict[tuple[str, str], Object] = {}
        """The first part of each type and name, for types that are found by one."""
        for part in parts if isinstance(parts, list) else ():
            self.push(part)

    @property
    def id(self) -> str:
        """Empty for one without an id that events could name."""
        message_id = self.fields.get("id")
        return message_id if isinstance(message_id, str) else ""

    @property
    def is_assistant(self) -> bool:
        return self.fields.get("role") == "assistant"

    @property
    def structured(self) -> Object | None:
        """Its structured output."""
        return self._named.get(("structured-output", ""))

    @property
    def calls(self) -> list[str]:
        """The ids of all tool calls in it."""
        return [name for kind, name in self._named if kind == "tool-call"]

    def call(self, call_id: str) -> Object | None:
        return self._named.get(("tool-call", call_id))

    def push(self, part: Any) -> Object:
        pushed = Object(part if isinstance(part, dict) else {})
        self.parts.append(pushed)
        name = _name(pushed)
        if name is not None:
            self._named.setdefault(name, pushed)
        return pushed

    def put(self, part: JSONObject) -> None:
        """Put this in the place of the first part of its type and name, or at the end."""
        name = _name(part)
        old = None if name is None else self._named.get(name)
        if old is None:
            self.push(part)
        else:
            replace(old, part)

    def put_call(self, call_id: str, given: JSONObject) -> None:
        """Bring the part of a tool call up to date, or make it. What it was given before stays where nothing comes."""
        old = self.call(call_id)
        kept = {} if old is None else _only(old, "output")
        if old is not None and old.get("approval"):
            kept["approval"] = old["approval"]
        for field in ("input", "metadata"):
            if given.get(field) is not None:
                kept[field] = given[field]
            elif old is not None and field in old:
                kept[field] = old[field]
        self.put({"type": "tool-call", "id": call_id, **_only(given, "name", "arguments", "state"), **kept})

    def is_blank(self) -> bool:
        """Whether it has text and nothing else, and that is only blanks."""
        return bool(self.parts) and all(_is_blank_text(part) for part in self.parts)

    def told(self) -> JSONObject:
        return {**plain(self.fields), "parts": plain(self.parts)}


class Conversation:
    """The messages in order."""

    __slots__ = ("_by_call", "_by_id", "_messages")

    def __init__(self, messages: Iterable[JSONObject]) -> None:
        self._messages = [UIMessage(message) for message in messages]
        self._index()

    def _index(self) -> None:
        self._by_id: dict[str, list[UIMessage]] = {}
        self._by_call: dict[str, list[UIMessage]] = {}
        for message in self._messages:
            self._by_id.setdefault(message.id, []).append(message)
            for call_id in message.calls:
                self._by_call.setdefault(call_id, []).append(message)

    def __len__(self) -> int:
        return len(self._messages)

    def told(self) -> list[JSON]:
        return [message.told() for message in self._messages]

    def all_with(self, message_id: str) -> list[UIMessage]:
        return self._by_id.get(message_id, [])

    def first(self, message_id: str) -> UIMessage | None:
        return next(iter(self.all_with(message_id)), None)

    def all_with_call(self, call_id: str) -> list[UIMessage]:
        """Those that have a part for this tool call, in order."""
        return self._by_call.get(call_id, [])

    def add(self, message: JSONObject) -> None:
        added = UIMessage(message)
        self._messages.append(added)
        self._by_id.setdefault(added.id, []).append(added)

    def rename(self, old_id: str, new_id: str) -> None:
        for message in self.all_with(old_id):
            message.fields["id"] = new_id
        if new_id in self._by_id:
            self._index()
        else:
            self._by_id[new_id] = self._by_id.pop(old_id, [])

    def remove(self, message_id: str) -> None:
        if self.all_with(message_id) == self._messages[-1:] and not self._messages[-1].calls:
            self._messages.pop()  # most often it is the last
            del self._by_id[message_id]
            return
        self._messages = [message for message in self._messages if message.id != message_id]
        self._index()

    def put_call(self, message_id: str, call_id: str, given: JSONObject) -> None:
        for message in self.all_with(message_id):
            is_new = message.call(call_id) is None
            message.put_call(call_id, given)
            if is_new:
                self._note_call(call_id, message)

    def _note_call(self, call_id: str, message: UIMessage) -> None:
        known = self._by_call.setdefault(call_id, [])
        known.append(message)
        if len(known) > 1:
            holders = {id(holder) for holder in known}
            known[:] = [holder for holder in self._messages if id(holder) in holders]

    def call_states(self, call_id: str) -> set[str]:
        """The states of all parts of a tool call."""
        parts = [message.call(call_id) or Object() for message in self.all_with_call(call_id)]
        return {part["state"] for part in parts if isinstance(part.get("state"), str)}


def _name(part: JSONObject) -> tuple[str, str] | None:
    """The type of a part and what tells it from others of its type; None if events do not find it by that."""
    kind = part.get("type")
    if kind == "structured-output":
        return (kind, "")
    field = _NAMED_BY.get(kind) if isinstance(kind, str) else None
    name = part.get(field) if field else None
    return (str(kind), name) if isinstance(name, str) else None


_NAMED_BY: Final = {"tool-call": "id", "tool-result": "toolCallId", "thinking": "stepId"}


# -- values as JavaScript has them -------------------------------------------------------------------------------------


def replace(part: Object, fields: JSONObject) -> None:
    part.clear()
    part.update(fields)


def tanstack_metadata(value: Any) -> JSONObject:
    """The reserved part of the metadata of an event or a message, or of metadata itself; empty if it has none."""
    if not isinstance(value, dict):
        return {}
    nested = value.get("metadata")
    found = (nested if isinstance(nested, dict) else value).get("tanstack")
    return found if isinstance(found, dict) else {}


def created_at(value: JSON) -> str | None:
    """A time as JavaScript writes it into JSON. None for what is no ISO 8601; without a zone it is taken as UTC."""
    if not isinstance(value, str) or not _ISO_8601.fullmatch(value):
        return None
    try:
        time = dt.datetime.fromisoformat(value)
        utc = time.astimezone(dt.UTC) if time.tzinfo else time.replace(tzinfo=dt.UTC)
    except (ValueError, OverflowError):
        return None
    return utc.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def stringified(value: JSON) -> str:
    """The value as `JSON.stringify` writes it."""
    return encode(_with_javascript_numbers(value)).decode()


def _with_javascript_numbers(value: JSON) -> JSON:
    if isinstance(value, dict):
        return {key: _with_javascript_numbers(child) for key, child in value.items()}
    if isinstance(value, list):
        return [_with_javascript_numbers(child) for child in value]
    if isinstance(value, float) and value.is_integer() and abs(value) < _INTEGRAL_FLOAT_MAX:
        return int(value)
    return value


def _is_blank_text(part: Object) -> bool:
    content = plain(part.get("content"))
    return part.get("type") == "text" and isinstance(content, str) and not content.strip(JS_BLANKS)


def _only(source: JSONObject, *fields: str) -> JSONObject:
    return {field: source[field] for field in fields if field in source}
