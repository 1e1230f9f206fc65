"""What an upload acknowledges: its newest batch that is durable, and in JSON, as every way of uploading tells it."""

from __future__ import annotations

from typing import Final

import msgspec

from broker.core.entry import Entry
from broker.core.offset import format_offset
from broker.core.outcome import Outcome, Result
from broker.core.state import Generation

_encode: Final = msgspec.json.Encoder().encode


class _Ack(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, gc=False):
    """Every batch of the generation up to `seq` is durable; behind it the session's stream stands at `offset`.

    No `offset` for a copy of a batch so old that nobody remembers where it landed.
    """

    seq: int
    fence: int
    session_id: str
    generation_id: str
    message_id: str
    offset: str | None = None
    duplicate: bool = False


class Acks:
    """Of one upload. They are cumulative, so only the newest is kept."""

    def __init__(self, session_id: str) -> None:
        self.seq = -1
        """Of the newest; it only rises. -1 before the first."""
        self.position = 0
        """Of the session's stream behind the newest."""
        self._session_id = session_id
        self._newest: tuple[Entry, Outcome, Generation] | None = None
        self._about: tuple[int, str] = (0, "")  # the fence and the message of `_middle`
        self._middle = b""  # of every ack about them: what stands between seq and offset

    def add(self, entry: Entry, outcome: Outcome, generation: Generation) -> None:
        """A batch behind the newest is durable."""
        self.seq = entry.seq
        self._newest = entry, outcome, generation
        if outcome.next_position is not None:
            self.position = outcome.next_position

    def newest(self) -> bytes:
        """As a JSON object. Of those of tokens all is alike but the numbers. Empty before the first."""
        if self._newest is None:
            return b""
        entry, outcome, generation = self._newest
        position = outcome.next_position
        if position is None or outcome.result is not Result.ACCEPTED:
            return self._encoded(entry, outcome, generation)
        about = generation.fence, generation.message_id
        if about != self._about:
            ids = (self._session_id, generation.generation_id, generation.message_id)
            self._about = about
            self._middle = _encode(_Ack(0, generation.fence, *ids, ""))[len(b'{"seq":0') : -len(b'"}')]
        offset = format_offset(position, generation.incarnation).encode()
        return b'{"seq":%d%b%b"}' % (entry.seq, self._middle, offset)

    def _encoded(self, entry: Entry, outcome: Outcome, generation: Generation) -> bytes:
        position = outcome.next_position
        offset = None if position is None else format_offset(position, generation.incarnation)
        ids = (self._session_id, generation.generation_id, generation.message_id)
        return _encode(_Ack(entry.seq, generation.fence, *ids, offset, outcome.result is Result.DUPLICATE))
