"""At what times the tokens of an answer come: as they came from real models.

`gaps.json` holds the gaps in milliseconds between the chunks of streamed answers, from the time stamps that ollama gave
them, as they are written down in the demos of github.com/attogram/ollama-bash-lib (revisions 32609976, fbbdf1a4,
ba0e3f54 and eb300097: gpt-oss:120b, hosted; 83657f97 and d0332fc4: qwen3 of 1.7 and 8 billion, on one machine).
Hosted models send in bursts, with stalls of up to a second; local ones keep a beat.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

TOKENS_PER_S: Final = 50.0

_GAPS_MS: Final = msgspec.json.decode((Path(__file__).parent / "gaps.json").read_bytes(), type=dict[str, list[float]])


def recordings() -> dict[str, list[float]]:
    """The gaps in milliseconds, by where the model ran."""
    return _GAPS_MS


def gaps_s(number: int, tokens_per_s: float = TOKENS_PER_S) -> Iterator[float]:
    """Gaps without end, for the answer of that number: one recording from a place of its own, at a common pace.

    Every second answer comes from a hosted model.
    """
    gaps_ms = list(_GAPS_MS.values())[number % len(_GAPS_MS)]
    scale = len(gaps_ms) / sum(gaps_ms) / tokens_per_s
    at = random.Random(number).randrange(len(gaps_ms))
    while True:
        yield gaps_ms[at] * scale
        at = (at + 1) % len(gaps_ms)


def due(number: int, seconds: float, tokens_per_s: float = TOKENS_PER_S) -> array[float]:
    """When the tokens of an answer come within so many seconds."""
    times, at_s = array("d"), 0.0
    for gap_s in gaps_s(number, tokens_per_s):
        at_s += gap_s
        if at_s >= seconds:
            break
        times.append(at_s)
    return times
