"""Messages that are shown before the broker has them: pure, but for the scope that each is sent in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import anyio

from consumer.wire import RecordType, Status

__all__ = ["OPTIMISTIC", "Optimistic", "Sending"]

OPTIMISTIC: Final = "optimistic"
"""The status of a message that this view shows, and of which it is not known yet whether the broker has it."""


@dataclass(eq=False)
class Sending:
    """One message on its way."""

    item: dict[str, Any]
    """As a view lists it."""
    txid: str
    offset: str | None = None
    """Where the session has it; None until that is known."""
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    """Of the request that is under way: cancelled when nothing needs to be asked any more."""

    def settle(self, offset: str) -> None:
        """The broker has it."""
        if self.offset is None:
            self.offset = offset
            self.item = {**self.item, "status": Status.COMPLETE.value}


class Optimistic:
    """The messages that a view shows beyond what its log has told, in the order in which they were sent."""

    def __init__(self) -> None:
        self._sending: dict[str, Sending] = {}  # by message id

    def __contains__(self, message_id: str) -> bool:
        return message_id in self._sending

    def items(self) -> list[dict[str, Any]]:
        return [sending.item for sending in self._sending.values()]

    def item(self, message_id: str) -> dict[str, Any] | None:
        sending = self._sending.get(message_id)
        return None if sending is None else sending.item

    def add(self, message_id: str, message: dict[str, Any], txid: str) -> Sending:
        """Show it."""
        item = {"id": message_id, "role": message["role"], "status": OPTIMISTIC, "message": message}
        sending = self._sending[message_id] = Sending(item, txid)
        return sending

    def drop(self, sending: Sending) -> bool:
        """Show it no more. Whether it was shown."""
        message_id = sending.item["id"]
        if self._sending.get(message_id) is not sending:
            return False
        del self._sending[message_id]
        return True

    def see(self, record: Any, offset: str) -> None:
        """The log has this record, before this offset: what it says of a message is what is shown from now on."""
        match record:
            case {"type": RecordType.MESSAGE, "key": str(key), "headers": dict(headers)} if key in self._sending:
                sending = self._sending.pop(key)
                # Another txid is that of another writer, or of an earlier life of this one: only the broker can tell
                # whether both mean the same message, so its answer is waited for.
                if headers.get("txid") == sending.txid:
                    sending.settle(offset)
                    sending.scope.cancel()
