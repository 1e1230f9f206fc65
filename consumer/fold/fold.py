"""Folding by format: one call for all chunks, or an object that takes them as they come."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final, Literal, Self

import msgspec

from consumer.fold.ag_ui_client import ClientDraft
from consumer.fold.ag_ui_tanstack import TanStackDraft
from consumer.fold.ai_sdk import AISDKDraft
from consumer.fold.anthropic_messages import MessageDraft
from consumer.fold.draft import ChunkFault, Draft, FaultCode
from consumer.fold.openai_chat import ChatCompletionDraft
from consumer.fold.openai_responses import ResponseDraft
from consumer.fold.plain_text import PlainTextDraft
from consumer.plain import JSON, JSONObject

FORMATS: Final[Mapping[str, type[Draft]]] = MappingProxyType(
    {
        "ag-ui-client": ClientDraft,
        "ag-ui-tanstack": TanStackDraft,
        "ai-sdk-ui-message-stream": AISDKDraft,
        "anthropic-messages": MessageDraft,
        "openai-chat": ChatCompletionDraft,
        "openai-responses": ResponseDraft,
        "text": PlainTextDraft,
    }
)
"""What can be folded, by the name that a generation gives its format."""

ERRORS_MAX: Final = 100
"""Errors kept by a fold. Who wants to know what is wrong needs the first few; a stuck producer sends any number."""


class UnknownFormat(ValueError):
    """No fold of this name; `known` are those there are."""

    def __init__(self, format_name: str) -> None:
        self.format = format_name
        self.known = tuple(sorted(FORMATS))
        super().__init__(f"unknown chunk format {format_name!r}; known are {', '.join(self.known)}")


class BadFoldState(ValueError):
    """This is not what `Fold.state` returned, or a later version wrote it. Fold the chunks again."""


class FoldError(msgspec.Struct, frozen=True):
    """A chunk that was not folded, or that reported an error of its own."""

    index: int
    """Which chunk, counted from 0 over the whole life of the fold."""
    fatal: bool
    code: FaultCode
    message: str


class _State(msgspec.Struct, forbid_unknown_fields=True):
    version: Literal[1]
    format: str
    chunk_count: int
    errors: list[FoldError]
    error_count: int
    draft: dict[str, Any]


class Fold:
    """The message that chunks make, folded as they come.

    `add` takes any JSON and never raises: what does not belong is an error on record and changes nothing else.
    Values given out stay as they are while folding goes on, and must not be edited; nor must chunks once added.
    """

    __slots__ = ("_apply", "_chunk_count", "_draft", "_error_count", "_errors", "_failed", "_format")

    def __init__(self, format_name: str, draft: Draft) -> None:
        """Use `start` or `restore`."""
        self._format = format_name
        self._draft = draft
        self._apply = draft.apply
        self._chunk_count = 0
        self._errors: list[FoldError] = []
        self._error_count = 0
        self._failed = False

    @classmethod
    def start(cls, format_name: str, initial: JSONObject | None = None) -> Self:
        """A fold without chunks yet, continuing the message `initial` where the format's reference would.

        Raises UnknownFormat if `format_name` is not in FORMATS, BadMessage if `initial` is not a message.
        """
        return cls(format_name, _draft_type(format_name).start(initial))

    @classmethod
    def restore(cls, state: JSON) -> Self:
        """The fold whose `state` this was, in this process or another one.

        Raises BadFoldState if it was none of this version's; UnknownFormat if its format is not known here.
        """
        try:
            stored = msgspec.convert(state, _State)
            restored = cls(stored.format, _draft_type(stored.format).restore(stored.draft))
        except UnknownFormat:
            raise
        except (ValueError, msgspec.ValidationError) as error:
            raise BadFoldState(str(error)) from error
        restored._resume(stored)
        return restored

    def _resume(self, stored: _State) -> None:
        self._chunk_count = stored.chunk_count
        self._errors = stored.errors
        self._error_count = stored.error_count
        self._failed = any(error.fatal for error in stored.errors)

    def add(self, chunk: JSON) -> bool:
        """Fold one chunk. Whether it changed what readers see (`emitted`).

        False also for a chunk that is recorded in `errors`, and for all that come after a fatal one.
        """
        if self._failed:
            return False
        self._chunk_count += 1
        try:
            return self._apply(chunk)
        except ChunkFault as fault:
            self._record(fault)
            return False

    def _record(self, fault: ChunkFault) -> None:
        error = FoldError(index=self._chunk_count - 1, fatal=fault.fatal, code=fault.code, message=fault.message)
        self._error_count += 1
        self._failed = fault.fatal
        if len(self._errors) < ERRORS_MAX:
            self._errors.append(error)
        elif fault.fatal:
            self._errors[-1] = error

    @property
    def format(self) -> str:
        return self._format

    @property
    def message(self) -> JSONObject:
        """The message as it stands after all chunks, including what readers of the reference have not been shown.

        Costs the number of its parts, and the length of those texts that have grown since it was last asked for.
        """
        return self._draft.message()

    @property
    def emitted(self) -> JSONObject | None:
        """The message as readers of the reference were last given it, or None while there was nothing to give."""
        return self._draft.emitted()

    def final(self) -> JSONObject | None:
        """What the reference gives when the stream ends after these chunks; None if it raises an error, now or before.

        For some formats that is the message as it stands, others finish it first (OpenAI's chat, TanStack) or refuse
        one that was cut short. It changes nothing: more chunks may follow.
        """
        return None if self._failed else self._draft.final()

    @property
    def finish_reason(self) -> str | None:
        """Why the model stopped, if the chunks said so. The end of a generation is its terminal record, not this."""
        return self._draft.finish_reason

    @property
    def failed(self) -> bool:
        """Whether a chunk was fatal: the message stays as it is, later chunks are ignored and not counted."""
        return self._failed

    @property
    def errors(self) -> tuple[FoldError, ...]:
        """The first ERRORS_MAX errors in order; a fatal one is always among them, as the last."""
        return tuple(self._errors)

    @property
    def error_count(self) -> int:
        """How many errors there were, kept or not."""
        return self._error_count

    def state(self) -> JSONObject:
        """Everything this fold knows, as plain data: `restore` goes on from it as if nothing had happened.

        Its shape is private to this module and versioned; what is stored elsewhere is the message.
        """
        return {
            "version": 1,
            "format": self._format,
            "chunk_count": self._chunk_count,
            "errors": [msgspec.to_builtins(error) for error in self._errors],
            "error_count": self._error_count,
            "draft": self._draft.state(),
        }


def fold(format_name: str, chunks: Iterable[JSON]) -> JSONObject:
    """The message that all these chunks make, as `Fold.message` gives it at the end.

    Chunks that do not belong are passed over; who needs to know of them uses a Fold. Raises UnknownFormat.
    """
    folding = Fold.start(format_name)
    for chunk in chunks:
        folding.add(chunk)
    return folding.message


def _draft_type(format_name: str) -> type[Draft]:
    try:
        return FORMATS[format_name]
    except KeyError:
        raise UnknownFormat(format_name) from None
