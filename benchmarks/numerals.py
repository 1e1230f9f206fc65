"""How numbers are written in tables."""

from __future__ import annotations

from benchmarks.results import Spread


def numeral(value: float) -> str:
    """Three digits that count, or all before the point."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.2g}"


def spread_text(found: Spread) -> str:
    """The middle, and how far the rounds lie apart."""
    if found.least == found.most:
        return numeral(found.middle)
    return f"{numeral(found.middle)} ({numeral(found.least)} to {numeral(found.most)})"
