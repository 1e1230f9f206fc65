"""What everything that reads has in common: connections to one broker, and requests repeated until one is answered."""

from __future__ import annotations

from functools import partial
from typing import TypeVar

from consumer.address import broker_url
from consumer.answer import read
from consumer.limits import Limits
from consumer.retry import persist
from consumer.transport import HttpTransport, Pool, Request
from consumer.values import Values

__all__ = ["Client"]

T = TypeVar("T")


class Client:
    """The connections of one reader, view or list, with its limits. The arguments are those of Reader."""

    def __init__(
        self,
        base_url: str,
        *,
        headers: Values | None = None,
        params: Values | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.broker = broker_url(base_url)
        self.limits = limits or Limits()
        pool = Pool(answer_bytes_max=self.limits.batch_bytes_max)
        self.transport = HttpTransport(base_url, self.limits, pool, headers=headers, params=params)

    async def aclose(self) -> None:
        """Close all connections; requests under way fail."""
        await self.transport.aclose()

    async def ask_once(self, request: Request, shape: type[T]) -> T:
        """The body of the answer. Raises AttemptFailed if there was none that settles it, and the errors of Reader."""
        return read(await self.transport.send(request), shape)

    async def ask(self, request: Request, shape: type[T]) -> T:
        """The body of the answer. The request is repeated until `deadline_s`, so it must be one that may be.

        Raises Unavailable, Refused and the other errors of Reader.
        """
        return await persist(partial(self.ask_once, request, shape), self.limits, deadline_s=self.limits.deadline_s)
