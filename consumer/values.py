"""Headers and parameters that a caller adds to every request: texts, or functions that are asked each time."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TypeAlias

import anyio

from consumer.errors import ValueFailed

__all__ = ["Value", "Values", "checked_params", "evaluate"]

Value: TypeAlias = str | Callable[[], str | Awaitable[str]]
"""A text, or a function that gives one, async or not: called for every request, so that a token can be renewed."""
Values: TypeAlias = Mapping[str, Value]

_OF_THE_PROTOCOL: Final = frozenset({"offset", "live", "cursor"})


def checked_params(params: Values | None) -> dict[str, Value]:
    """The parameters as they are. Raises ValueError for one that the protocol itself uses: it would redirect a read."""
    taken = _OF_THE_PROTOCOL & (params or {}).keys()
    if taken:
        raise ValueError(f"these parameters are the protocol's own: {', '.join(sorted(taken))}")
    return dict(params or {})


async def evaluate(values: Values, *, wait_s_max: float) -> dict[str, str]:
    """All values as they are at this moment. Raises ValueFailed if a function raises, hangs, or gives no text."""
    if all(isinstance(value, str) for value in values.values()):
        return dict(values)  # type: ignore[arg-type]  # the line above has just looked at every one
    return {name: await _evaluate(name, value, wait_s_max) for name, value in values.items()}


async def _evaluate(name: str, value: Value, wait_s_max: float) -> str:
    if isinstance(value, str):
        return value
    try:
        with anyio.fail_after(wait_s_max):
            given = value()
            text = await given if inspect.isawaitable(given) else given
    except Exception as error:
        raise ValueFailed(f"the value of {name!r} could not be had: {type(error).__name__}: {error}") from error
    if not isinstance(text, str):
        raise ValueFailed(f"the value of {name!r} is no text but {type(text).__name__}")
    return text
