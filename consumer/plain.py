"""Plain data: what JSON can say, as Python's own types, and its way to bytes and back.

A producer in JavaScript may cut a text inside a surrogate pair, so a JSON string may hold half a pair as an escape
(RFC 8259 section 8.2). Such a text cannot be written as UTF-8. `encode` writes the half back as the escape it came
as, `decode` accepts it; everything else takes msgspec's fast path.
"""

from __future__ import annotations

import json
import math
import re
from typing import Final, NoReturn, TypeAlias

import msgspec

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"
JSONObject: TypeAlias = dict[str, JSON]

DEPTH_MAX: Final = 256
"""How deeply lists and objects of stored data may nest. Encoders and decoders recurse and stop near Python's limit
of 1000 frames, less what the caller has used; a quarter of it leaves room for what such data is wrapped in."""

_INT_DIGITS_MAX: Final = 400
"""A double ends near 1e308, so a longer integer is an infinity; Python refuses to parse one of 4300 digits."""


class NotJSON(ValueError):
    """The bytes are not one JSON text in UTF-8. Nothing was taken from them."""


_items: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode
_space: Final = re.compile(r"[ \t\r\n]*")


def encode(value: JSON) -> bytes:
    """The JSON of plain data, compact, in UTF-8.

    Half a surrogate pair is written as its escape. A number that JSON cannot hold is written as null, as
    `JSON.stringify` does.

    Raises RecursionError if the data nests too deeply; `nests_within(value, DEPTH_MAX)` keeps clear of that.
    """
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        return json.dumps(_finite(value), separators=(",", ":"), allow_nan=False).encode("ascii")


def decode(data: bytes | str) -> JSON:
    """The plain data of one JSON text, as strict as `JSON.parse`. Of a repeated key the last value stays.

    Raises NotJSON if the text is anything else: bad UTF-8, a byte order mark, `NaN`, text that follows, or nesting
    near a thousand levels. What comes back may still be deeper than DEPTH_MAX.
    """
    try:
        value: JSON = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return _decode_slowly(data)
    return value


def texts_of(array: bytes) -> list[bytes]:
    """The items of a JSON array as the texts that they are in it, spelled as they were.

    Raises NotJSON if it is no array of JSON texts.
    """
    try:
        return [bytes(item) for item in _items(array)]
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return _texts_slowly(array)


def nests_within(value: JSON, depth_max: int) -> bool:
    """Whether lists and objects nest at most `depth_max` deep; a scalar has depth 0. Does not recurse."""
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(depth_max):
        if not level:
            return True
        below = []
        for node in level:
            for child in node.values() if isinstance(node, dict) else node:
                if isinstance(child, (dict, list)):
                    below.append(child)  # noqa: PERF401  every chunk comes by here: a comprehension costs a frame
        level = below
    return not level


def _decode_slowly(data: bytes | str) -> JSON:
    """What msgspec refuses and JSON allows: halves of pairs, and numbers beyond a double."""
    try:
        text = data if isinstance(data, str) else data.decode()
        value: JSON = json.loads(text, parse_constant=_refuse_constant, parse_int=_int)
    except (ValueError, RecursionError) as error:
        raise NotJSON(str(error)) from error
    return value


def _texts_slowly(array: bytes) -> list[bytes]:
    """What msgspec refuses: texts with half a surrogate pair."""
    if not isinstance(_decode_slowly(array), list):
        raise NotJSON("not an array")
    text = array.decode()
    found: list[bytes] = []
    begin = _past_space(text, text.index("[") + 1)
    while text[begin] != "]":
        _, end = _scanner.raw_decode(text, begin)
        found.append(text[begin:end].encode())
        begin = _past_space(text, end)
        begin = _past_space(text, begin + 1) if text[begin] == "," else begin
    return found


def _past_space(text: str, begin: int) -> int:
    match = _space.match(text, begin)
    return begin if match is None else match.end()


def _refuse_constant(name: str) -> NoReturn:
    raise NotJSON(f"{name} is no JSON number")


def _int(digits: str) -> int | float:
    return int(digits) if len(digits) <= _INT_DIGITS_MAX else float(digits)


_scanner: Final = json.JSONDecoder(parse_int=_int)


def _finite(value: JSON) -> JSON:
    if isinstance(value, dict):
        return {key: _finite(child) for key, child in value.items()}
    if isinstance(value, list):
        return [_finite(child) for child in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
