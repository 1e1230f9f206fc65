"""`streamfold doctor`: what is whole in the files of a broker that does not run, and what to do about the rest."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from broker.doctor.finding import Finding, Weight
from broker.doctor.folder import Examined, Verdict, examine
from broker.doctor.salvage import salvage
from broker.errors import DataDirInUse, StartError
from broker.terminal import legible, print_json
from consumer.errors import SpoolError, SpoolInUse
from producer.spool_check import check

_WORST_LAST: Final = (Verdict.HEALTHY, Verdict.IN_USE, Verdict.NEWER, Verdict.DAMAGED)
EXIT_STATUS: Final = {Verdict.HEALTHY: 0, Verdict.DAMAGED: 3, Verdict.IN_USE: 4, Verdict.NEWER: 5}


@click.command()
@click.argument("data_dir", type=click.Path(path_type=Path))
@click.option("--quick", is_flag=True, help="Do not read what the store holds, only how it hangs together.")
@click.option(
    "--spool",
    "spools",
    type=click.Path(dir_okay=False, exists=True, path_type=Path),
    multiple=True,
    help="A producer's spool to look at too; may be given several times.",
)
@click.option(
    "--salvage",
    "target",
    type=click.Path(path_type=Path),
    metavar="OUT",
    help="Make the folder OUT, of everything before the first damage.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def doctor(*, data_dir: Path, quick: bool, spools: tuple[Path, ...], target: Path | None, as_json: bool) -> None:
    """Say what is whole in DATA_DIR, and what to do about the rest.

    Looks at every commit of the journal and at every row and page of the store, and changes nothing. The broker must
    not run; while this runs, none starts. Says what is damaged where, which entries and streams that is about, what a
    broker would do at its start, and what helps.

    The store is an SQLite file, which has no checksums of its own: a bit that turns one letter into another shows
    nowhere in it. In the journal every bit counts.

    Exit status: 0 healthy, 1 it could not be looked at, 2 wrong usage, 3 damaged, 4 a broker has it open, 5 a newer
    version wrote it. With --salvage it is 0 when OUT was made.
    """
    try:
        if target is not None:
            salvaged = salvage(data_dir, target)
            _print_result(
                msgspec.to_builtins(salvaged),
                f"{salvaged.path} has everything up to index {salvaged.index}; {salvaged.entries} entries of it were"
                " in the journal",
                as_json=as_json,
            )
            return
        found = examine(data_dir, thorough=not quick)
    except StartError as error:
        click.echo(f"error: {error}", err=True)
        if error.hint:
            click.echo(f"hint: {error.hint}", err=True)
        sys.exit(EXIT_STATUS[Verdict.IN_USE] if isinstance(error, DataDirInUse) else 1)
    found += [_examined_spool(path) for path in spools]
    worst = max((folder.verdict for folder in found), key=_WORST_LAST.index)
    if as_json:
        print_json({"verdict": worst, "folders": msgspec.to_builtins(found)})
    else:
        click.echo(legible("\n\n".join(_told(folder) for folder in found)))
    sys.exit(EXIT_STATUS[worst])


def _print_result(result: Any, text: str, *, as_json: bool) -> None:
    if as_json:
        print_json(result)
    else:
        click.echo(text)


def _examined_spool(path: Path) -> Examined:
    """A spool in the words of a folder."""
    found = Examined(str(path))
    try:
        checked = check(path)
    except SpoolInUse as error:
        found.verdict, found.advice = Verdict.IN_USE, [f"{error}: let it end, or look at a copy."]
        return found
    except SpoolError as error:
        raise click.ClickException(str(error)) from error
    found.facts.append(
        f"{checked.generations} generations: {checked.waiting} not delivered yet, {checked.refused} refused;"
        f" {checked.batches} batches and {checked.chunks} chunks wait"
    )
    found.findings += [Finding(weight=Weight.DAMAGE, file=path.name, what=fault) for fault in checked.faults]
    if checked.is_newer:
        found.verdict, found.start = Verdict.NEWER, "refused: a newer version wrote it"
    elif checked.faults:
        found.verdict, found.start = Verdict.DAMAGED, "sets it aside where SQLite says that it is damaged"
        found.advice.append("Restore it from a copy, or let the producer begin a new one.")
    else:
        found.start = "delivers what waits"
    return found


def _told(folder: Examined) -> str:
    lines = [f"{folder.path}: {folder.verdict}", *(f"  {fact}" for fact in folder.facts)]
    for finding in folder.findings:
        lines += [f"  {finding.weight}: {finding.file}{_place(finding)}", f"    {finding.what}"]
        if finding.streams:
            lines.append(f"    streams: {', '.join(finding.streams)}")
        if finding.streams_behind:
            lines.append(f"    streams with later entries: {', '.join(finding.streams_behind)}")
    if folder.start:
        lines.append(f"  at the next start: {folder.start}")
    lines += [f"  what helps: {advice}" for advice in folder.advice]
    return "\n".join(lines)


def _place(finding: Finding) -> str:
    parts = []
    if finding.at is not None:
        parts.append(f"bytes {finding.at} to {finding.end}" if finding.end else f"from byte {finding.at}")
    if finding.first_index is not None and finding.next_index is not None:
        parts.append(f"entries {finding.first_index} to {finding.next_index - 1}")
    elif finding.first_index is not None:
        parts.append(f"entries from {finding.first_index} on")
    return f", {', '.join(parts)}" if parts else ""
