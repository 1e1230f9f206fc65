"""The bytes of a snapshot: encoder and decoder, and its name.

    bytes 0 to 3    "SFSS"
    byte 4          format version, `FORMAT_VERSION`
    bytes 5 to 8    how many bytes of facts follow, unsigned, little-endian
    …               the facts (`Facts`): msgpack, an array of its fields in their order
    …               the store: an SQLite database of `size_bytes`, whose mark belongs to no boot
    32 bytes        SHA-256 of all that is before

What may change: fields of `Facts` are only ever appended, each with a default. Anything else is a new FORMAT_VERSION.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

import msgspec

from broker.store.form import FORM

FORMAT_VERSION: Final = 1
_MAGIC: Final = b"SFSS"
_HEAD: Final = struct.Struct("<4sBI")
_FACTS_BYTES_MAX: Final = 65_536
_DIGEST_BYTES: Final = 32
_NAME: Final = re.compile(r"(\d{20})-([0-9a-f]{32})-([0-9a-f]{16})\.snapshot")


class Unusable(Exception):
    """A snapshot that must not be used; the text says why."""


class Facts(msgspec.Struct, array_like=True, frozen=True):
    """What a snapshot is of: partition `partition` of `partitions` of a log, as it was before `position`."""

    log_uuid: bytes
    partition: int
    partitions: int
    position: int
    begin: int  # at or before `position`: of a record that says which log this is, so that a log may begin with it
    chain: bytes
    index: int
    time_ms: int
    log_bytes: int  # of all records before `position`
    size_bytes: int  # of the store
    store_version: int = FORM.version
    newest: bytes = b""  # fingerprint of the record before `position`


class Name(NamedTuple):
    """A snapshot's name, parsed. The greatest is the newest."""

    position: int
    log_uuid: bytes
    boot: int  # of who made it

    def __str__(self) -> str:
        return f"{self.position:020}-{self.log_uuid.hex()}-{self.boot:016x}.snapshot"


def name_of(text: str) -> Name | None:
    """The name behind `str`; None for that of something else."""
    found = _NAME.fullmatch(text)
    if found is None:
        return None
    position, log_uuid, boot = found.groups()
    return Name(int(position), bytes.fromhex(log_uuid), int(boot, 16))


def encode(facts: Facts, store: Iterable[bytes]) -> Iterator[bytes]:
    """The bytes of a snapshot, in pieces. Raises ValueError when `store` is not of `facts.size_bytes`."""
    digest, size_bytes = hashlib.sha256(), 0
    packed = msgspec.msgpack.encode(facts)
    head = _HEAD.pack(_MAGIC, FORMAT_VERSION, len(packed)) + packed
    digest.update(head)
    yield head
    for piece in store:
        digest.update(piece)
        size_bytes += len(piece)
        yield piece
    if size_bytes != facts.size_bytes:
        raise ValueError(f"the store has {size_bytes} bytes, not {facts.size_bytes}")
    yield digest.digest()


def decode(pieces: Iterable[bytes]) -> Iterator[bytes | Facts]:
    """The facts, and then the store in pieces. All of it is to be trusted only once the last one has come.

    Raises Unusable.
    """
    source = iter(pieces)
    digest = hashlib.sha256()
    head, rest = _taken(source, b"", _HEAD.size)
    magic, version, facts_bytes = _HEAD.unpack(head)
    if magic != _MAGIC:
        raise Unusable("it is not a snapshot")
    if version > FORMAT_VERSION:
        raise Unusable(f"it has format {version}; this version knows formats up to {FORMAT_VERSION}")
    if facts_bytes > _FACTS_BYTES_MAX:
        raise Unusable("it is damaged: its facts are too long")
    packed, rest = _taken(source, rest, facts_bytes)
    facts = _facts(packed)
    yield facts
    digest.update(head + packed)
    left_bytes = facts.size_bytes
    while left_bytes:
        piece = rest or next(source, b"")
        if not piece:
            raise Unusable("it is damaged: it is cut short")
        store, rest = piece[:left_bytes], piece[left_bytes:]
        left_bytes -= len(store)
        digest.update(store)
        yield store
    told, rest = _taken(source, rest, _DIGEST_BYTES)
    if told != digest.digest() or rest or next(source, b""):
        raise Unusable("it is damaged: its checksum is wrong")


def _facts(packed: bytes) -> Facts:
    try:
        facts = msgspec.msgpack.decode(packed, type=Facts)
    except msgspec.MsgspecError as error:
        raise Unusable(f"it is damaged: {error}") from error
    if facts.store_version > FORM.version:
        raise Unusable(f"its store has format {facts.store_version}; this version knows formats up to {FORM.version}")
    return facts


def _taken(source: Iterator[bytes], begun: bytes, size_bytes: int) -> tuple[bytes, bytes]:
    """So many bytes, and what came with them beyond. Raises Unusable."""
    while len(begun) < size_bytes:
        piece = next(source, b"")
        if not piece:
            raise Unusable("it is damaged: it is cut short")
        begun += piece
    return begun[:size_bytes], begun[size_bytes:]
