"""broker/webhooks.py: who is called, and who never is (PROTOCOL.md 7.1, 12.8); against real receivers."""

from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from broker import limits, webhooks
from broker.signing import Signing
from broker.webhooks import DeliveryFailed, UrlRejected, Webhooks, destination, is_public
from tests.receiver import Receiver

NAME = "hooks.example"


def hooks(
    addresses: dict[str, Sequence[str]] | None = None, *, local: bool = True, verify: ssl.SSLContext | None = None
) -> Webhooks:
    """What delivers, with these names in the world."""
    signing = Signing()
    signing.open()

    async def resolve(host: str, _port: int) -> Sequence[str]:
        if addresses is None or host not in addresses:
            raise OSError(f"no such name: {host}")
        return addresses[host]

    return Webhooks(signing, local=local, resolve=resolve if addresses is not None else None, verify=verify)


@asynccontextmanager
async def closing(made: Webhooks) -> AsyncIterator[Webhooks]:
    try:
        yield made
    finally:
        await made.aclose()


@pytest.mark.parametrize(
    "url",
    [
        *[
            "http://worker.example/",
            "http://10.0.0.1/",
            "http://127.1.0.1/",
            "http://[::1]/",
            "http://127.0.0.1.example/",
        ],
        *["https://localhost/", "https://localhost./", "https://a.localhost/", "https://127.0.0.1/", "https://[::1]/"],
        *["https://10.0.0.1/", "https://192.168.0.1/", "https://172.16.0.1/", "https://169.254.169.254/latest"],
        *[
            "https://[fe80::1]/",
            "https://[::ffff:10.0.0.1]/",
            "https://0.0.0.0/",
            "https://[::]/",
            "https://224.0.0.1/",
        ],
        *[
            "ftp://worker.example/",
            "file:///etc/passwd",
            "//worker.example/",
            "worker.example",
            "",
            "https://",
            "https:///",
        ],
        *["https://u:p@worker.example/", "https://worker.example@10.0.0.1/", "http://localhost@worker.example/"],
        *["https://worker.example/#f", "https://worker.example:0/", "https://worker.example:65536/"],
        *["https://worker.example/a b", "https://worker.example/\n", "https://wörker.example/", "https://xn--/"],
        "https://worker.example/" + "a" * limits.URL_CHARS_MAX,
    ],
)
def test_url_that_must_not_be_called_is_refused_by_its_text(url: str) -> None:
    with pytest.raises(UrlRejected):
        destination(url, local=True)


@pytest.mark.parametrize(
    "url", ["https://worker.example/hook?x=1", "https://8.8.8.8/", "http://localhost:1/", "http://127.0.0.9:1/"]
)
def test_url_of_the_public_network_or_of_development_is_fine(url: str) -> None:
    assert str(destination(url, local=True)) == url


@pytest.mark.parametrize("url", ["http://localhost:1/", "http://127.0.0.1:1/"])
def test_development_is_over_when_others_reach_the_broker(url: str) -> None:
    with pytest.raises(UrlRejected):
        destination(url, local=False)


@pytest.mark.parametrize(
    "address",
    [
        *["10.1.2.3", "172.31.0.1", "192.168.1.1", "127.0.0.1", "169.254.169.254", "100.64.0.1", "100.100.100.200"],
        *["0.0.0.0", "255.255.255.255", "224.0.0.1", "240.0.0.1", "192.0.0.192", "198.18.0.1", "168.63.129.16"],  # noqa: S104 -- no address to bind
        *[
            "::1",
            "::",
            "::7f00:1",
            "::ffff:8.8.8.8",
            "::ffff:10.0.0.1",
            "fe80::1",
            "fe80::1%eth0",
            "fc00::1",
            "fec0::1",
        ],
        *["ff02::1", "64:ff9b::a00:1", "64:ff9b:1::a00:1", "2002:a00:1::", "2001::1", "2001:db8::1", "fd00:ec2::254"],
    ],
)
def test_address_that_is_not_out_in_the_network_is_none_for_a_webhook(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "2001:4860:4860::8888"])
def test_address_of_the_network_is_fine(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("addresses", [["10.0.0.1"], ["8.8.8.8", "10.0.0.1"], ["::ffff:127.0.0.1"], ["fe80::1%eth0"]])
async def test_name_with_one_address_inside_is_never_called(addresses: list[str]) -> None:
    async with closing(hooks({NAME: addresses})) as made:
        with pytest.raises(UrlRejected):
            await made.require_allowed(f"https://{NAME}/")
        with pytest.raises(DeliveryFailed, match="must not reach"):
            await made.deliver(f"https://{NAME}/", b"{}")


@pytest.mark.parametrize("addresses", [["8.8.8.8"], ["10.0.0.1"], ["127.0.0.1", "8.8.8.8"]])
async def test_localhost_that_is_not_this_machine_is_never_called(addresses: list[str]) -> None:
    async with closing(hooks({"localhost": addresses})) as made:
        with pytest.raises(DeliveryFailed, match="must not reach"):
            await made.deliver("http://localhost:1/", b"{}")


@pytest.mark.parametrize("host", ["127.1", "0x7f.1", "2130706433", "0177.0.0.1"])
async def test_address_in_the_disguise_of_a_name_is_found_out_when_it_is_looked_up(host: str) -> None:
    """The system's own resolver reads these as addresses."""
    async with closing(hooks()) as made:
        with pytest.raises(DeliveryFailed):
            await made.deliver(f"https://{host}/", b"{}")


async def test_name_without_an_address_may_have_one_later() -> None:
    async with closing(hooks({})) as made:
        await made.require_allowed(f"https://{NAME}/")
        with pytest.raises(DeliveryFailed, match="no such name"):
            await made.deliver(f"https://{NAME}/", b"{}")


@pytest.mark.parametrize(
    ("status", "body", "done"),
    [
        (200, b'{"done": true}', True),
        (200, b'{"done": false}', False),
        (202, b"", False),
        (204, b"", False),
        (200, b'{"done": "yes"}', False),
        (200, b"[" * 10_000, False),
        (200, b'{"a": "%b", "done": true}' % (b" " * limits.WEBHOOK_ANSWER_BYTES_MAX), False),
    ],
)
async def test_receiver_that_took_it_may_be_done(status: int, body: bytes, *, done: bool) -> None:
    async with Receiver() as receiver, closing(hooks()) as made:
        receiver.answer(status, body)
        assert await made.deliver(receiver.url, b'{"a": 1}') is done
        request = await receiver.next()
        assert (request.method, request.body) == ("POST", b'{"a": 1}')
        assert request.headers["content-type"] == "application/json"
        assert request.headers["host"] == receiver.url.split("/")[2]


@pytest.mark.parametrize("status", [400, 404, 410, 500, 503])
async def test_any_other_status_is_a_failure(status: int) -> None:
    async with Receiver() as receiver, closing(hooks()) as made:
        receiver.answer(status)
        with pytest.raises(DeliveryFailed, match=str(status)):
            await made.deliver(receiver.url, b"{}")


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_redirect_is_not_followed(status: int) -> None:
    async with Receiver() as receiver, Receiver() as inside, closing(hooks()) as made:
        receiver.answer(status, headers={"location": inside.url})
        with pytest.raises(DeliveryFailed, match=str(status)):
            await made.deliver(receiver.url, b"{}")
        assert inside.requests.empty()


async def test_receiver_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "WEBHOOK_S", 0.2)
    async with Receiver() as receiver, closing(hooks()) as made:
        receiver.hang()
        with pytest.raises(DeliveryFailed, match="no whole answer"):
            await made.deliver(receiver.url, b"{}")


async def test_nobody_there_is_a_failure() -> None:
    async with closing(hooks()) as made:
        with pytest.raises(DeliveryFailed):
            await made.deliver("http://127.0.0.1:1/", b"{}")


# -- the address that was checked is the address that is called ------------------------------------------------------


def certificate(folder: Path, name: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's context with a certificate of that name, and a client's that trusts it."""
    key = Ed25519PrivateKey.generate()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, None)
    )
    pem = folder / "server.pem"
    pem.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + made.public_bytes(Encoding.PEM)
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pem)
    return server, ssl.create_default_context(cadata=made.public_bytes(Encoding.PEM).decode())


@pytest.fixture
def loopback_is_public(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test has no machine out in the network: its own stands for one, and 127.0.0.2 for one inside."""
    monkeypatch.setattr(
        webhooks, "is_public", lambda address: ipaddress.ip_address(address) == ipaddress.ip_address("127.0.0.1")
    )


@pytest.mark.usefixtures("loopback_is_public")
async def test_certificate_and_host_are_those_of_the_name(tmp_path: Path) -> None:
    server, client = certificate(tmp_path, NAME)
    async with Receiver(server) as receiver, closing(hooks({NAME: ["127.0.0.1"]}, verify=client)) as made:
        await made.deliver(f"https://{NAME}:{receiver.port}/hook", b"{}")
        request = await receiver.next()
        assert (request.headers["host"], request.path) == (f"{NAME}:{receiver.port}", "/hook")


@pytest.mark.usefixtures("loopback_is_public")
async def test_receiver_with_the_certificate_of_another_name_gets_nothing(tmp_path: Path) -> None:
    server, client = certificate(tmp_path, "other.example")
    async with Receiver(server) as receiver, closing(hooks({NAME: ["127.0.0.1"]}, verify=client)) as made:
        with pytest.raises(DeliveryFailed, match="certificate"):
            await made.deliver(f"https://{NAME}:{receiver.port}/hook", b"{}")
        assert receiver.requests.empty()


@pytest.mark.usefixtures("loopback_is_public")
async def test_name_that_changes_its_address_is_looked_up_once_for_each_delivery(tmp_path: Path) -> None:
    """DNS rebinding: the first answer is judged and called, the second is never asked for."""
    server, client = certificate(tmp_path, NAME)
    answers = [["127.0.0.1"], ["127.0.0.2"]]

    async def resolve(_host: str, _port: int) -> Sequence[str]:
        return answers.pop(0)

    signing = Signing()
    signing.open()
    rebinding = Webhooks(signing, local=True, resolve=resolve, verify=client)
    async with Receiver(server) as receiver, closing(rebinding) as made:
        await made.deliver(f"https://{NAME}:{receiver.port}/", b"{}")
        assert len(answers) == 1
        with pytest.raises(DeliveryFailed, match="must not reach"):
            await made.deliver(f"https://{NAME}:{receiver.port}/", b"{}")
        await receiver.next()
        assert receiver.requests.empty()


@pytest.mark.usefixtures("loopback_is_public")
async def test_next_address_is_tried_when_one_is_not_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "is_public", lambda _address: True)
    server, client = certificate(tmp_path, NAME)
    async with Receiver(server) as receiver:
        made = hooks({NAME: ["127.0.0.2", "127.0.0.1"]}, verify=client)  # nobody listens on the first
        async with closing(made), asyncio.timeout(5):
            await made.deliver(f"https://{NAME}:{receiver.port}/", b"{}")
