"""What the commands read from standard input, and what they print: lines for programs, or text for people."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.from_thread
import anyio.lowlevel
import click
import msgspec

from consumer.plain import NotJSON, decode, encode

if TYPE_CHECKING:
    import consumer
    from consumer import verification
    from producer import Generation

LINE_BYTES_MAX: Final = 4 * 1024 * 1024
"""One line of standard input: above any chunk that a broker takes."""
PIECE_BYTES: Final = 64 * 1024
PIECES_AHEAD_MAX: Final = 16
"""Pieces of standard input that are read and not sent; then reading waits."""

# -- reading standard input --------------------------------------------------------------------------------------------


class BadLine(click.ClickException):
    """A line of the input that is no chunk."""


async def write_lines(writing: Generation) -> None:
    """Write what standard input holds, or until somebody ends the generation. Raises BadLine."""
    failure: Exception | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_cancel_when_ended, writing, tasks.cancel_scope)
        try:
            await _write_all(writing)
        except Exception as error:  # noqa: BLE001  raised again outside of the group, which would wrap it
            failure = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def _write_all(writing: Generation) -> None:
    number = 0
    async with aclosing(_lines(sys.stdin.fileno())) as lines:
        async for line in lines:
            number += 1
            if line.strip():
                await _write_line(writing, number, line)


async def _cancel_when_ended(writing: Generation, scope: anyio.CancelScope) -> None:
    await writing.stopped.wait()
    scope.cancel()


async def _write_line(writing: Generation, number: int, line: bytes) -> None:
    try:
        await writing.write(decode(line))
    except (NotJSON, TypeError) as error:
        raise BadLine(f"line {number} is no JSON: {error}") from error


async def _lines(file: int) -> AsyncGenerator[bytes, None]:
    """The lines of a file, as they come. Raises BadLine for one above LINE_BYTES_MAX."""
    rest = b""
    async with aclosing(_pieces(file)) as pieces:
        async for piece in pieces:
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                yield line
            if len(rest) > LINE_BYTES_MAX:
                raise BadLine(f"a line is longer than {LINE_BYTES_MAX} bytes")
    yield rest


async def whole_lines(file: int) -> AsyncGenerator[bytes, None]:
    """As `_lines`, without the nothing that follows the last line break."""
    held: bytes | None = None
    async with aclosing(_lines(file)) as lines:
        async for line in lines:
            if held is not None:
                yield held
            held = line
    if held:
        yield held


async def _pieces(file: int) -> AsyncGenerator[bytes, None]:
    """What a file holds, as it comes.

    Read by a thread that the end of the process does not wait for: one that reads a terminal cannot be interrupted. It
    reads the file itself, not the buffer over it, which a thread may hold locked for ever.
    """
    send, receive = anyio.create_memory_object_stream[bytes](PIECES_AHEAD_MAX)
    token = anyio.lowlevel.current_token()

    def pump() -> None:
        with suppress(Exception):  # the loop is over, or nobody wants more
            try:
                while piece := os.read(file, PIECE_BYTES):
                    anyio.from_thread.run(send.send, piece, token=token)
            finally:
                anyio.from_thread.run_sync(send.close, token=token)

    threading.Thread(target=pump, name="standard input", daemon=True).start()
    async with receive:
        async for piece in receive:
            yield piece


# -- printing ----------------------------------------------------------------------------------------------------------


async def print_batches(batches: AsyncGenerator[consumer.Batch, None], *, as_json: bool) -> consumer.Batch:
    """Print them; the last one, which there always is."""
    batch: consumer.Batch | None = None
    async with aclosing(batches):
        async for batch in batches:
            _print_batch(batch, as_json=as_json)
    assert batch is not None
    return batch


def _print_batch(batch: consumer.Batch, *, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "records": batch.records,
                "nextOffset": batch.next_offset,
                "upToDate": batch.up_to_date,
                "closed": batch.closed,
            }
        )
    elif isinstance(batch.records, bytes):
        click.echo(batch.records, nl=False)
    else:
        click.echo(b"".join(encode(record) + b"\n" for record in batch.records), nl=False)


def print_sessions(found: list[consumer.SessionSummary], removed: list[str], *, as_json: bool) -> None:
    for session in found:
        if as_json:
            print_json(msgspec.to_builtins(session))
        else:
            click.echo(f"{session.last_activity_at}  {session.status:9}  {session.session_id}")
    for session_id in removed:
        if as_json:
            print_json({"sessionId": session_id, "deleted": True})
        else:
            click.echo(f"{'':24}  {'deleted':9}  {session_id}")


def print_messages(session_id: str, snapshot: consumer.Snapshot, *, as_json: bool) -> None:
    if as_json:
        print_json({"sessionId": session_id, "offset": snapshot.offset, "messages": snapshot.messages})
    else:
        click.echo(b"\n".join(legible(_described(item)) for item in snapshot.messages), nl=False)


def print_result(result: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(result)
    else:
        click.echo(
            "message {messageId} of session {sessionId} is {status}: {chunks} chunks, offset {offset}".format_map(
                result
            )
        )


def print_verdict(verdict: verification.Verdict, *, as_json: bool) -> None:
    if as_json:
        print_json(msgspec.to_builtins(verdict))
        return
    result = f"{len(verdict.differences)} differences" if verdict.differences else "as its log folds"
    click.echo(
        f"session {verdict.session_id}: {verdict.messages} messages of {verdict.records} records, {result}, "
        f"offset {verdict.offset}"
    )
    for difference in verdict.differences:
        click.echo(legible(f"  {difference}"), nl=False)


def print_json(value: Any) -> None:
    click.echo(encode(value))


def _described(item: dict[str, Any]) -> str:
    """A message for people: who, how it stands, and its text."""
    facts = [str(item.get("role")), str(item.get("status"))]
    facts += [str(item[name]) for name in ("reason", "id") if item.get(name)]
    error = f"[error: {encode(item['error']).decode()}]\n" if item.get("error") is not None else ""
    return f"{' · '.join(facts)}\n{_text(item.get('message'))}\n{error}"


def _text(message: Any) -> str:
    """What a message says: its parts, its content or its text, whichever of the usual forms it has."""
    match message:
        case {"parts": list(parts)} | {"content": list(parts)}:
            return "\n".join(text for text in map(_part_text, parts) if text)
        case {"content": str(text)} | {"text": str(text)}:
            return text
    return encode(message).decode()


def _part_text(part: Any) -> str:
    match part:
        case {"type": "step-start"}:
            return ""
        case {"type": "text", "text": str(text)}:
            return text
        case {"type": str(kind), "text": str(text)}:
            return f"[{kind}] {text}"
        case {"type": str(kind), "state": str(state)}:
            return f"[{kind}: {state}]"
        case {"type": str(kind)}:
            return f"[{kind}]"
    return encode(part).decode()


def legible(text: str) -> bytes:
    """As it may go to a terminal: what a model or a user wrote must not steer it."""
    shown = "".join(
        character if character in "\n\t" or character.isprintable() else "\N{REPLACEMENT CHARACTER}"
        for character in text
    )
    return shown.encode(errors="replace")
