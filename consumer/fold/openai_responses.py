"""OpenAI's response stream events, folded as `ResponseStream` of `openai` 7 does (FOLDS section 7).

The message is the response as its `finalResponse` would give it if the stream ended here, `{id, status, output:
[item…], output_text, …}`, and `{}` before the first event. `parsed` and the like, which only the package adds, are
left out.

Items are found by the index that their events carry. The reference takes them in any order, shows them in the order of
those indexes, and follows them by their identity when the server repeats the whole response; so does this.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final, Self

import msgspec

from consumer.fold.draft import BadMessage, FatalChunk, chunk_object, string
from consumer.fold.openai_responses_output import (
    CHANGE_TEXT,
    RULES,
    check_replaceable,
    check_target,
    element,
    identity,
    identity_keys,
    item_at,
    text_of,
)
from consumer.fold.tree import Items, Object, array_index, own_list, plain
from consumer.plain import JSON, JSONObject

_INTERIM: Final = frozenset({"response.created", "response.queued", "response.in_progress"})
_ENDED: Final = frozenset({"response.failed", "response.incomplete"})
_COMPLETED: Final = "response.completed"
_FINAL_STATUSES: Final = frozenset({"completed", "failed", "incomplete", "cancelled"})
_IGNORED: Final = frozenset(
    {
        *("response.audio.delta", "response.audio.done"),
        *("response.audio.transcript.delta", "response.audio.transcript.done", "keepalive"),
    }
)


class _State(msgspec.Struct, forbid_unknown_fields=True):
    response: dict[str, Any] | None
    text_is_given: bool
    positions: dict[str, int]
    wires: dict[str, int]
    completed: dict[str, dict[str, Any]]
    unfinished: dict[str, str]
    order_is_stale: bool


class ResponseDraft:
    """One response. `wire` is the index of an item in its events, `position` its place in the output so far."""

    __slots__ = (
        "_completed",
        "_keys",
        "_order_is_stale",
        "_positions",
        "_response",
        "_text_is_given",
        "_unfinished",
        "_wires",
    )

    def __init__(self) -> None:
        self._response: Object | None = None
        self._text_is_given = False
        """Whether the server said what the text of the whole is; it holds until text changes in an item."""
        self._positions: dict[int, int] = {}
        self._wires: dict[str, int] = {}
        """By identity of an item."""
        self._completed: dict[int, JSONObject] = {}
        """Items as they were when the server called them done, by wire index."""
        self._unfinished: dict[int, str] = {}
        """The identities of all others, by wire index."""
        self._order_is_stale = False
        """Whether the output may be in another order than the wire indexes."""
        self._keys: set[str] = set()

    @classmethod
    def start(cls, initial: JSONObject | None) -> Self:
        if initial is not None:
            raise BadMessage("a response cannot be continued")
        return cls()

    @classmethod
    def restore(cls, state: JSON) -> Self:
        stored = msgspec.convert(state, _State)
        draft = cls()
        draft._text_is_given = stored.text_is_given
        draft._positions = {int(wire): position for wire, position in stored.positions.items()}
        draft._wires = stored.wires
        draft._completed = {int(wire): item for wire, item in stored.completed.items()}
        draft._unfinished = {int(wire): named for wire, named in stored.unfinished.items()}
        draft._order_is_stale = stored.order_is_stale
        if stored.response is not None:
            draft._response = Object(stored.response)
            draft._keys = _all_keys(own_list(draft._response, "output"))
        return draft

    def state(self) -> JSONObject:
        return {
            "response": plain(self._response),
            "text_is_given": self._text_is_given,
            "positions": {str(wire): position for wire, position in self._positions.items()},
            "wires": {**self._wires},
            "completed": {str(wire): item for wire, item in self._completed.items()},
            "unfinished": {str(wire): named for wire, named in self._unfinished.items()},
            "order_is_stale": self._order_is_stale,
        }

    def message(self) -> JSONObject:
        if self._response is None:
            return {}
        message: JSONObject = plain(self._response)
        output: Any = message["output"]
        if self._order_is_stale:
            message["output"] = output = [output[position] for position in self._ordered()]
        if not self._text_is_given:
            message["output_text"] = text_of(output)
        return message

    def _ordered(self) -> list[int]:
        # A response that was completed, and then goes on all the same, may have fewer items than were begun.
        places = [self._positions[wire] for wire in sorted(self._positions)]
        return [position for position in places if position < len(self._output)]

    def emitted(self) -> JSONObject | None:
        return None if self._response is None else self.message()

    def final(self) -> JSONObject | None:
        return self.emitted()

    @property
    def finish_reason(self) -> str | None:
        status = None if self._response is None else self._response.get("status")
        return status if isinstance(status, str) and status in _FINAL_STATUSES else None

    def apply(self, chunk: JSON) -> bool:
        event = chunk_object(chunk)
        kind = string(event, "type")
        if kind == "error":
            raise FatalChunk("reported", _error_text(event))
        if self._response is None and kind != "response.created":
            raise FatalChunk("out-of-place", "the first event is `response.created`")
        if kind in self._lifecycle:
            self._lifecycle[kind](self, event)
            return True
        if kind in _IGNORED:
            return False
        if kind not in RULES and kind not in {"response.output_item.added", "response.output_item.done"}:
            raise FatalChunk("malformed", "an event of unknown type")
        return self._apply_to_output(kind, event)

    # -- one item ------------------------------------------------------------------------------------------------

    def _apply_to_output(self, kind: str, event: JSONObject) -> bool:
        wire = array_index(event.get("output_index"))
        if wire is None:
            raise FatalChunk("malformed", "`output_index` is not an index")
        if kind == "response.output_item.added":
            return event.get("item") is not None and self._item_added(wire, event["item"])
        if wire not in self._positions:
            raise FatalChunk("no-such-part", f"no output at index {wire}")
        position = self._positions[wire]
        if kind == "response.output_item.done":
            self._item_done(wire, position, event.get("item"))
        else:
            self._change_item(kind, position, event)
        return True

    def _item_added(self, wire: int, item: Any) -> bool:
        if wire in self._completed or wire in self._unfinished:
            raise FatalChunk("out-of-place", f"a second output at index {wire}")
        self._add_keys(identity_keys(item))
        self._text_is_given = self._text_is_given and item["type"] != "message"
        self._output.append(item)
        self._positions[wire] = len(self._output) - 1
        self._unfinished[wire] = identity(item)
        self._wires[identity(item)] = wire
        self._order_is_stale = True
        return True

    def _item_done(self, wire: int, position: int, item: Any) -> None:
        self._replace(position, item)
        self._completed[wire] = item
        self._unfinished.pop(wire, None)

    def _replace(self, position: int, item: Any, *, keeps_text: bool = False) -> None:
        output = self._output
        old = output[element(output, position)]
        check_replaceable(old, item)
        if "id" not in old and "id" in item:
            self._add_keys([f"id:{item['id']}"])
        self._text_is_given = keeps_text or (self._text_is_given and item["type"] != "message")
        output[position] = item

    def _change_item(self, kind: str, position: int, event: JSONObject) -> None:
        output = self._output
        item = item_at(output, position)
        check_target(item, event)
        RULES[kind](item, event, output)
        if kind in CHANGE_TEXT and item["type"] == "message":
            self._text_is_given = False

    @property
    def _output(self) -> Items:
        return own_list(self._response, "output")

    def _add_keys(self, keys: list[str]) -> None:
        if not self._keys.isdisjoint(keys):
            raise FatalChunk("out-of-place", "two output items with one identity")
        self._keys.update(keys)

    # -- the whole response --------------------------------------------------------------------------------------

    def _interim(self, event: JSONObject) -> None:
        response = self._own_response(event, [])
        if self._response is None:
            self._take(response, str(event["type"]))
            return
        output: Any = response["output"]
        _all_keys(output)
        positions = [self._positions.get(self._wires.get(identity(item), -1)) for item in output]
        if None in positions:
            known = {identity(item) for item in output}
            retained = [plain(item) for item in self._output if identity(item) not in known]
            self._take({**response, "output": [*output, *retained]}, str(event["type"]))
        else:
            self._update(response, output)

    def _update(self, response: JSONObject, output: list[Any]) -> None:
        """All items that the response repeats are known: they are replaced, the others stay."""
        is_given = response.get("output_text") is not None
        for item in output:
            position = self._positions[self._wires[identity(item)]]
            check_replaceable(self._output[element(self._output, position)], item)
        for item in output:
            wire = self._wires[identity(item)]
            self._replace(self._positions[wire], item, keeps_text=is_given)
            if wire in self._completed:
                self._completed[wire] = item
        if output:
            self._reorder()
        self._text_is_given = is_given
        self._response = Object({**response, "output": self._output})

    def _completes(self, event: JSONObject) -> None:
        done = [self._completed[wire] for wire in sorted(self._completed)]
        response = self._own_response(event, done)
        output: Any = response["output"]
        keys = _all_keys(output)
        self._check_complete({identity(item): item for item in output})
        self._set(response, keys)
        self._order_is_stale = False

    def _check_complete(self, final: Mapping[str, Any]) -> None:
        for item in self._completed.values():
            if identity(item) in final:
                check_replaceable(item, final[identity(item)])
        for wire, named in self._unfinished.items():
            old = self._item_of(wire)
            if named not in final or old is None:
                raise FatalChunk("out-of-place", "the response is completed without an item that had begun")
            check_replaceable(old, final[named])

    def _ends(self, event: JSONObject) -> None:
        so_far = [plain(self._item_of(wire)) for wire in sorted(self._positions)]
        self._take(self._own_response(event, so_far), str(event["type"]))

    def _own_response(self, event: JSONObject, output: list[JSONObject]) -> JSONObject:
        """The response of the event; with this output, and the text of it, if it has none."""
        response = event.get("response")
        if not isinstance(response, dict):
            raise FatalChunk("malformed", "`response` is not an object")
        if self._response is not None and response.get("id") != self._response.get("id"):
            raise FatalChunk("out-of-place", "the response changed its id")
        if response.get("output") is None:
            response = {**response, "output": [*output]}
            if event["type"] not in _INTERIM:
                response["output_text"] = text_of(output)
        if not isinstance(response["output"], list):
            raise FatalChunk("malformed", "the `output` of a response is a list")
        return response

    def _item_of(self, wire: int) -> JSONObject | None:
        if wire in self._completed:
            return self._completed[wire]
        position = self._positions.get(wire)
        return None if position is None or position >= len(self._output) else self._output[position]

    def _take(self, response: JSONObject, kind: str) -> None:
        """Put this response in the place of what was there, and find its items again."""
        output: Any = response["output"]
        keys = _all_keys(output)
        wire_of = {identity(item): wire for wire, item in self._completed.items()}
        wire_of |= {named: wire for wire, named in self._unfinished.items()}
        positions: dict[int, int] = {}
        for position, item in enumerate(output):
            wire = wire_of.get(identity(item), position)
            if wire in positions or not self._may_be_at(wire, identity(item)):
                raise FatalChunk("out-of-place", "two output items at one index")
            old = self._item_of(wire) if self._response is not None else None
            if old is not None:
                check_replaceable(old, item)
            positions[wire] = position
        self._set(response, keys)
        self._positions = positions
        self._wires = {identity(output[position]): wire for wire, position in positions.items()}
        for wire, position in positions.items():
            if wire in self._completed:
                self._completed[wire] = output[position]
            else:
                self._unfinished[wire] = identity(output[position])
        self._order_is_stale = kind not in _ENDED
        if self._order_is_stale:
            self._reorder()

    def _may_be_at(self, wire: int, named: str) -> bool:
        done = self._completed.get(wire)
        return self._unfinished.get(wire, named) == named and (done is None or identity(done) == named)

    def _set(self, response: JSONObject, keys: set[str]) -> None:
        self._response = Object(response)
        self._keys = keys
        given = response.get("output_text")
        self._text_is_given = given is not None and not (given == "" and not response["output"])

    def _reorder(self) -> None:
        if self._order_is_stale:
            output = self._output
            output[:] = [output[position] for position in self._ordered()]
            self._positions = {wire: position for position, wire in enumerate(sorted(self._positions))}
            self._order_is_stale = False

    _lifecycle: ClassVar[Mapping[str, Callable[[ResponseDraft, JSONObject], None]]] = {
        **dict.fromkeys(_INTERIM, _interim),
        **dict.fromkeys(_ENDED, _ends),
        _COMPLETED: _completes,
    }


def _all_keys(output: list[Any]) -> set[str]:
    """The identities of all items. Raises FatalChunk if two of them share one."""
    keys = [key for item in output for key in identity_keys(item)]
    if len(set(keys)) != len(keys):
        raise FatalChunk("out-of-place", "two output items with one identity")
    return {*keys}


def _error_text(event: JSONObject) -> str:
    error = event.get("error")
    text = error.get("message") if isinstance(error, dict) else event.get("message")
    return text if isinstance(text, str) else ""
