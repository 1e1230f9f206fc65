"""A commit as a row of `journal.sqlite`: schema, encoder and decoder.

    first_index   index of its first entry: the primary key, always given by us, never chosen by SQLite
    count         how many entries
    time_ms       the time of all of them
    crc32         of the three above and of `entries`
    entries       `count` lengths (unsigned 32-bit, little-endian), then the entries' bytes one after the other

The one row of `head`: the file's uuid and the highest index that was trimmed. What may change: columns with a default,
at the end. Anything else is a new FORM.version.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final
from zlib import crc32

import msgspec

from broker.core import entry as entries_form
from broker.core.page import pack_lengths, unpack_lengths
from broker.errors import Damaged, NewerFormat
from broker.journal import Commit
from broker.sqlite import Form

FORM: Final = Form(
    application_id=0x53464A4C,  # "SFJL"
    version=1,
    schema=(
        "CREATE TABLE head (id INTEGER PRIMARY KEY CHECK (id = 1), uuid BLOB NOT NULL, trimmed_index INTEGER NOT NULL)",
        """CREATE TABLE commits (first_index INTEGER PRIMARY KEY, count INTEGER NOT NULL, time_ms INTEGER NOT NULL,
        crc32 INTEGER NOT NULL, entries BLOB NOT NULL)""",
    ),
)
INSERT: Final = "INSERT INTO commits (first_index, count, time_ms, crc32, entries) VALUES (?, ?, ?, ?, ?)"
SELECT: Final = "SELECT first_index, count, time_ms, crc32, entries FROM commits"

CommitRow = tuple[int, int, int, int, bytes]

_NUMBERS: Final = struct.Struct("<QIQ")


def encode_commit(first_index: int, time_ms: int, encoded: Sequence[bytes]) -> CommitRow:
    """The row of a commit, of entries that are encoded already."""
    entries = pack_lengths(map(len, encoded)) + b"".join(encoded)
    return first_index, len(encoded), time_ms, _checksum(first_index, len(encoded), time_ms, entries), entries


def decode_commit(row: CommitRow) -> Commit:
    """The commit behind `encode_commit`. Raises Damaged or NewerFormat, both naming the index."""
    first_index, count, time_ms, checksum, data = row
    if checksum != _checksum(first_index, count, time_ms, data):
        raise Damaged(
            f"journal: the checksum of the commit at index {first_index} does not match",
            "the disk changed what was written; restore the folder from a backup",
        )
    try:
        entries = [entries_form.decode(part) for part in _parts(count, data)]
    except entries_form.UnknownFormat as error:
        raise NewerFormat(
            f"journal: commit at index {first_index}: {error}", "start the version that wrote it, or a newer one"
        ) from error
    except msgspec.MsgspecError as error:
        raise Damaged(f"journal: the commit at index {first_index} cannot be decoded: {error}") from error
    return Commit(first_index, time_ms, entries)


def _parts(count: int, data: bytes) -> list[bytes]:
    cut, parts = count * 4, []
    for length in unpack_lengths(data[:cut]):
        parts.append(data[cut : cut + length])
        cut += length
    return parts


def _checksum(first_index: int, count: int, time_ms: int, data: bytes) -> int:
    return crc32(data, crc32(_NUMBERS.pack(first_index, count, time_ms)))
