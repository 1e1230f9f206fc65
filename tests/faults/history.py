"""What writers were told and what readers saw: the record that the checker judges.

It is kept by the workload while the broker is being killed, and knows nothing of how a broker works. All texts that
are written are unique, so wherever one turns up, it is known who wrote it and what he was told.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NamedTuple

_TOKEN = re.compile(r"([0-9a-f]{16})_([0-9a-f]{16})", re.ASCII)


class Place(NamedTuple):
    """What an offset stands for: a position in one life of a path."""

    position: int
    incarnation: int


def place_of(offset: str) -> Place:
    """The place behind an offset; `-1` is the start of any life. Raises ValueError for what no broker issues."""
    if offset == "-1":
        return Place(0, 0)
    match = _TOKEN.fullmatch(offset)
    if match is None:
        raise ValueError(f"{offset!r} is no offset")
    return Place(int(match[1], 16), int(match[2], 16))


class Told(Enum):
    """What one attempt to write was answered with."""

    ACKED = auto()
    REFUSED = auto()  # a definite 4xx
    NOT_YET = auto()  # a gap: its predecessors are still on their way
    UNKNOWN = auto()  # no answer, or one that promises nothing


@dataclass(eq=False)
class Write:
    """One batch, over all attempts to write the same bytes.

    `forbidden` marks what no broker may ever accept. `absent` is set when an answer proves that no attempt, not even
    one whose answer was lost, has been or will be accepted.
    """

    path: str
    texts: tuple[str, ...]
    producer: str = ""
    epoch: int = 0
    seq: int = 0
    life: str = ""
    forbidden: bool = False
    absent: bool = False
    told: list[Told] = field(default_factory=list)
    offsets: set[str] = field(default_factory=set)
    """The offsets named by its acknowledgements. More than one is a violation."""

    @property
    def name(self) -> str:
        who = f"{self.producer}/{self.epoch}/{self.seq}" if self.producer else "without a producer"
        return f"batch {who} of {self.path} ({', '.join(self.texts[:1])[:80]})"

    @property
    def is_acked(self) -> bool:
        return Told.ACKED in self.told

    @property
    def may_be_visible(self) -> bool:
        if self.forbidden or self.absent:
            return False
        return self.is_acked or Told.UNKNOWN in self.told

    @property
    def is_settled(self) -> bool:
        """Whether its last attempt had a definite answer."""
        return self.absent or (bool(self.told) and self.told[-1] in (Told.ACKED, Told.REFUSED))


@dataclass(eq=False)
class View:
    """What one reader saw of one life of a path, from `start` on, without a break."""

    reader: str
    path: str
    incarnation: int
    start: int = 0
    content: list[str] = field(default_factory=list)
    """A text for each position: a record, or a byte."""
    ended: int | None = None
    """Where the reader was told that the stream is closed and has no more."""

    @property
    def position(self) -> int:
        return self.start + len(self.content)


@dataclass
class Log:
    """What is known of one life of a path. `complete`: read to its end after everything was settled."""

    path: str
    incarnation: int
    content: Sequence[str]
    closed: bool = False
    complete: bool = True


@dataclass(eq=False)
class Closing:
    """That a writer was told a stream is closed, at `offset`."""

    path: str
    offset: str


@dataclass(eq=False)
class Generation:
    """What the producer of a generation knows of it. `finish_status` is set when its finish was acknowledged."""

    path: str
    generation_id: str
    message_id: str
    lane: str
    life: str = ""
    batches: list[Write] = field(default_factory=list)
    finish_status: str | None = None
    finish_offsets: set[str] = field(default_factory=set)
    stop_acked: bool = False


@dataclass
class SessionState:
    """What the broker says of a session in the end: the items of `GET /messages`, and the offset they stand at."""

    path: str
    offset: str
    items: list[object]
    life: str = ""
    statuses: dict[str, str] = field(default_factory=dict)
    """Of generations, by id, as `GET /generations/{gid}` tells them."""


@dataclass(eq=False)
class History:
    """Everything that the checker looks at."""

    byte_paths: set[str] = field(default_factory=set)
    """Streams whose positions count bytes; a text ends with its newline there."""
    session_paths: set[str] = field(default_factory=set)
    writes: list[Write] = field(default_factory=list)
    views: list[View] = field(default_factory=list)
    logs: list[Log] = field(default_factory=list)
    closings: list[Closing] = field(default_factory=list)
    generations: list[Generation] = field(default_factory=list)
    sessions: list[SessionState] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    """What was wrong at once, seen from one answer alone."""

    def complain(self, what: str) -> None:
        self.complaints.append(what)

    def write(
        self, path: str, texts: Sequence[str], producer: str = "", epoch: int = 0, seq: int = 0, *, life: str = ""
    ) -> Write:
        """A batch that is about to be written."""
        made = Write(path, tuple(texts), producer, epoch, seq, life)
        self.writes.append(made)
        return made

    def forbidden(self, path: str, text: str) -> Write:
        """A batch that is about to be written and must never be accepted."""
        made = Write(path, (text,), forbidden=True)
        self.writes.append(made)
        return made
