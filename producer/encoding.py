"""What is written as the bytes that travel: encoded once, when it is written, and framed when a batch is cut."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec

from consumer.answer import media_type
from consumer.wire import JSON

__all__ = ["BYTES", "JSON_ARRAY", "Framing", "encode", "encode_chunk", "framing_of"]

_encode_fast = msgspec.json.Encoder().encode
_encode_strictly = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode


def encode_chunk(chunk: Any) -> bytes:
    """The chunk as JSON. Text is kept exactly, lone surrogates included (as escapes).

    Beside plain JSON values it takes what msgspec turns into JSON: dataclasses, Structs, datetimes, enums, UUIDs, sets
    (an array), bytes (base64), and JSON that is encoded already (`msgspec.Raw`), which stays as it is spelled.
    Raises TypeError if it is no JSON: an unknown type, NaN or an infinity, or a value that contains itself.
    """
    try:
        encoded = _encode_fast(chunk)
    except (UnicodeEncodeError, OverflowError):
        return _encode_exactly(chunk)
    except (TypeError, ValueError, RecursionError) as error:
        raise _no_json(error) from error
    # msgspec writes NaN as null; the rare chunk with a null in it is looked at again.
    return encoded if b"null" not in encoded else _encode_exactly(chunk)


class Framing(NamedTuple):
    """How encoded chunks become one request body."""

    opening: bytes
    separator: bytes
    closing: bytes

    def body(self, encoded: Sequence[bytes]) -> bytes:
        """The body that holds these."""
        return self.opening + self.separator.join(encoded) + self.closing

    def body_bytes(self, content_bytes: int, chunks: int) -> int:
        """How long the body of that many chunks is."""
        return len(self.opening) + content_bytes + len(self.separator) * (chunks - 1) + len(self.closing)


JSON_ARRAY: Final = Framing(b"[", b",", b"]")
"""Always an array, for one chunk too: a broker takes an outermost array as a list of records (PROTOCOL.md 9.1.2), so a
record that is an array itself has to be inside another."""
BYTES: Final = Framing(b"", b"", b"")
"""A byte stream has no records: what is appended together is one piece."""


def framing_of(content_type: str) -> Framing:
    """How the records of a stream of this type travel."""
    return JSON_ARRAY if media_type(content_type) == JSON else BYTES


def encode(content_type: str, data: Any) -> bytes:
    """One record of a JSON stream (any JSON value), or a piece of any other: bytes, or text, which becomes UTF-8.

    Raises TypeError if it is neither, and UnicodeEncodeError for half a surrogate pair in text.
    """
    if framing_of(content_type) is JSON_ARRAY:
        return encode_chunk(data)
    if isinstance(data, str):
        return data.encode()
    if isinstance(data, bytes | bytearray | memoryview):
        return bytes(data)
    raise TypeError(f"a stream of {content_type} takes bytes or text, not {type(data).__name__}")


def _encode_exactly(chunk: Any) -> bytes:
    """What msgspec cannot say: lone surrogates and integers beyond 64 bits; and what it should not: NaN."""
    if isinstance(chunk, msgspec.Raw):
        return bytes(chunk)
    try:
        return _encode_strictly(msgspec.to_builtins(chunk, str_keys=True)).encode()
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise _no_json(error) from error


def _no_json(error: Exception) -> TypeError:
    return TypeError(f"a chunk must be a JSON value: {error}")
