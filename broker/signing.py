"""What the broker signs: webhooks, for anybody to verify (PROTOCOL.md 6.5, 7.1), and tokens, for itself (12.9).

    signing-key.pem   Ed25519 private keys, PKCS #8 in PEM, one below the other. The first signs, all are published

To rotate, put a new key in front (`openssl genpkey -algorithm ed25519`), restart, and remove the old one once nothing
that it signed is accepted any more: receivers are told to accept about five minutes. The keys are in no journal and in
no backup of the store; nodes of one cluster share the file.

Tokens are signed with a key derived from the first one, so nothing else has to be kept. A rotation ends them: a wake
that is under way runs into its lease then, and the next one has a new token.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import os
import re
import secrets
import sys
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from broker.errors import Damaged, StartError

_FILE_BYTES_MAX: Final = 65_536
_TOKEN_CHARS_MAX: Final = 1_024
_OWNER_ONLY: Final = 0o600
_PEM: Final = re.compile(rb"-----BEGIN PRIVATE KEY-----.+?-----END PRIVATE KEY-----", re.DOTALL)


class Token(msgspec.Struct, array_like=True, frozen=True):
    """What a callback or claim token stands for: one wake of one subscription."""

    subscription_id: str
    birth: int
    generation: int
    expires_ms: int  # in the partition's time


class InvalidToken(ValueError):
    """This broker did not make the text."""


class _Key(NamedTuple):
    private: Ed25519PrivateKey
    kid: str
    jwk: dict[str, str]


class Signing:
    """The keys of one broker. Without a path they live as long as the process."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._keys: list[_Key] = []
        self._token_key = b""

    def open(self) -> None:
        """Read the keys, or make the first one. Raises StartError; Damaged for a file that holds no keys.

        Call it while this process has the data folder.
        """
        if self._path is None:
            pem = _new_pem()
        else:
            try:
                pem = _read(self._path)
            except OSError as error:
                raise StartError(
                    f"{self._path}: {error.strerror}", "the user that runs the broker must own this file"
                ) from error
        self._keys = [_key(private) for private in private_keys(pem, self._path)]
        self._token_key = hashlib.blake2b(
            self._keys[0].private.private_bytes_raw(), person=b"callback tokens", digest_size=32
        ).digest()

    @property
    def kid(self) -> str:
        """The id of the key that signs now: `ds_` and its JWK thumbprint (RFC 7638)."""
        return self._keys[0].kid

    @property
    def jwks(self) -> list[dict[str, str]]:
        """The public keys, the one that signs now first."""
        return [key.jwk for key in self._keys]

    def signature(self, body: bytes, time_s: int) -> str:
        """The `Webhook-Signature` of a body that is sent at `time_s` (Unix time)."""
        key = self._keys[0]
        signed = key.private.sign(b"%d.%b" % (time_s, body))
        return f"t={time_s},kid={key.kid},ed25519={_base64url(signed)}"

    def token(self, token: Token) -> str:
        """The text of a token."""
        claims = msgspec.msgpack.encode(token)
        return f"{_base64url(claims)}.{_base64url(self._mac(claims))}"

    def read_token(self, text: str) -> Token:
        """The token behind a text. Raises InvalidToken. That it has not expired is for the caller to see."""
        claims_text, _, mac_text = text.partition(".")
        try:
            if len(text) > _TOKEN_CHARS_MAX:
                raise InvalidToken
            claims, mac = _unbase64url(claims_text), _unbase64url(mac_text)
            if not hmac.compare_digest(mac, self._mac(claims)):
                raise InvalidToken
            return msgspec.msgpack.decode(claims, type=Token)
        except (ValueError, msgspec.MsgspecError):
            raise InvalidToken from None

    def _mac(self, claims: bytes) -> bytes:
        return hmac.digest(self._token_key, claims, "sha256")


def private_keys(pem: bytes, path: Path | None) -> list[Ed25519PrivateKey]:
    """The keys in the content of `path`, at least one. Raises Damaged."""
    try:
        keys = [load_pem_private_key(block, None) for block in _PEM.findall(pem)]
    except ValueError as error:
        raise _damaged(path) from error
    ours = [key for key in keys if isinstance(key, Ed25519PrivateKey)]
    if not ours or len(ours) != len(keys):
        raise _damaged(path)
    return ours


def _key(private: Ed25519PrivateKey) -> _Key:
    x = _base64url(private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))
    # RFC 7638: the required members in the order of the alphabet, without white space (RFC 8037, appendix A.3).
    thumbprint = hashlib.sha256(b'{"crv":"Ed25519","kty":"OKP","x":"%b"}' % x.encode()).digest()
    kid = f"ds_{_base64url(thumbprint)}"
    return _Key(private, kid, {"kty": "OKP", "crv": "Ed25519", "kid": kid, "use": "sig", "alg": "EdDSA", "x": x})


def _damaged(path: Path | None) -> Damaged:
    return Damaged(
        f"{path} holds no Ed25519 keys, or others too",
        "restore it; or remove it for a new key, and receivers will have to fetch that",
    )


def _new_pem() -> bytes:
    return Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _read(path: Path) -> bytes:
    """The content of the key file, which is made if it is missing."""
    if not path.exists():
        _make(path, _new_pem())
    if sys.platform != "win32":
        path.chmod(_OWNER_ONLY)  # a restored backup may have come with others' rights
    with path.open("rb") as file:
        return file.read(_FILE_BYTES_MAX)


def _make(path: Path, content: bytes) -> None:
    """Make the file whole or not at all, unreadable for others from its first byte on, and durable."""
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _OWNER_ONLY)
        with open(descriptor, "wb") as file:  # noqa: PTH123 -- a descriptor, which no Path opens
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):  # nodes that share the key start together: the first one counts
            path.hardlink_to(draft)
    finally:
        with contextlib.suppress(FileNotFoundError):
            draft.unlink()
    if sys.platform != "win32":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _unbase64url(text: str) -> bytes:
    """Raises ValueError for anything that `_base64url` does not make."""
    data = base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
    if _base64url(data) != text:
        raise ValueError(text)
    return data
