"""`streamfold materialize`: the command."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final
from urllib.parse import unquote

import anyio
import click

from consumer.address import broker_url, checked_id
from consumer.errors import ClientError, Unavailable
from consumer.limits import Limits
from consumer.materialize.materializing import Materializing
from consumer.materialize.moves import Moves
from consumer.materialize.sink import Sink, SinkError
from consumer.materialize.sqlite import SqliteSink
from consumer.reader import Reader

__all__ = ["materialize"]

log = logging.getLogger("streamfold.materialize")

URL_DEFAULT: Final = "http://127.0.0.1:4437"
FIRST_ANSWER_S_MAX: Final = 2.0
"""How long the first request is retried: who has mistyped the URL should not wait for ever."""
_SQLITE: Final = "sqlite:///"
_POSTGRES: Final = ("postgresql://", "postgres://")


def _checked_url(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    try:
        broker_url(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    return value


def _checked_ids(_context: click.Context, _parameter: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    try:
        return tuple(checked_id("an id", session_id) for session_id in value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@click.command(context_settings={"show_default": True})
@click.option("--to", "dsn", required=True, metavar="DSN", help="sqlite:///PATH or postgresql://USER:PASSWORD@HOST/DB.")
@click.option("--session", "session_ids", multiple=True, metavar="ID", callback=_checked_ids, help="One of these only.")
@click.option("--all", "every", is_flag=True, help="All sessions, also those to come.")
@click.option("--once", is_flag=True, help="End when all is as it was at the start.")
@click.option(
    "--pgbouncer/--no-pgbouncer",
    default=None,
    help="Whether a pooler gives every transaction another connection. [default: found out]",
    show_default=False,
)
@click.option(
    "--url", default=URL_DEFAULT, envvar="STREAMFOLD_URL", metavar="URL", callback=_checked_url, help="The broker."
)
def materialize(
    *, dsn: str, session_ids: tuple[str, ...], every: bool, once: bool, pgbouncer: bool | None, url: str
) -> None:
    """Keep the messages of sessions as rows in a database of yours, exactly once.

    It follows sessions, folds them, and writes rows and offset in one transaction: the tables are
    streamfold_sessions and streamfold_messages. It may be killed at any moment. Outages of the broker and of the
    database are waited out, once both have been there. Of two that write the same session the one that was started
    later goes on, the other one ends.

    Exit status: 0 done, or ended by SIGTERM; 1 failed; 2 wrong usage; 3 the tables are of a newer version;
    4 another one has taken over; 130 interrupted.
    """
    if every == bool(session_ids):
        raise click.UsageError("say which: --all, or --session ID, which may be repeated")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    sink = _sink(dsn, pgbouncer=pgbouncer)
    try:
        anyio.run(_run, sink, url, None if every else session_ids, once)
    except KeyboardInterrupt:
        sys.exit(130)
    except (SinkError, ClientError) as error:
        raise _Failed(error) from error


class _Failed(click.ClickException):
    def __init__(self, error: SinkError | ClientError) -> None:
        super().__init__(str(error))
        self.exit_code = error.exit_status if isinstance(error, SinkError) else 1  # type: ignore[misc]  # click sets it so as well


def _sink(dsn: str, *, pgbouncer: bool | None) -> Sink:
    if dsn.startswith(_SQLITE) and len(dsn) > len(_SQLITE):
        return SqliteSink(Path(unquote(dsn.removeprefix(_SQLITE))))
    if dsn.startswith(_POSTGRES):
        return _postgres(dsn, pgbouncer)
    raise click.BadParameter(
        "must be sqlite:///PATH (sqlite:////PATH for one from the root) or postgresql://…", param_hint="--to"
    )


def _postgres(dsn: str, pgbouncer: bool | None) -> Sink:  # noqa: FBT001  three values: None is to be found out
    try:
        from consumer.materialize.postgres import PostgresSink  # noqa: PLC0415  its driver is an extra
    except ModuleNotFoundError as error:
        raise click.UsageError(f"{error}; install streamfold[postgres]") from error
    try:
        return PostgresSink(dsn, pgbouncer=pgbouncer)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--to") from error


async def _run(sink: Sink, url: str, session_ids: tuple[str, ...] | None, once: bool) -> None:  # noqa: FBT001  by anyio
    try:
        with anyio.CancelScope() as scope:
            with suppress(NotImplementedError):  # where there are no signals, the process just ends
                asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, scope.cancel)
            await sink.open()
            await _greet(url)
            async with Reader(url) as reader:
                log.info("follows %s", "all sessions" if session_ids is None else ", ".join(session_ids))
                await Materializing(reader, sink, session_ids=session_ids, once=once).run()
    finally:
        await sink.aclose()


async def _greet(url: str) -> None:
    """Raises ClientError if no broker answers."""
    async with Reader(url, limits=Limits(deadline_s=FIRST_ANSWER_S_MAX)) as reader:
        try:
            await Moves(reader.client).begin()
        except Unavailable as error:
            raise Unavailable(f"no broker at {url}: {error}") from error
