"""A text that grows by deltas: appending is cheap, joining waits until somebody looks."""

from __future__ import annotations


class Growing:
    """The text of the message part at `index`, which is behind while `pieces` holds more than one.

    Deltas are appended to `pieces` directly; that is the hot path of every fold.
    """

    __slots__ = ("index", "pieces")

    def __init__(self, index: int, text: str = "") -> None:
        self.index = index
        self.pieces = [text]

    @property
    def behind(self) -> bool:
        return len(self.pieces) > 1

    def text(self) -> str:
        """All of it as one string. Costs its length once after each time that it has grown."""
        if self.behind:
            self.pieces = [rejoined("".join(self.pieces))]
        return self.pieces[0]


def rejoined(text: str) -> str:
    """The text with both halves of each surrogate pair joined, as JavaScript's strings have them by nature.

    Halves meet where a producer cut a delta inside a pair. One that has no partner stays as it is.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
    return text
