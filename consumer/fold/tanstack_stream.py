"""One message of a TanStack conversation whose events are coming: its text, its thoughts and its tool calls."""

from __future__ import annotations

from typing import Any, Self

import msgspec
from msgspec import UNSET

from consumer.fold.growing import Growing
from consumer.fold.tanstack_messages import UIMessage, replace
from consumer.fold.tree import Object
from consumer.plain import JSON, JSONObject


class Call:
    """A tool call as its events tell it; the part that shows it may be further."""

    __slots__ = ("arguments", "metadata", "name", "state")

    def __init__(self, name: JSON, state: str, arguments: str = "", metadata: JSON | msgspec.UnsetType = UNSET) -> None:
        self.name = name
        self.state = state
        self.arguments = Growing(-1, arguments)
        self.metadata = metadata

    def part(self, *, with_metadata: bool) -> JSONObject:
        """What its part is given. The text of the arguments is shared with it, and grows there too."""
        arguments: Any = self.arguments
        part: JSONObject = {"name": self.name, "arguments": arguments, "state": self.state}
        if with_metadata and not isinstance(self.metadata, msgspec.UnsetType):
            part["metadata"] = self.metadata
        return part


class Stream:
    """What is known of one message whose events are coming."""

    __slots__ = ("called", "calls", "complete", "role", "segment", "shown", "signatures", "step", "steps", "total")

    def __init__(self, role: JSON) -> None:
        self.role = role
        self.segment = Growing(-1)
        """The text since the last tool call."""
        self.shown: list[Object] = []
        """The text parts that show the segment and grow with it."""
        self.total = Growing(-1)
        self.called = False
        """Whether a tool call came since the segment began."""
        self.steps: dict[str, Growing] = {}
        self.signatures: dict[str, str] = {}
        self.step: str | None = None
        """The step that thinking goes to."""
        self.calls: dict[str, Call] = {}
        self.complete = False

    @classmethod
    def restore(cls, stored: StoredStream) -> Self:
        """The stream that this was stored of. What of it is shown where is found again when it goes on."""
        stream = cls(stored.role)
        stream.segment = Growing(-1, stored.segment)
        stream.total = Growing(-1, stored.total)
        stream.called = stored.called
        stream.steps = {step: Growing(-1, text) for step, text in stored.steps.items()}
        stream.signatures = stored.signatures
        stream.step = stored.step
        stream.complete = stored.complete
        for call_id, call in stored.calls.items():
            stream.calls[call_id] = Call(call.name, call.state, call.arguments, call.metadata)
        return stream

    def state(self) -> JSONObject:
        """All that `restore` needs, in the form of StoredStream."""
        return {
            "role": self.role,
            "segment": self.segment.text(),
            "total": self.total.text(),
            "called": self.called,
            "steps": {step: text.text() for step, text in self.steps.items()},
            "signatures": {**self.signatures},
            "step": self.step,
            "calls": {call_id: _stored_call(call) for call_id, call in self.calls.items()},
            "complete": self.complete,
        }

    def end_segment(self) -> None:
        self.freeze()
        self.segment = Growing(-1)
        self.called = False

    def freeze(self) -> None:
        """The parts that show the segment stay as they are from now on."""
        for part in self.shown:
            part["content"] = self.segment.text()
        self.shown = []

    def show(self, messages: list[UIMessage]) -> None:
        """Show the segment in the last part of these messages if that is text, else in a new one.

        Comes before the segment grows, so that parts which no longer are the last stay as they are.
        """
        lasts = [message.parts[-1] if message.parts else None for message in messages]
        if self.shown and all(any(last is part for part in self.shown) for last in lasts):
            return
        self.freeze()
        content: Any = self.segment
        for message in messages:
            part = _text_part(message)
            replace(part, {"type": "text", "content": content})
            self.shown.append(part)

    def repeated_by(self, messages: list[UIMessage]) -> int:
        """How many characters are told once more when the segment goes on in these messages."""
        behind = [message for message in messages if message.parts and message.parts[-1].get("type") != "text"]
        return len(behind) * len(self.segment.text()) if behind else 0

    def begin_step(self, step: str) -> None:
        self.step = step
        self.steps.setdefault(step, Growing(-1))


class StoredCall(msgspec.Struct, forbid_unknown_fields=True):
    """A call as it is stored."""

    name: Any
    state: str
    arguments: str
    metadata: Any = UNSET


class StoredStream(msgspec.Struct, forbid_unknown_fields=True):
    """A stream as it is stored."""

    role: Any
    segment: str
    total: str
    called: bool
    steps: dict[str, str]
    signatures: dict[str, str]
    step: str | None
    calls: dict[str, StoredCall]
    complete: bool


def _stored_call(call: Call) -> JSONObject:
    metadata: JSONObject = {} if isinstance(call.metadata, msgspec.UnsetType) else {"metadata": call.metadata}
    return {"name": call.name, "state": call.state, "arguments": call.arguments.text(), **metadata}


def _text_part(message: UIMessage) -> Object:
    """The last part if it is text, else a new one."""
    if message.parts and message.parts[-1].get("type") == "text":
        last: Object = message.parts[-1]
        return last
    return message.push({"type": "text"})
