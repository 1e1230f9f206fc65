"""The `streamfold` command: the broker, and the two client libraries from a shell.

What a command needs is imported when it runs: a client must work where the server's libraries are not installed, and a
broker starts without loading the clients.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import anyio
import anyio.from_thread
import anyio.lowlevel
import click
import msgspec

import consumer
from consumer.plain import NotJSON, decode, encode
from consumer.wire import OFFSET_START

if TYPE_CHECKING:
    from consumer import verification
    from producer import Generation

T = TypeVar("T")

URL_DEFAULT: Final = "http://127.0.0.1:4437"
FIRST_ANSWER_S_MAX: Final = 2.0
"""How long the first request is retried: who has mistyped the URL should not wait for the patience that a long read
or a running answer deserves."""
IMPORT_S_MAX: Final = 120.0
"""How long the last request of an import may take: the broker reads all records once more before it answers."""
LINE_BYTES_MAX: Final = 4 * 1024 * 1024
"""One line of standard input: above any chunk that a broker takes."""
PIECE_BYTES: Final = 64 * 1024
PIECES_AHEAD_MAX: Final = 16
"""Pieces of standard input that are read and not sent; then reading waits."""
EXIT_INTERRUPTED: Final = 130
"""As shells count a process that SIGINT ended."""


class _Lazy(click.Command):
    """A command that lives in a module of its own, under its own name; it is loaded when it is run."""

    def __init__(self, name: str, module: str, short_help: str) -> None:
        super().__init__(name, short_help=short_help)
        self._module = module

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        return self._load().make_context(info_name, args, parent, **extra)

    def _load(self) -> click.Command:
        try:
            command = getattr(import_module(self._module), str(self.name))
        except ModuleNotFoundError as error:
            raise click.ClickException(f"{error}; `streamfold {self.name}` needs streamfold[server]") from error
        assert isinstance(command, click.Command)
        return command


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(package_name="streamfold")
def main() -> None:
    """A durable log for AI answers.

    Exit status: 0 done, 1 failed (the error is on standard error), 2 wrong usage, 130 interrupted.
    """
    # Retries are the libraries' business; they would be told as warnings otherwise.
    logging.getLogger("stamina").addHandler(logging.NullHandler())


# -- what commands take ------------------------------------------------------------------------------------------------


class _Url(click.ParamType[str]):
    name = "URL"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from consumer.address import broker_url  # noqa: PLC0415  loads an HTTP client, which `serve` has no use for

        try:
            broker_url(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return value


class _Id(click.ParamType[str]):
    name = "ID"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from consumer.address import checked_id  # noqa: PLC0415  as above

        try:
            return checked_id("an id", value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


main.add_command(_Lazy("serve", "broker.serve", "Run a broker until SIGTERM or Ctrl+C."))
main.add_command(_Lazy("materialize", "consumer.materialize.command", "Keep sessions as rows in a database of yours."))
main.add_command(_Lazy("demo", "broker.demo", "Watch answers survive a killed broker and a dropped reader."))

_url = click.option("--url", type=_Url(), default=URL_DEFAULT, envvar="STREAMFOLD_URL", help="The broker.")
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


# -- commands ----------------------------------------------------------------------------------------------------------


@main.command()
@click.argument("session", type=_Id())
@click.option("--generation", type=_Id(), help="Its id. [default: a new one]", show_default=False)
@click.option("--message-id", type=_Id(), help="The message it writes. [default: the generation's id]")
@click.option("--format", "chunk_format", default="ai-sdk-ui-message-stream", help="How the chunks fold.")
@click.option("--lane", type=_Id(), default="main", help="One writer at a time per lane.")
@click.option("--role", default="assistant", help="The message's role.")
@_url
@_json
def produce(
    *,
    session: str,
    generation: str | None,
    message_id: str | None,
    chunk_format: str,
    lane: str,
    role: str,
    url: str,
    as_json: bool,
) -> None:
    """Write an answer into SESSION, from standard input.

    The input is NDJSON: one chunk a line, any JSON value. The session is created if it does not exist. Chunks are sent
    as they come. At the end of the input the generation is
    complete; a line that is no JSON makes it failed, an interruption aborted. What was read before is kept either way.
    """
    from producer import Limits, Producer  # noqa: PLC0415  `serve` has no use for it

    generation_id = generation or f"gen-{uuid.uuid4().hex}"

    async def run() -> None:
        async with Producer(url, limits=Limits(deadline_s=FIRST_ANSWER_S_MAX)) as first:
            await first.create_session(session)
        async with Producer(url) as producing:
            writing = producing.generation(
                session, generation_id, message_id=message_id, lane=lane, format=chunk_format, role=role
            )
            async with writing:
                await _write_lines(writing)
                receipt = await writing.finish()
            result = {
                "sessionId": session,
                "generationId": generation_id,
                "messageId": writing.message_id,
                "status": "complete",
                "chunks": writing.durable_chunks,
                "offset": receipt.offset if receipt else None,
            }
            _print_result(result, as_json=as_json)

    _run(run, url)


@main.command()
@click.argument("stream")
@click.option("--offset", default=OFFSET_START, help="Where to begin: -1 (the start), now, or the token of an offset.")
@click.option("--follow/--no-follow", default=True, help="Go on with what comes, or end at the present end.")
@click.option(
    "--offset-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Keep where it stands in this file, and begin there.",
)
@_url
@_json
def tail(*, stream: str, offset: str, follow: bool, offset_file: Path | None, url: str, as_json: bool) -> None:
    """Print the records of STREAM, and follow it.

    One record a line, as they come, until the stream is closed; lost connections are taken up again. STREAM is a path,
    such as sessions/SESSION, or a URL on the broker. A byte stream is printed as it is. With --json each line is a
    batch: records (bytes in base64), nextOffset (where to begin next time), upToDate, closed.

    With --offset-file each record is printed at least once over any number of runs, crashes included: the file is
    replaced after a batch was printed. --offset then says where the first run begins.
    """
    from consumer.address import broker_url, stream_url  # noqa: PLC0415  `serve` has no use for it

    try:
        stream_url(broker_url(url), stream)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="STREAM") from error

    offsets = consumer.MemoryOffsets() if offset_file is None else consumer.FileOffsets(offset_file)

    async def run() -> None:
        async with consumer.Reader(url, limits=consumer.Limits(deadline_s=FIRST_ANSWER_S_MAX)) as reading:
            reached = await _print_batches(reading.follow(stream, offset, live=False, offsets=offsets), as_json=as_json)
            if follow and not reached.closed:
                await _print_batches(reading.follow(stream, offsets=offsets), as_json=as_json)

    _run(run, url)


@main.command()
@click.argument("session", type=_Id())
@_url
@_json
def messages(*, session: str, url: str, as_json: bool) -> None:
    """Print the folded messages of SESSION."""

    async def run() -> None:
        async with consumer.Reader(url, limits=consumer.Limits(deadline_s=FIRST_ANSWER_S_MAX)) as reading:
            snapshot = await reading.messages(session)
        if as_json:
            _print_json({"sessionId": session, "offset": snapshot.offset, "messages": snapshot.messages})
        else:
            click.echo(b"\n".join(_legible(_described(item)) for item in snapshot.messages), nl=False)

    _run(run, url)


@main.command()
@click.argument("sessions", type=_Id(), nargs=-1)
@click.option("--all", "every", is_flag=True, help="All sessions; those that are deleted meanwhile are passed over.")
@_url
@_json
def verify(*, sessions: tuple[str, ...], every: bool, url: str, as_json: bool) -> None:
    """Check that the messages of SESSIONS are what their logs fold to.

    Each log is read and folded here anew, up to its present end, and compared with what the broker tells of that
    offset. The sessions may be written to meanwhile. Exit status 1 if something differs; what differs is printed.
    """
    from consumer import verification  # noqa: PLC0415  `serve` has no use for it
    from consumer.errors import Gone, NotFound  # noqa: PLC0415  as above

    if bool(sessions) == every:
        raise click.UsageError("name the sessions, or say --all")

    async def run() -> bool:
        same = True
        async with consumer.Reader(url, limits=consumer.Limits(deadline_s=FIRST_ANSWER_S_MAX)) as reading:
            wanted = verification.session_ids(reading) if every else _each(sessions)
            async for session in wanted:
                with suppress(*((Gone, NotFound) if every else ())):
                    verdict = await verification.verify(reading, session)
                    _print_verdict(verdict, as_json=as_json)
                    same = same and not verdict.differences
        return same

    if not _run(run, url):
        sys.exit(1)


@main.command()
@click.argument("session", type=_Id())
@_url
def export(*, session: str, url: str) -> None:
    """Write SESSION to standard output, as a file for `import`.

    NDJSON: what it is, every record as it is spelled in the log, and a last line with a checksum. The session must not
    be written meanwhile; then the exit status is 1, and the last line is missing. The same session gives the same
    bytes, also from another broker that it was imported to.
    """
    from consumer import archive  # noqa: PLC0415  `serve` has no use for it

    async def run() -> None:
        reading = consumer.Reader(url, limits=consumer.Limits(deadline_s=FIRST_ANSWER_S_MAX))
        async with reading, aclosing(archive.export(reading, session)) as lines:
            async for line in lines:
                click.echo(line, nl=False)

    _run_on_archive(run, url)


@main.command("import")
@click.option("--session", type=_Id(), help="Its id here. [default: as in the file]", show_default=False)
@_url
@_json
def import_(*, session: str | None, url: str, as_json: bool) -> None:
    """Make a session out of a file that `export` wrote, from standard input.

    The session is there as a whole or not at all, with the file's own records: same ids, times and ends. A file that is
    damaged or cut is refused, with the number of the line.
    """
    from consumer.errors import NotFound  # noqa: PLC0415  `serve` has no use for it
    from producer import Limits, Producer  # noqa: PLC0415  as above

    async def run() -> None:
        async with consumer.Reader(url, limits=consumer.Limits(deadline_s=FIRST_ANSWER_S_MAX)) as first:
            with suppress(NotFound):
                await first.session(session or "-")
        producing = Producer(url, limits=Limits(deadline_s=IMPORT_S_MAX, attempt_timeout_s=IMPORT_S_MAX))
        async with producing, aclosing(_whole_lines(sys.stdin.fileno())) as lines:
            receipt = await producing.import_session(lines, session_id=session)
        told = {"sessionId": receipt.session_id, "offset": receipt.offset, "created": receipt.created}
        if as_json:
            _print_json(told)
        else:
            click.echo("session {sessionId} is there, offset {offset}".format_map(told))

    _run_on_archive(run, url)


def _run_on_archive(command: Callable[[], Awaitable[None]], url: str) -> None:
    from consumer.archive import BadArchive  # noqa: PLC0415  as above

    try:
        _run(command, url)
    except BadArchive as error:
        raise click.ClickException(str(error)) from error


@main.command()
@click.option("--live", is_flag=True, help="Go on with what changes, until interrupted.")
@click.option("--limit", type=click.IntRange(1, 500), default=50, help="How many at most, before what changes.")
@_url
@_json
def sessions(*, live: bool, limit: int, url: str, as_json: bool) -> None:
    """List the latest sessions, newest activity first.

    With --live, a line follows for each session that is new, changes, or is deleted. With --json each line is one
    session: sessionId, createdAt, lastActivityAt, status, offset, generations, metadata; or sessionId and deleted.
    """

    async def run() -> None:
        async with consumer.Recents(url, limit=limit, limits=consumer.Limits(deadline_s=FIRST_ANSWER_S_MAX)) as recents:
            _print_sessions(recents.sessions, [], as_json=as_json)
            if live:
                async with aclosing(recents.follow()) as changes:
                    async for change in changes:
                        _print_sessions(change.sessions, change.removed, as_json=as_json)

    _run(run, url)


# -- running ----------------------------------------------------------------------------------------------------------


def _run(command: Callable[[], Awaitable[T]], url: str) -> T:
    """Run a command; its expected errors become one line and an exit status."""
    with _told(url):
        try:
            return anyio.run(command)
        except KeyboardInterrupt:
            sys.exit(EXIT_INTERRUPTED)


@contextmanager
def _told(url: str) -> Iterator[None]:
    try:
        yield
    except consumer.ClientError as error:
        text = f"no broker at {url}; start one with `streamfold serve`" if _is_unconnected(error) else str(error)
        raise click.ClickException("\n".join([text, *getattr(error, "__notes__", ())])) from error


def _is_unconnected(error: BaseException) -> bool:
    import httpx  # noqa: PLC0415  as above

    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, httpx.ConnectError | httpx.ConnectTimeout):
        cause = cause.__cause__
    return cause is not None


# -- reading standard input --------------------------------------------------------------------------------------------


class BadLine(click.ClickException):
    """A line of the input that is no chunk."""


async def _write_lines(writing: Generation) -> None:
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


async def _whole_lines(file: int) -> AsyncGenerator[bytes, None]:
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


async def _print_batches(batches: AsyncGenerator[consumer.Batch, None], *, as_json: bool) -> consumer.Batch:
    """Print them; the last one, which there always is."""
    batch: consumer.Batch | None = None
    async with aclosing(batches):
        async for batch in batches:
            _print_batch(batch, as_json=as_json)
    assert batch is not None
    return batch


def _print_batch(batch: consumer.Batch, *, as_json: bool) -> None:
    if as_json:
        _print_json(
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


def _print_sessions(found: list[consumer.SessionSummary], removed: list[str], *, as_json: bool) -> None:
    for session in found:
        if as_json:
            _print_json(msgspec.to_builtins(session))
        else:
            click.echo(f"{session.last_activity_at}  {session.status:9}  {session.session_id}")
    for session_id in removed:
        if as_json:
            _print_json({"sessionId": session_id, "deleted": True})
        else:
            click.echo(f"{'':24}  {'deleted':9}  {session_id}")


def _print_result(result: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        _print_json(result)
    else:
        click.echo(
            "message {messageId} of session {sessionId} is {status}: {chunks} chunks, offset {offset}".format_map(
                result
            )
        )


async def _each(texts: tuple[str, ...]) -> AsyncGenerator[str, None]:
    for text in texts:
        yield text


def _print_verdict(verdict: verification.Verdict, *, as_json: bool) -> None:
    if as_json:
        _print_json(msgspec.to_builtins(verdict))
        return
    result = f"{len(verdict.differences)} differences" if verdict.differences else "as its log folds"
    click.echo(
        f"session {verdict.session_id}: {verdict.messages} messages of {verdict.records} records, {result}, "
        f"offset {verdict.offset}"
    )
    for difference in verdict.differences:
        click.echo(_legible(f"  {difference}"), nl=False)


def _print_json(value: Any) -> None:
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


def _legible(text: str) -> bytes:
    """As it may go to a terminal: what a model or a user wrote must not steer it."""
    shown = "".join(
        character if character in "\n\t" or character.isprintable() else "\N{REPLACEMENT CHARACTER}"
        for character in text
    )
    return shown.encode(errors="replace")
