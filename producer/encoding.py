"""A chunk as the bytes that travel: any JSON value, encoded once, when it is written."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import msgspec

_encode_fast = msgspec.json.Encoder().encode
_encode_strictly = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode


def encode_chunk(chunk: Any) -> bytes:
    """The chunk as JSON. Text is kept exactly, lone surrogates included (as escapes).

    Beside plain JSON values it takes what msgspec turns into JSON: dataclasses, Structs, datetimes, enums, UUIDs, sets
    (an array), bytes (base64).
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


def chunks_body(encoded: Iterable[bytes]) -> bytes:
    """Encoded chunks as one request body.

    Always an array, for one chunk too: the broker takes an outermost array as a list of chunks, so a chunk that is an
    array itself has to be inside another.
    """
    return b"[" + b",".join(encoded) + b"]"


def _encode_exactly(chunk: Any) -> bytes:
    """What msgspec cannot say: lone surrogates and integers beyond 64 bits; and what it should not: NaN."""
    try:
        return _encode_strictly(msgspec.to_builtins(chunk, str_keys=True)).encode()
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise _no_json(error) from error


def _no_json(error: Exception) -> TypeError:
    return TypeError(f"a chunk must be a JSON value: {error}")
