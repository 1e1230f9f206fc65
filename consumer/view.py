"""A session as it is seen: its messages, and how they change."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

import anyio
import anyio.abc
import msgspec

from consumer.address import checked_id, messages_target, with_query
from consumer.batch import Batch
from consumer.changes import Change, Changes
from consumer.errors import ClientError
from consumer.limits import Limits
from consumer.optimistic import Optimistic, Sending
from consumer.plain import decode, encode
from consumer.reader import Reader, Snapshot
from consumer.session import SessionFold
from consumer.silence import Silence
from consumer.transport import Request
from consumer.values import Values
from consumer.wire import JSON, OFFSET_START, SESSION_PATH_PREFIX

__all__ = ["STALLED", "Change", "Sent", "SessionView"]

STALLED: Final = "stalled"
"""The status of a running answer of which nothing was heard for too long."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A message that is durable."""

    message_id: str
    offset: str
    """An offset before which the session has it."""
    txid: str
    """What its record bears, unless the same message had been sent before."""


class _Posted(msgspec.Struct, rename="camel"):
    message_id: str
    offset: str


class SessionView:
    """The messages of one session, kept up to date: `async with SessionView(url, session_id) as view`.

    It starts with the broker's snapshot and follows the log from the snapshot's offset. While an answer is running,
    its message alone does not tell how the next chunk changes it; then the log is folded from its start instead, which
    costs the length of the session once. So it is when a generation goes on with an answer that was cut short before.
    Either way the view equals what `GET /messages` answers at the same offset,
    but for two statuses that only a reader can know: `stalled`, of a running answer of which nothing came for
    `stalled_s`, and `optimistic`, of a message that `send` has not confirmed yet.

    `headers`, `params` and `limits` are those of a Reader. Entering raises what `Reader.messages` and `Reader.follow`
    raise. Enter and leave it in one task.
    """

    def __init__(
        self,
        base_url: str,
        session_id: str,
        *,
        headers: Values | None = None,
        params: Values | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.session_id = session_id
        self.offset = OFFSET_START
        """Where the view stands in the session's stream."""
        self._reader = Reader(base_url, headers=headers, params=params, limits=limits)
        self._stream = SESSION_PATH_PREFIX + session_id
        self._fold = SessionFold()
        self._of_items = False  # it began with the broker's items, and not with records
        self._silence = Silence(self._reader.client.limits.stalled_s)
        self._optimistic = Optimistic()
        self._changes = Changes()
        self._tasks: anyio.abc.TaskGroup | None = None
        self._is_followed = False

    async def __aenter__(self) -> Self:
        try:
            await self._load(await self._reader.messages(self.session_id))
        except BaseException:
            await self._reader.aclose()
            raise
        self._changes = Changes()  # what was loaded is none
        self._tasks = await anyio.create_task_group().__aenter__()
        return self

    async def __aexit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._tasks is not None
        self._tasks.cancel_scope.cancel()
        try:
            # Not told of the caller's exception: a task group would wrap it into a group.
            await self._tasks.__aexit__(None, None, None)
        finally:
            await self._reader.aclose()

    @property
    def messages(self) -> list[dict[str, Any]]:
        """All messages in order, as `GET /messages` lists them. They stay as they are while the view goes on.

        Those that are being sent stand at the end, until the log tells where they belong.
        """
        return [*map(self._shown, self._fold.items()), *self._optimistic.items()]

    def message(self, message_id: str) -> dict[str, Any] | None:
        """One of `messages`; None if there is no such message."""
        item = self._fold.item(message_id)
        return self._optimistic.item(message_id) if item is None else self._shown(item)

    @property
    def status(self) -> str:
        """`streaming` while chunks of an answer come, `pending` before its first one, `stalled`, or `idle`."""
        return self._silence.status

    async def reconnect(self) -> None:
        """Give up every connection and ask again at once: see `Reader.reconnect`."""
        await self._reader.reconnect()

    async def send(self, message: Mapping[str, Any]) -> Sent:
        """Add a whole message, `{"id": …, "role": …, …}`: shown at once as `optimistic`, then confirmed or rolled back.

        The id is yours. While nobody knows whether the message arrived, it is sent again under the same id, until
        `deadline_s`, which cannot double it. It is confirmed by the broker's answer, or by its record in the log,
        whichever comes first; from then on it is as durable as anything else in the session, and it is never listed
        twice. Whatever is raised, and when it is cancelled, the message is not shown any more. After Unavailable it may
        still be in the session, and is then shown when the log tells of it; to send it again is safe.

        Raises Conflict (`MESSAGE_EXISTS`: the id is that of another message), NotFound (`SESSION_NOT_FOUND`), the other
        errors of Reader, TypeError if it is no JSON, and ValueError if it has no id and role of text, or a message of
        this id is being sent.
        """
        message_id, plain = _checked(message)
        if message_id in self._optimistic:
            raise ValueError(f"message {message_id!r} is being sent")
        txid = uuid.uuid4().hex
        target = with_query(messages_target(self.session_id), {"txid": txid})
        sending = self._optimistic.add(message_id, plain, txid)
        if self._fold.item(message_id) is not None:  # the broker will say whether it is the same one
            self._optimistic.drop(sending)
        self._changes.note(message_id)
        try:
            await self._post(Request("POST", target, encode(plain), {"content-type": JSON}), sending)
        finally:
            self._show_outcome(sending)
        assert sending.offset is not None
        return Sent(message_id, sending.offset, txid)

    async def follow(self) -> AsyncGenerator[Change, None]:
        """Changes as they come, from where the view stands, until the session is closed.

        When a change is handed out, `messages` and `offset` have it already. While it is dealt with, the view goes on;
        who is slow gets several changes as one. One follower at a time. Raises what `Reader.follow` raises; after Gone
        or NotFound the session was deleted or reset: open a new view.
        """
        if self._tasks is None or self._is_followed:
            raise RuntimeError("use the view inside 'async with', and follow it once at a time")
        changes = self._changes = Changes()
        self._is_followed = True
        self._silence.listen(anyio.current_time())
        self._tasks.start_soon(self._follow_log, changes)
        try:
            while await self._wait(changes):
                yield self._change(changes)
            if changes.failure is not None:
                raise changes.failure
        finally:
            await changes.stop()
            self._is_followed = False

    # -- the log --------------------------------------------------------------------------------------------------

    async def _load(self, snapshot: Snapshot) -> None:
        with suppress(ValueError):  # an answer is running
            self._fold = SessionFold.of_items(snapshot.messages)
            self.offset = snapshot.offset
            self._of_items = True
            return
        await self._fold_anew()

    async def _fold_anew(self) -> None:
        """Fold the log from its start: what an answer goes on from cannot be told from its message alone."""
        fold, offset = SessionFold(), self.offset
        async with aclosing(self._reader.follow(self._stream, live=False)) as batches:
            async for batch in batches:
                self._add(fold, batch)
                offset = batch.next_offset
        self._fold, self.offset, self._of_items = fold, offset, False

    async def _follow_log(self, changes: Changes) -> None:
        with changes.gathering():
            while not await self._follow_whole(changes):
                await self._fold_anew()

    async def _follow_whole(self, changes: Changes) -> bool:
        """Follow to the end of the log; False as soon as the broker's items are not enough to go on from."""
        async with aclosing(self._reader.follow_session(self.session_id, self.offset)) as batches:
            async for batch in batches:
                self._add(self._fold, batch)
                if self._of_items and not self._fold.is_whole:
                    return False
                self.offset = batch.next_offset
                changes.reach(batch)
        return True

    def _add(self, fold: SessionFold, batch: Batch) -> None:
        now_s = anyio.current_time()
        for record in batch.records:
            message_id = fold.add(record)
            if message_id is not None:
                self._silence.hear(message_id, record, now_s)
                self._changes.note(message_id)
            self._optimistic.see(record, batch.next_offset)

    # -- changes --------------------------------------------------------------------------------------------------

    async def _wait(self, changes: Changes) -> bool:
        """Whether there is something to tell, as soon as there is; False when nothing more will come."""
        while not changes.are_there and not changes.has_ended:
            with anyio.move_on_after(self._silence.next_s() - anyio.current_time()):
                await changes.wait()
            for message_id in self._silence.fall(anyio.current_time()):
                changes.note(message_id)
        return changes.are_there

    def _change(self, changes: Changes) -> Change:
        items = {message_id: self.message(message_id) for message_id in changes.take()}
        return Change(
            sorted((item for item in items.values() if item is not None), key=self._place),
            self.offset,
            changes.up_to_date,
            changes.closed,
            [message_id for message_id, item in items.items() if item is None],
        )

    def _place(self, item: dict[str, Any]) -> tuple[bool, int]:
        """Where it stands among all messages; those that are being sent come last, and keep their order."""
        try:
            return False, self._fold.ordinal(item["id"])
        except KeyError:
            return True, self._optimistic.items().index(item)

    def _shown(self, item: dict[str, Any]) -> dict[str, Any]:
        return {**item, "status": STALLED} if item["id"] in self._silence else item

    # -- sending --------------------------------------------------------------------------------------------------

    async def _post(self, request: Request, sending: Sending) -> None:
        """Return when the broker has the message, as its answer or the log tells."""
        with sending.scope:
            try:
                sending.settle((await self._reader.client.ask(request, _Posted)).offset)
            except ClientError:
                # What went wrong with the answer does not matter once the log has told of the message: it is there.
                if sending.offset is None:
                    raise

    def _show_outcome(self, sending: Sending) -> None:
        """What is not durable goes; what is stays until the log has told of it."""
        message_id = sending.item["id"]
        if sending.offset is None or self._fold.item(message_id) is not None:
            self._optimistic.drop(sending)
        self._changes.note(message_id)


def _checked(message: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The id of the message, and a copy of it as the broker will have it. Raises TypeError and ValueError as `send`."""
    plain: Any = decode(encode(dict(message)))
    match plain:
        case {"id": str(message_id), "role": str()}:
            return checked_id("the message's id", message_id), plain
    raise ValueError("a message needs an id and a role, both texts")
