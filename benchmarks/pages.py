"""A report for people: as Markdown and as an HTML page, with the same pictures beside them."""

from __future__ import annotations

import html
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

from benchmarks import plots, results
from benchmarks.numerals import numeral, spread_text
from benchmarks.results import Report, Scenario, Subject, Target

RESULTS: Final = "results.json"
MARKS: Final = {
    "stretch": "reached, stretch too",
    "reached": "reached",
    "missed": "**not reached**",
    "not measured": "not measured",
}
_STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24; }
table { border-collapse: collapse; margin: 1rem 0; font-size: 13px; }
th, td { border-bottom: 1px solid #d8dee4; padding: .3rem .6rem; text-align: right; vertical-align: top; }
th:first-child, td:first-child { text-align: left; }
code { background: #f0f2f4; padding: .1rem .3rem; border-radius: 3px; }
.missed { color: #b42318; font-weight: 600; } .reached, .stretch { color: #1a7f37; } .warning { color: #9a6700; }
img { width: 49%; min-width: 26rem; height: auto; }
td { white-space: nowrap; } td:first-child { white-space: normal; min-width: 13rem; }
@media (prefers-color-scheme: dark) { img { background: #fff; } }
"""

Table = list[list[str]]
"""Rows of cells; the first is the head."""


def write(report: Report, folder: Path) -> None:
    """`results.json`, `report.md`, `report.html` and a picture for each plot."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.svg"):
        old.unlink()
    results.save(report, folder / RESULTS)
    pictures = dict(_pictures(report))
    for name, svg in pictures.items():
        (folder / name).write_text(svg)
    (folder / "report.md").write_text(markdown(report, pictures))
    (folder / "report.html").write_text(page(report, pictures))


def _pictures(report: Report) -> Iterator[tuple[str, str]]:
    for scenario in report.scenarios:
        for plot in scenario.plots:
            if (svg := plots.drawn(scenario, plot)) is not None:
                yield _file_name(scenario, plot.series), svg


def _shown(scenario: Scenario, pictures: Collection[str]) -> list[tuple[str, str]]:
    """The pictures of a scenario: their names and titles."""
    named = [(_file_name(scenario, plot.series), plot.title) for plot in scenario.plots]
    return [(name, title) for name, title in named if name in pictures]


def _file_name(scenario: Scenario, series: str) -> str:
    return f"{scenario.name}-{series.replace(',', '').replace(' ', '-')}.svg"


# -- what both say -----------------------------------------------------------------------------------------------------


def summary(report: Report) -> Table:
    """Every target and what came of it."""
    rows = [["target", "measured", "bound", "stretch", ""]]
    for scenario in report.scenarios:
        for target in scenario.targets:
            found = scenario.judged(target)
            rows.append(
                [
                    _asked(scenario, target),
                    "-" if found is None else _times(target, spread_text(found)),
                    _bound(scenario, target, target.bound),
                    "" if target.stretch is None else _bound(scenario, target, target.stretch),
                    scenario.verdict(target),
                ]
            )
    return rows


def score(report: Report) -> str:
    """How many targets there are, and what came of them."""
    verdicts = [scenario.verdict(target) for scenario in report.scenarios for target in scenario.targets]
    reached = len(verdicts) - verdicts.count("missed") - verdicts.count("not measured")
    return (
        f"{reached} of {len(verdicts)} reached, {verdicts.count('stretch')} of them the stretch too; "
        f"{verdicts.count('missed')} not reached; {verdicts.count('not measured')} not measured."
    )


def _asked(scenario: Scenario, target: Target) -> str:
    against = "" if target.against is None else f" / {target.against}"
    below = f" ({target.against_measure})" if target.against_measure else ""
    return f"{scenario.name}: {target.measure}, {target.subject}{against}{below}"


def _bound(scenario: Scenario, target: Target, bound: float) -> str:
    sign = ">=" if scenario.measures[target.measure].more_is_better else "<="
    return f"{sign} {_times(target, numeral(bound))}"


def _times(target: Target, text: str) -> str:
    return text if target.against is None else f"{text} x"


def numbers(scenario: Scenario) -> Table:
    """Every number: medians, and the lowest and highest round; the longer list of names goes down."""
    measured = {name: subject for name, subject in scenario.subjects.items() if subject.runs}
    rows = [["", *measured]]
    for measure in scenario.measures:
        cells = [_cell(subject, measure) for subject in measured.values()]
        if any(cells):
            rows.append([measure, *cells])
    return rows if len(rows) > len(measured) else [list(column) for column in zip(*rows, strict=True)]


def _cell(subject: Subject, measure: str) -> str:
    values = subject.values(measure)
    return spread_text(results.spread(values)) if values else ""


def provenance(report: Report) -> list[str]:
    """What, when, where, and how to make it again."""
    programs = ", ".join(f"{name} {version}" for name, version in sorted(report.versions.items()))
    return [
        f"{report.began_at}, in {report.took_s / 60:.0f} minutes.",
        f"{report.facts}.",
        f"Beside it: {programs}." if programs else "",
        disturbance(report),
    ]


def disturbance(report: Report) -> str:
    """What to think of the numbers when somebody else was at work; empty when nobody was."""
    disturbed, runs = report.disturbed_runs
    if not disturbed:
        return ""
    verdict = "Disturbed: these numbers are no more than a hint." if report.disturbed else "The rest was quiet."
    return f"Others used {results.DISTURBED:.0%} of a core or more in {disturbed} of {runs} runs. {verdict}"


# -- Markdown ----------------------------------------------------------------------------------------------------------


def markdown(report: Report, pictures: Collection[str]) -> str:
    """The whole report; `pictures` are the names of those that there are."""
    parts = ["# What was measured", f"    {report.command}", *filter(None, provenance(report))]
    if len(summary(report)) > 1:
        parts += [
            "## Targets",
            score(report),
            table([[*row[:-1], MARKS.get(row[-1], row[-1])] for row in summary(report)]),
        ]
    for scenario in report.scenarios:
        parts += [f"## {scenario.name}: {scenario.title}", scenario.about, table(numbers(scenario))]
        parts += scenario.notes
        parts += [f"![{title}]({name})" for name, title in _shown(scenario, pictures)]
    return "\n\n".join(parts) + "\n"


def table(rows: Table) -> str:
    """As Markdown."""
    head, *rest = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rest])


# -- HTML --------------------------------------------------------------------------------------------------------------


def page(report: Report, pictures: Collection[str]) -> str:
    """The whole report, as a page that asks for nothing but the pictures beside it."""
    body = ["<h1>What was measured</h1>", f"<p><code>{html.escape(report.command)}</code></p>"]
    body += [f"<p>{html.escape(line)}</p>" for line in provenance(report) if line]
    if len(summary(report)) > 1:
        body += ["<h2>Targets</h2>", f"<p>{score(report)}</p>", _html_table(summary(report))]
    for scenario in report.scenarios:
        body += [f"<h2>{html.escape(scenario.name)}: {html.escape(scenario.title)}</h2>"]
        body += [f"<p>{_html_text(scenario.about)}</p>", _html_table(numbers(scenario))]
        body += [f'<p class="warning">{html.escape(line)}</p>' for line in scenario.notes]
        body += [f'<img src="{name}" alt="{html.escape(title)}">' for name, title in _shown(scenario, pictures)]
    head = f'<meta charset="utf-8"><title>What was measured</title><style>{_STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(body) + "\n</body></html>\n"


def _html_table(rows: Table) -> str:
    head, *rest = rows
    lines = ["<tr>" + "".join(f"<th>{html.escape(cell)}</th>" for cell in head) + "</tr>"]
    lines += [f"<tr>{''.join(map(_html_cell, row))}</tr>" for row in rest]
    return f"<table>{''.join(lines)}</table>"


def _html_cell(cell: str) -> str:
    if cell in MARKS:
        return f'<td class="{cell}">{MARKS[cell].strip("*")}</td>'
    return f"<td>{html.escape(cell)}</td>"


def _html_text(text: str) -> str:
    return re.sub("`([^`]*)`", r"<code>\1</code>", html.escape(text, quote=False))
