"""Headers and parameters that a caller adds to every request: texts, or functions that are asked each time."""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TypeAlias

import anyio

from consumer.errors import ValueFailed

__all__ = ["Value", "Values", "checked_headers", "checked_params", "evaluate"]

Value: TypeAlias = str | Callable[[], str | Awaitable[str]]
"""A text, or a function that gives one, async or not: called for every request, so that a token can be renewed."""
Values: TypeAlias = Mapping[str, Value]

_OF_THE_PROTOCOL: Final = frozenset({"offset", "live", "cursor"})


_HEADER: Final = re.compile(r"[\x20-\x7e\t]*")


def checked_headers(headers: Values | None) -> dict[str, Value]:
    """The headers as they are. Raises ValueError for a text that cannot travel, such as a token with its line end."""
    for name, value in (headers or {}).items():
        if isinstance(value, str) and not _HEADER.fullmatch(value):
            raise ValueError(f"the value of {name!r} can be no header")
    return dict(headers or {})


def checked_params(params: Values | None) -> dict[str, Value]:
    """The parameters as they are. Raises ValueError for one that the protocol itself uses: it would redirect a read."""
    taken = _OF_THE_PROTOCOL & (params or {}).keys()
    if taken:
        raise ValueError(f"these parameters are the protocol's own: {', '.join(sorted(taken))}")
    return dict(params or {})


async def evaluate(values: Values, *, wait_s_max: float) -> dict[str, str]:
    """All values as they are at this moment.

    Raises ValueFailed if a function raises, takes longer than `wait_s_max`, or gives no printable text.
    """
    if all(isinstance(value, str) for value in values.values()):
        return dict(values)  # type: ignore[arg-type]  # the line above has just looked at every one
    return {name: await _evaluate(name, value, wait_s_max) for name, value in values.items()}


async def _evaluate(name: str, value: Value, wait_s_max: float) -> str:
    if isinstance(value, str):
        return value
    try:
        with anyio.fail_after(wait_s_max):
            given = value()
            text: object = await given if inspect.isawaitable(given) else given
    except Exception as error:  # whatever a function of the caller's raises
        raise ValueFailed(f"the value of {name!r} could not be had: {type(error).__name__}: {error}") from error
    if not isinstance(text, str) or not _HEADER.fullmatch(text):
        raise ValueFailed(f"the value of {name!r} is no printable text")  # and is not told: it may be a secret
    return text
