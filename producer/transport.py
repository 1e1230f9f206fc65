"""How requests travel. One port, so that what sends can be exchanged; HTTP by httpx behind it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import httpx

from producer.errors import AttemptFailed
from producer.limits import Limits

__all__ = ["HttpTransport", "Request", "Response", "Transport"]


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request; `target` is path and query, already escaped."""

    method: str
    target: str
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Response:
    """A whole answer, of any status; the names of `headers` are looked up in any case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Transport(Protocol):
    """Sends one request at a time for each caller, and may be called by many at once.

    It does not retry, and does not judge what comes back.
    """

    async def send(self, request: Request) -> Response:
        """The broker's answer, whatever its status.

        Raises AttemptFailed if there was none: no connection, a lost one, or silence. The request may then have had
        its effect, or may still have it later. A cancelled send gives up its connection.
        """
        ...

    async def aclose(self) -> None:
        """Close all connections."""
        ...


class HttpTransport:
    """HTTP/1.1 over pooled connections that are kept alive."""

    def __init__(self, base_url: str, limits: Limits, headers: Mapping[str, str] | None = None) -> None:
        url = httpx.URL(base_url)
        if url.scheme not in ("http", "https") or not url.host:
            raise ValueError(f"the broker's URL must be http or https, with a host: {base_url!r}")
        self._base_url = str(url).rstrip("/")
        self._client = httpx.AsyncClient(
            headers=dict(headers or {}),
            timeout=httpx.Timeout(limits.attempt_timeout_s, connect=limits.connect_timeout_s),
            limits=httpx.Limits(
                max_connections=limits.connections_max,
                max_keepalive_connections=limits.connections_max,
                keepalive_expiry=limits.connection_idle_s,
            ),
        )

    async def send(self, request: Request) -> Response:
        """See Transport."""
        try:
            answer = await self._client.request(
                request.method, self._base_url + request.target, content=request.body, headers=request.headers
            )
        except httpx.RequestError as error:
            raise AttemptFailed(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__) from error
        return Response(answer.status_code, answer.headers, answer.content)

    async def aclose(self) -> None:
        """See Transport."""
        await self._client.aclose()
