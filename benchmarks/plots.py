"""Pictures of what was measured, as small SVGs."""

from __future__ import annotations

import io
import math
import re
from collections import defaultdict
from statistics import median
from typing import Any, Final

import matplotlib as mpl

from benchmarks.results import Plot, Point, Scenario, Subject

mpl.use("agg")
from matplotlib import pyplot as plt, ticker
from matplotlib.axes import Axes
from matplotlib.axis import Axis

STYLE: Final[dict[Any, Any]] = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "streamfold",  # the same numbers give the same file
    "font.family": "sans-serif",
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "path.simplify_threshold": 0.5,
}
SIZE_INCHES: Final = (7.0, 3.6)
POWERS_ENOUGH: Final = 2.5
"""Powers of ten on an axis that need nothing between them."""
POINTS_MAX: Final = 60
"""Of one line; more than a picture of this size can show."""


def drawn(scenario: Scenario, plot: Plot) -> str | None:
    """The picture as SVG; None when there is no line to draw."""
    lines = {name: line for name, subject in scenario.subjects.items() if (line := _line(subject, plot.series))}
    if max(map(len, lines.values()), default=0) < 2:
        return None
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=SIZE_INCHES, layout="constrained")
        for name, line in lines.items():
            x, y = zip(*line, strict=True)
            axes.plot(x, y, marker="o" if len(line) < 20 else "", markersize=3, linewidth=1.4, label=name)
        _shape(axes, plot)
        figure.legend(loc="outside right upper", frameon=False)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
        plt.close(figure)
    return _slim(file.getvalue())


def _line(subject: Subject, series: str) -> list[Point]:
    """The median of the rounds at each x; where every round has its own, the last round."""
    rounds = [run.series[series] for run in subject.runs if run.series.get(series)]
    if not rounds:
        return []
    at: dict[float, list[float]] = defaultdict(list)
    for points in rounds:
        for x, y in points:
            at[x].append(y)
    if len(at) > len(rounds[-1]) * 1.5:
        at = {x: [y] for x, y in rounds[-1]}
    line = sorted((x, median(ys)) for x, ys in at.items())
    return line[:: math.ceil(len(line) / POINTS_MAX)]


def _shape(axes: Axes, plot: Plot) -> None:
    axes.set(title=plot.title, xlabel=plot.x, ylabel=plot.y)
    for is_log, axis, scale in ((plot.log_x, axes.xaxis, axes.set_xscale), (plot.log_y, axes.yaxis, axes.set_yscale)):
        if is_log:
            scale("log")
            # Where less than two powers of ten are seen, their halves and fifths have to say where one is.
            axis.set_major_locator(ticker.LogLocator(subs=(1.0,) if _powers(axis) > POWERS_ENOUGH else (1.0, 2.0, 5.0)))
            axis.set_minor_locator(ticker.NullLocator())
        axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:,.10g}"))
    if not plot.log_y:
        axes.set_ylim(bottom=0, top=axes.get_ylim()[1] * 1.05)


def _powers(axis: Axis) -> float:
    least, most = axis.get_view_interval()
    return math.log10(most / least) if least > 0 else math.inf


def _slim(svg: str) -> str:
    """Without what no picture needs, and with no more digits than a screen has."""
    body = re.sub(r"\s*<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    body = re.sub(r"\n\s+", "\n", body)
    return re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), body)
