"""A JSON body and the records in it (PROTOCOL.md 9.1).

An array is flattened by one level: each element is a record; any other value is one record. Records are kept as the
writer spelled them: no number is rounded, no key reordered, no escape rewritten.
"""

from __future__ import annotations

import re
from array import array
from itertools import accumulate
from typing import Final

import msgspec

from broker import limits
from broker.core.page import pack_length, pack_lengths
from broker.http.problems import BadRequest
from consumer.wire import Code

_array = msgspec.json.Decoder(list[msgspec.Raw])
_value = msgspec.json.Decoder(msgspec.Raw)

# One whole escape, so that the `u` behind an escaped backslash is not taken for the start of one.
_ESCAPE: Final = re.compile(rb"\\(?:u([dD][89a-fA-F][0-9a-fA-F]{2})|.)")
_STRING: Final = re.compile(rb'"(?:[^"\\]+|\\.)*"')
_BRACKET: Final = b"["[0]
_NOT_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))
_STEP_OF_BRACKET: Final = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")


def split(body: bytes) -> tuple[bytes, bytes]:
    """The records of a JSON body, as a page holds them: (lengths, data); both empty for an empty array.

    Raises BadRequest: INVALID_JSON for what is not JSON in UTF-8 or is nested deeper than `limits.JSON_DEPTH_MAX`,
    BODY_TOO_LARGE for more than `limits.BATCH_RECORDS_MAX` records.
    """
    if not body.isascii():
        _require_utf8(body)
    records = _records(body)
    count = len(records)
    if count > limits.BATCH_RECORDS_MAX:
        raise BadRequest(Code.BODY_TOO_LARGE, f"more than {limits.BATCH_RECORDS_MAX} records")
    if count == 1 and len(records[0]) <= 2 * limits.JSON_DEPTH_MAX:  # a token
        return pack_length(len(records[0])), bytes(records[0])
    lengths = list(map(len, records))
    if count and max(lengths) > 2 * limits.JSON_DEPTH_MAX:  # what is shorter cannot be nested too deeply
        _require_shallow(records)
    # An array as machines write it, without white space, is its records and what stands around and between them.
    if len(body) == sum(lengths) + count + 1 and body[0] == _BRACKET:
        return pack_lengths(lengths), body[1:-1]
    return pack_lengths(lengths), b",".join(records)


def _records(body: bytes) -> list[msgspec.Raw] | list[bytes]:
    try:
        return _decode(body)
    except msgspec.DecodeError as error:
        # msgspec refuses half of a surrogate pair. RFC 8259 (section 8.2) does not: JavaScript writes one when a text
        # is cut between two halves, and a token stream does just that.
        harmless = _ESCAPE.sub(_without_surrogate, body)
        if harmless == body:
            raise BadRequest(Code.INVALID_JSON, str(error)) from None
    except RecursionError:
        raise BadRequest(Code.INVALID_JSON, _too_deep()) from None
    try:
        return _cut(body, harmless, _decode(harmless))
    except msgspec.DecodeError as error:
        raise BadRequest(Code.INVALID_JSON, str(error)) from None
    except RecursionError:
        raise BadRequest(Code.INVALID_JSON, _too_deep()) from None


def _decode(body: bytes) -> list[msgspec.Raw]:
    if body[:1] == b"[" or body.lstrip(b" \t\r\n")[:1] == b"[":
        return _array.decode(body)
    return [_value.decode(body)]


def _without_surrogate(escape: re.Match[bytes]) -> bytes:
    return escape[0] if escape[1] is None else b"\\u0020"


def _cut(body: bytes, harmless: bytes, records: list[msgspec.Raw]) -> list[bytes]:
    """The records of `body`, at the places that they have in `harmless`, which differs in single characters only.

    Between two records there is nothing but white space and a comma, so a record is found where it is, never earlier.
    """
    cut, at = [], 0
    for record in records:
        at = harmless.index(bytes(record), at)
        cut.append(body[at : at + len(record)])
        at += len(record)
    return cut


def _require_utf8(body: bytes) -> None:
    try:
        body.decode()
    except UnicodeDecodeError as error:
        raise BadRequest(Code.INVALID_JSON, f"not UTF-8 at byte {error.start}") from None


def _require_shallow(records: list[msgspec.Raw] | list[bytes]) -> None:
    for record in records:
        if len(record) > 2 * limits.JSON_DEPTH_MAX:
            text = bytes(record)
            # Counting comes first: it is a hundred times faster than looking, and nearly always enough.
            if text.count(b"[") + text.count(b"{") > limits.JSON_DEPTH_MAX and _depth(text) > limits.JSON_DEPTH_MAX:
                raise BadRequest(Code.INVALID_JSON, _too_deep())


def _depth(text: bytes) -> int:
    """How deeply valid JSON is nested."""
    brackets = _STRING.sub(b"", text).translate(_STEP_OF_BRACKET, _NOT_BRACKETS)
    return max(accumulate(array("b", brackets)), default=0)


def _too_deep() -> str:
    return f"nested deeper than {limits.JSON_DEPTH_MAX}"
