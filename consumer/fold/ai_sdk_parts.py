"""The parts of an AI SDK message in the making, and where its current step begins."""

from __future__ import annotations

from typing import Final

from consumer.plain import JSON, JSONObject

STEP_START: Final = "step-start"


class Parts:
    """A list of parts that grows at its end, and loses parts only there.

    A part is replaced, never edited, because messages that were handed out share it. So an index stays that of the
    same part until a step that holds it is dropped.
    """

    __slots__ = ("_all", "_own", "step_start")

    def __init__(self, parts: list[JSONObject]) -> None:
        self._all = parts
        self._own: set[int] = set()
        """Indexes of parts that nobody else has."""
        self.step_start = 0
        """The current step is all parts from this index on: those after the last `step-start`, which may be none."""
        for index, part in enumerate(parts):
            if part["type"] == STEP_START:
                self.step_start = index + 1

    def __len__(self) -> int:
        return len(self._all)

    def __getitem__(self, index: int) -> JSONObject:
        return self._all[index]

    def __setitem__(self, index: int, part: JSONObject) -> None:
        self._all[index] = part
        self._own.discard(index)

    def editable(self, index: int) -> JSONObject:
        """The part, to be edited at once. It is copied once after each time that the parts were handed out."""
        if index not in self._own:
            self._all[index] = {**self._all[index]}
            self._own.add(index)
        return self._all[index]

    def copy(self) -> list[JSON]:
        self._own.clear()
        return [*self._all]

    def push(self, part: JSONObject) -> int:
        """Put the part at the end. Its index."""
        self._all.append(part)
        return len(self._all) - 1

    def start_step(self) -> None:
        self.push({"type": STEP_START})
        self.step_start = len(self._all)

    def drop_step(self) -> list[JSONObject]:
        """Take away what the current step holds; its `step-start` stays. The parts taken away."""
        self._own.clear()
        dropped = self._all[self.step_start :]
        del self._all[self.step_start :]
        return dropped
