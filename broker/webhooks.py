"""Webhooks: signed requests to receivers that somebody named, and never to anybody inside (PROTOCOL.md 7.1, 12.8).

A URL is judged twice. By its text, when it is given: https only. And by the addresses that its name has, right before
each delivery: if any of them is not out in the public network nothing is sent, and what is connected to is an address
that was judged, never the name, which could have another one by then. Redirects are answers like any other that
is no 2xx: failures.

The one exception is for development: `http://localhost` and `http://127.0.0.x`, while the broker itself can only be
reached from its own machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import re
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import httpx
import msgspec

from broker import limits
from broker.signing import Signing

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""The addresses of a host name. Raises OSError."""

_PORT_MAX: Final = 65_535
_ADDRESSES_MAX: Final = 4  # that are tried, one after the other
_RESOLVERS: Final = 8  # threads that wait for names
_LOCAL_HOST: Final = re.compile(r"localhost|127\.0\.0\.[0-9]{1,3}")
_VISIBLE: Final = re.compile(r"[\x21-\x7e]+")
_NOT_PUBLIC: Final = tuple(
    map(
        ipaddress.ip_network,
        (
            "192.0.0.0/24",  # protocol assignments, Oracle's metadata among them; older Pythons take it for public
            "192.88.99.0/24",  # relays of 6to4
            "168.63.129.16/32",  # Azure's metadata
            # these stand for an IPv4 address, which then may be any: compatible, mapped, NAT64, 6to4, Teredo
            *("::/96", "::ffff:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32"),
        ),
    )
)


class UrlRejected(ValueError):
    """The URL may not be called; the text says why."""


class DeliveryFailed(Exception):
    """The receiver did not take it: a later attempt may succeed."""


class _Answer(msgspec.Struct):
    """What a receiver may say."""

    done: bool = False


class Webhooks:
    """Delivers; at most `limits.WEBHOOKS_MAX` at once, each within `limits.WEBHOOK_S`."""

    def __init__(
        self,
        signing: Signing,
        *,
        local: bool,
        resolve: Resolve | None = None,
        verify: ssl.SSLContext | None = None,
    ) -> None:
        self._signing = signing
        self._local = local
        self._resolvers = ThreadPoolExecutor(_RESOLVERS, "webhook names")
        self._resolve = self._look_up if resolve is None else resolve
        self._verify = verify
        self._client: httpx.AsyncClient | None = None
        self._places = asyncio.Semaphore(limits.WEBHOOKS_MAX)

    async def require_allowed(self, text: str) -> None:
        """Judge the URL of a new subscription. Raises UrlRejected.

        A name that has no address now may have one when it counts.
        """
        url = destination(text, local=self._local)
        try:
            async with asyncio.timeout(limits.RESOLVE_S):
                await self._addresses(url)
        except (OSError, TimeoutError):
            return

    async def deliver(self, text: str, body: bytes) -> bool:
        """Post a signed body. Returns whether the receiver says that it is done with it; raises DeliveryFailed."""
        async with self._places:
            try:
                async with asyncio.timeout(limits.WEBHOOK_S):
                    return await self._deliver(destination(text, local=self._local), body)
            except TimeoutError:
                raise DeliveryFailed(f"no whole answer within {limits.WEBHOOK_S:.0f} s") from None
            except (UrlRejected, OSError, httpx.HTTPError) as error:
                raise DeliveryFailed(str(error) or repr(error)) from error

    async def aclose(self) -> None:
        """Close what is open. Idempotent."""
        self._resolvers.shutdown(wait=False, cancel_futures=True)
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    async def _deliver(self, url: httpx.URL, body: bytes) -> bool:
        *others, last = (await self._addresses(url))[:_ADDRESSES_MAX]
        for address in others:
            with contextlib.suppress(httpx.ConnectError):
                return await self._post(url, address, body)
        return await self._post(url, last, body)

    async def _addresses(self, url: httpx.URL) -> list[str]:
        """The addresses of the URL's host, every one of them judged. Raises UrlRejected, OSError."""
        host = url.raw_host.decode("ascii")
        addresses = [host] if _is_address(host) else list(await self._resolve(host, _port(url)))
        if not addresses:
            raise OSError(f"{host} has no address")
        for address in addresses:
            if not (is_loopback(address) if url.scheme == "http" else is_public(address)):
                raise UrlRejected(f"{host} has the address {address}, which webhooks must not reach")
        return addresses

    async def _look_up(self, host: str, port: int) -> list[str]:
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(
            # As bytes: they are not encoded once more, by rules that raise other errors.
            self._resolvers,
            lambda: socket.getaddrinfo(host.encode("ascii"), port, type=socket.SOCK_STREAM),
        )
        return list(dict.fromkeys(str(address[0]) for *_, address in found))

    async def _post(self, url: httpx.URL, address: str, body: bytes) -> bool:
        """Connect to the address, and speak to it as to the URL's host: certificate and Host header are the name's."""
        request = self._opened().build_request(
            "POST",
            url.copy_with(host=address),
            content=body,
            headers={
                "host": url.netloc.decode("ascii"),
                "content-type": "application/json",
                "accept-encoding": "identity",
                "user-agent": "streamfold",
                "webhook-signature": self._signing.signature(body, int(time.time())),
            },
            extensions={"sni_hostname": url.raw_host.decode("ascii")} if url.scheme == "https" else None,
        )
        response = await self._opened().send(request, stream=True)
        try:
            if not response.is_success:
                raise DeliveryFailed(f"status {response.status_code}")
            return _says_done(await _body_of(response))
        finally:
            await response.aclose()

    def _opened(self) -> httpx.AsyncClient:
        """The client, made when it is first needed: reading the certificates takes its time."""
        if self._client is None:
            self._client = httpx.AsyncClient(
                verify=ssl.create_default_context() if self._verify is None else self._verify,
                trust_env=False,  # a proxy would look up the name again
                follow_redirects=False,
                timeout=limits.WEBHOOK_S,
                # A connection kept open is found again by its address: it could carry one receiver's wakes to another.
                limits=httpx.Limits(max_connections=limits.WEBHOOKS_MAX, max_keepalive_connections=0),
            )
        return self._client


def destination(text: str, *, local: bool) -> httpx.URL:
    """A webhook's URL, judged by its text. Raises UrlRejected. `local`: development is allowed."""
    if len(text) > limits.URL_CHARS_MAX or not _VISIBLE.fullmatch(text):
        raise UrlRejected(f"not a URL of at most {limits.URL_CHARS_MAX} visible ASCII characters")
    try:
        url = httpx.URL(text)
        host = url.host
    except (httpx.InvalidURL, ValueError) as error:  # ValueError: of a host that is no IDNA
        raise UrlRejected(f"not a URL: {error}") from error
    if url.userinfo or url.fragment or not host or not 0 < _port(url) <= _PORT_MAX:
        raise UrlRejected("not the URL of a resource: it has no host, no such port, or has a user or a fragment")
    if url.scheme == "http" and _LOCAL_HOST.fullmatch(host):
        if not local:
            raise UrlRejected("http is for development, on a broker that only its own machine reaches")
        return url
    if url.scheme != "https":
        raise UrlRejected("a webhook needs https")
    if _is_address(host) and not is_public(host):
        raise UrlRejected(f"{host} is not an address that webhooks may reach")
    if host.rstrip(".") == "localhost" or host.rstrip(".").endswith(".localhost"):
        raise UrlRejected("localhost is reached by http, in development")
    return url


def is_public(address: str) -> bool:
    """Whether it is one machine's in the public network: nothing private, local, reserved, shared or disguised."""
    ip = ipaddress.ip_address(address)
    if ip.is_multicast or ip.is_reserved or ip.is_unspecified or not ip.is_global:
        return False
    if isinstance(ip, ipaddress.IPv6Address) and (ip.is_site_local or ip.scope_id):
        return False
    return not any(ip in network for network in _NOT_PUBLIC)


def is_loopback(address: str) -> bool:
    """Whether it is this machine. An IPv4 address in the clothes of IPv6 is not told by all Pythons alike: refused."""
    ip = ipaddress.ip_address(address)
    return ip.is_loopback and not (isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _port(url: httpx.URL) -> int:
    if url.port is not None:
        return url.port
    return 443 if url.scheme == "https" else 80


async def _body_of(response: httpx.Response) -> bytes:
    """The body as it was sent; nothing of one that is longer than can matter."""
    body = b""
    async for part in response.aiter_raw():
        body += part
        if len(body) > limits.WEBHOOK_ANSWER_BYTES_MAX:
            return b""
    return body


def _says_done(body: bytes) -> bool:
    try:
        return msgspec.json.decode(body, type=_Answer).done
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False  # a receiver need not say anything
