"""The bytes of a record in a shared log.

    bytes 0, 1    "SF": anything else is somebody else's record, and means nothing
    byte 2        format version, `FORMAT_VERSION`
    byte 3 …      msgpack array of the fields of `Envelope`, in their order

What may change: fields are only ever appended, each with a default. What never may: the meaning or order of a field. A
record of another version stops whoever does not know it; it is never skipped, for those who know it do not skip it.
"""

from __future__ import annotations

import hashlib
from typing import Final

import msgspec

from broker.errors import NewerFormat
from broker.journal.shared_log import LogRecord

_MAGIC: Final = b"SF"
FORMAT_VERSION: Final = 1
_LOG_BYTES: Final = 8


class Meta(msgspec.Struct, array_like=True, frozen=True):
    """What holds for the whole of a log. Its first record says it; later ones repeat it, so that it may begin there."""

    log_uuid: bytes
    partition: int  # which of …
    partitions: int  # … how many, for ever: which stream is where depends on it

    @property
    def log(self) -> bytes:
        """The log as a record names it."""
        return self.log_uuid[:_LOG_BYTES]


class Audit(msgspec.Struct, array_like=True, frozen=True):
    """What its writer had made of the log before `position`: a chain of hashes over all outcomes."""

    log_uuid: bytes
    position: int
    chain: bytes


class Envelope(msgspec.Struct, array_like=True, frozen=True):
    """One record: the `number`-th of the boot that wrote it, and what it carries. It may carry nothing."""

    boot: int
    number: int
    entries: tuple[bytes, ...] = ()  # as `core.entry.encode` has them; they share an index range and a time
    retired: int = 0  # a boot that is over; 0 for none
    meta: Meta | None = None
    audit: Audit | None = None
    log: bytes = b""  # which log it was written for, the begin of its uuid: its name may have gone to another one


class Mark(msgspec.Struct, array_like=True, frozen=True):
    """What a journal wants to know when it opens behind a store: where in the log the store stands, and what it saw."""

    meta: Meta
    position: int  # of the next record to apply
    chain: bytes
    proposers: bytes
    boot: int  # the one that wrote this
    time_ms: int = 0  # of the newest record before `position`, which may have had no entries to tell the store the time
    newest: bytes = b""  # fingerprint of the record before `position`; empty where none was read, or nobody noted it
    begin: int = 0  # of the newest record before `position` that repeats `meta`
    log_bytes: int = 0  # of all records before `position`


_encoder = msgspec.msgpack.Encoder()
_envelope = msgspec.msgpack.Decoder(Envelope)
_mark = msgspec.msgpack.Decoder(Mark)
_HEAD: Final = _MAGIC + bytes([FORMAT_VERSION])


def encode(envelope: Envelope) -> bytes:
    """The bytes of a record."""
    return _HEAD + _encoder.encode(envelope)


def decode(data: bytes) -> Envelope | None:
    """The record behind `encode`; None for one that nobody of ours has written.

    Raises NewerFormat for a version that this program does not know, and msgspec.MsgspecError for bytes that no
    version makes.
    """
    if not data.startswith(_MAGIC):
        return None
    if data[2:3] != _HEAD[2:]:
        raise NewerFormat(
            f"record of format version {data[2] if len(data) > len(_MAGIC) else 'none'}; this program knows"
            f" {FORMAT_VERSION}",
            "start the version that wrote it, or a newer one",
        )
    return _envelope.decode(memoryview(data)[len(_HEAD) :])


def fingerprint(record: LogRecord) -> bytes:
    """What tells a record from any other that might come to stand in its place."""
    told = hashlib.blake2b(record.time_ms.to_bytes(8, "big"), digest_size=16)
    told.update(record.data)
    return told.digest()


def encode_mark(mark: Mark) -> bytes:
    """The bytes of a mark."""
    return _encoder.encode(mark)


def decode_mark(data: bytes) -> Mark:
    """The mark behind `encode_mark`. Raises msgspec.MsgspecError."""
    return _mark.decode(data)


def disowned(data: bytes) -> bytes:
    """The mark of a store that several processes may begin with: none of them is to void what its writer writes."""
    return encode_mark(msgspec.structs.replace(decode_mark(data), boot=0))
