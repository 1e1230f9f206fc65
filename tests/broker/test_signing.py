"""broker/signing.py: the key file, signatures that others can verify, tokens that only this broker can make."""

import base64
import hashlib
import json
import stat
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from broker.errors import Damaged, StartError
from broker.signing import InvalidToken, Signing, Token

TOKEN = Token("sub-1", 7, 3, 1_000)


def opened(path: Path | None = None) -> Signing:
    signing = Signing(path)
    signing.open()
    return signing


def verify(signing: Signing, signature: str, body: bytes, key: int = 0) -> None:
    """As a receiver does it. Raises InvalidSignature."""
    parts = dict(part.split("=", 1) for part in signature.split(","))
    jwk = signing.jwks[key]
    assert parts["kid"] == jwk["kid"]
    public = Ed25519PublicKey.from_public_bytes(decoded(jwk["x"]))
    public.verify(decoded(parts["ed25519"]), f"{parts['t']}.".encode() + body)


def decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def test_signature_is_of_the_time_and_the_body() -> None:
    """PROTOCOL 7.1."""
    signing = opened()
    signature = signing.signature(b"body", 1_700_000_000)
    assert signature.startswith(f"t=1700000000,kid={signing.kid},ed25519=")
    verify(signing, signature, b"body")
    for other in (signature.replace("t=17", "t=18"), signing.signature(b"other", 1_700_000_000)):
        with pytest.raises(InvalidSignature):
            verify(signing, other, b"body")


def test_kid_is_the_thumbprint_of_the_key() -> None:
    """PROTOCOL 6.5, RFC 7638."""
    signing = opened()
    required = {name: signing.jwks[0][name] for name in ("crv", "kty", "x")}
    digest = hashlib.sha256(json.dumps(required, separators=(",", ":")).encode()).digest()
    assert signing.kid == "ds_" + base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def test_key_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "signing-key.pem"
    kid = opened(path).kid
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]
    assert opened(path).kid == kid


def test_rights_of_a_restored_key_are_tightened(tmp_path: Path) -> None:
    path = tmp_path / "signing-key.pem"
    opened(path)
    path.chmod(0o644)
    opened(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_new_key_in_front_signs_and_the_old_one_stays_published(tmp_path: Path) -> None:
    path = tmp_path / "signing-key.pem"
    before = opened(path)
    opened(tmp_path / "new.pem")
    path.write_bytes((tmp_path / "new.pem").read_bytes() + path.read_bytes())
    after = opened(path)
    assert [jwk["kid"] for jwk in after.jwks] == [opened(tmp_path / "new.pem").kid, before.kid]
    assert after.kid != before.kid
    verify(after, before.signature(b"body", 1), b"body", key=1)


def ec_key() -> bytes:
    return generate_private_key(SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@pytest.mark.parametrize(
    "content", [b"", b"rubbish", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", ec_key()]
)
def test_file_without_a_usable_key_stops_the_start(tmp_path: Path, content: bytes) -> None:
    """A new one in its place would make every receiver refuse what it gets."""
    path = tmp_path / "signing-key.pem"
    path.write_bytes(content)
    with pytest.raises(Damaged):
        opened(path)
    assert path.read_bytes() == content


def test_folder_that_takes_no_file_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(StartError):
        opened(tmp_path / "nowhere" / "signing-key.pem")


def test_token_is_read_by_whoever_has_the_key(tmp_path: Path) -> None:
    path = tmp_path / "signing-key.pem"
    assert opened(path).read_token(opened(path).token(TOKEN)) == TOKEN


def test_token_of_another_broker_is_none() -> None:
    with pytest.raises(InvalidToken):
        opened().read_token(opened().token(TOKEN))


def test_no_other_text_passes_for_a_token() -> None:
    signing = opened()
    text = signing.token(TOKEN)
    claims, mac = text.split(".")
    forged = signing.token(Token("sub-2", 7, 3, 1_000)).split(".")[0]
    for other in ("", ".", "a.b", claims, f"{claims}.", f"{forged}.{mac}", f"{text}=", f"{text}A", "é.é", "A" * 2_000):
        with pytest.raises(InvalidToken):
            signing.read_token(other)
