"""Content codings of request bodies (RFC 9110, 8.4): gzip and zstd, inflated in bounded steps.

What a small body may become has no bound of its own: a kilobyte of gzip holds a megabyte. So nothing is inflated ahead:
whoever takes the pieces decides after each whether it wants another.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Iterator
from typing import Final, Protocol

from broker import limits
from broker.http.problems import BadRequest
from broker.http.request import Headers
from consumer.wire import Code

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

ACCEPTED: Final = b"gzip, zstd"
PIECE_BYTES: Final = 64 * limits.KIB
"""What is inflated at once."""


class _Member(Protocol):
    """One gzip member or zstd frame: a body is one or more of them."""

    ended: bool

    def step(self, data: bytes) -> tuple[bytes, bytes, bool]:
        """Some output, the input that it left over, and whether there is more to come without new input."""
        ...


class _GzipMember:
    def __init__(self) -> None:
        self._inflating = zlib.decompressobj(wbits=31)
        self.ended = False

    def step(self, data: bytes) -> tuple[bytes, bytes, bool]:
        try:
            piece = self._inflating.decompress(data, PIECE_BYTES)
        except zlib.error as error:
            raise _broken(error) from None
        self.ended = self._inflating.eof
        rest = self._inflating.unused_data if self.ended else self._inflating.unconsumed_tail
        return piece, rest, bool(rest) or len(piece) == PIECE_BYTES


class _ZstdFrame:
    _OPTIONS: Final[dict[int, int]] = {zstd.DecompressionParameter.window_log_max: limits.ZSTD_WINDOW_LOG_MAX}

    def __init__(self) -> None:
        self._inflating = zstd.ZstdDecompressor(options=self._OPTIONS)
        self.ended = False

    def step(self, data: bytes) -> tuple[bytes, bytes, bool]:
        try:
            piece = self._inflating.decompress(data, PIECE_BYTES)
        except zstd.ZstdError as error:
            raise _broken(error) from None
        self.ended = self._inflating.eof
        if self.ended:
            return piece, self._inflating.unused_data, True
        return piece, b"", not self._inflating.needs_input


def _broken(error: Exception) -> BadRequest:
    return BadRequest(Code.INVALID_BODY, f"the content coding is broken: {error}")


class Inflater:
    """What a body in a content coding says, piece by piece."""

    def __init__(self, begin: Callable[[], _Member]) -> None:
        self._begin = begin
        self._member = begin()
        self._begun = False  # whether the member has had any input

    def feed(self, data: bytes) -> Iterator[bytes]:
        """What `data` adds, in pieces of up to PIECE_BYTES. Raises BadRequest (INVALID_BODY)."""
        members, more = 0, bool(data)
        while more:
            if self._member.ended:
                if not data:
                    return
                members += 1
                if members > limits.CODING_MEMBERS_MAX:
                    raise BadRequest(Code.INVALID_BODY, f"more than {limits.CODING_MEMBERS_MAX} members at once")
                self._member, self._begun = self._begin(), False
            self._begun = self._begun or bool(data)
            piece, data, more = self._member.step(data)
            if piece:
                yield piece

    def end(self) -> None:
        """The body is over. Raises BadRequest (INVALID_BODY) where its coding is not."""
        if self._begun and not self._member.ended:
            raise BadRequest(Code.INVALID_BODY, "the content coding ends too early")


_BEGIN: Final[dict[bytes, Callable[[], _Member]]] = {
    b"gzip": _GzipMember,
    b"x-gzip": _GzipMember,
    b"zstd": _ZstdFrame,
}


def inflater_of(headers: Headers) -> Inflater | None:
    """What undoes `Content-Encoding`; None where there is nothing to undo.

    Raises BadRequest (UNSUPPORTED_CODING) for a coding that is not known, and for more than one.
    """
    coding = headers.get(b"content-encoding", b"").strip().lower()
    if coding in (b"", b"identity"):
        return None
    begin = _BEGIN.get(coding)
    if begin is None:
        raise BadRequest(Code.UNSUPPORTED_CODING, "one of gzip and zstd", headers=((b"accept-encoding", ACCEPTED),))
    return Inflater(begin)
