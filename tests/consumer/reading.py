"""A reader of the model broker that tries again at once, and what comes out of it."""

from dataclasses import replace
from typing import Any

from consumer import Batch, Limits, Reader
from tests.consumer.model import Model

RECORDS = [{"n": 0}, [1], "two\u2028\u0085\r\n\N{GRINNING FACE}", 3, None]

HASTY = Limits(
    backoff_s_initial=0.001,
    backoff_s_max=0.01,
    backoff_s_jitter=0.001,
    deadline_s=10,
    follow_deadline_s=10,
    life_s_min=0.05,
)
"""Waits so short that every byte of a connection can be cut in one test; deadlines so that nothing hangs."""


def reader(model: Model, **limits: Any) -> Reader:
    return Reader(model.url, limits=replace(HASTY, **limits))


async def followed(model: Model, offset: str = "-1", *, live: bool = True, **limits: Any) -> list[Batch]:
    async with reader(model, **limits) as reading:
        return [batch async for batch in reading.follow("s", offset, live=live)]


def records_of(batches: list[Batch]) -> list[Any]:
    return [record for batch in batches for record in batch.records]
