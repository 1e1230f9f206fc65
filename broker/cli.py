"""The `streamfold` command: the broker, and the two client libraries from a shell.

What a command needs is imported when it runs: a client must work where the server's libraries are not installed, and a
broker starts without loading the clients.
"""

from __future__ import annotations

import logging
import sys
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, Final, TypeVar

import anyio
import click

import consumer
from broker.terminal import (
    print_batches,
    print_json,
    print_messages,
    print_result,
    print_sessions,
    print_verdict,
    whole_lines,
    write_lines,
)
from consumer.wire import OFFSET_START

T = TypeVar("T")

URL_DEFAULT: Final = "http://127.0.0.1:4437"
FIRST_ANSWER_S_MAX: Final = 2.0
"""How long the first request is retried: who has mistyped the URL should not wait for the patience that a long read
or a running answer deserves."""
IMPORT_S_MAX: Final = 120.0
"""How long the last request of an import may take: the broker reads all records once more before it answers."""
EXIT_INTERRUPTED: Final = 130
"""As shells count a process that SIGINT ended."""


class _Lazy(click.Command):
    """A command that lives in a module of its own, under its own name; it is loaded when it is run."""

    def __init__(self, name: str, module: str, short_help: str, needs: str = "streamfold[server]") -> None:
        super().__init__(name, short_help=short_help)
        self._module = module
        self._needs = needs

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        return self._load().make_context(info_name, args, parent, **extra)

    def _load(self) -> click.Command:
        try:
            command = getattr(import_module(self._module), str(self.name))
        except ModuleNotFoundError as error:
            raise click.ClickException(f"{error}; `streamfold {self.name}` needs {self._needs}") from error
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
main.add_command(_Lazy("doctor", "broker.doctor.command", "Say what is whole in a data folder, and what helps."))
main.add_command(_Lazy("materialize", "consumer.materialize.command", "Keep sessions as rows in a database of yours."))
main.add_command(_Lazy("demo", "broker.demo", "Watch answers survive a killed broker and a dropped reader."))
main.add_command(
    _Lazy("bench", "benchmarks.command", "Measure the broker.", needs="a checkout of the project: deploy/setup --test")
)

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
                await write_lines(writing)
                receipt = await writing.finish()
            result = {
                "sessionId": session,
                "generationId": generation_id,
                "messageId": writing.message_id,
                "status": "complete",
                "chunks": writing.durable_chunks,
                "offset": receipt.offset if receipt else None,
            }
            print_result(result, as_json=as_json)

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
            reached = await print_batches(reading.follow(stream, offset, live=False, offsets=offsets), as_json=as_json)
            if follow and not reached.closed:
                await print_batches(reading.follow(stream, offsets=offsets), as_json=as_json)

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
        print_messages(session, snapshot, as_json=as_json)

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
                    print_verdict(verdict, as_json=as_json)
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
        async with producing, aclosing(whole_lines(sys.stdin.fileno())) as lines:
            receipt = await producing.import_session(lines, session_id=session)
        told = {"sessionId": receipt.session_id, "offset": receipt.offset, "created": receipt.created}
        if as_json:
            print_json(told)
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
            print_sessions(recents.sessions, [], as_json=as_json)
            if live:
                async with aclosing(recents.follow()) as changes:
                    async for change in changes:
                        print_sessions(change.sessions, change.removed, as_json=as_json)

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
    import aiohttp  # noqa: PLC0415  as above

    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
        cause = cause.__cause__
    return cause is not None


async def _each(texts: tuple[str, ...]) -> AsyncGenerator[str, None]:
    for text in texts:
        yield text
