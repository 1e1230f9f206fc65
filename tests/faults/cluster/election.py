"""An unclean election, asked for by hand: the one request of Kafka's protocol that the client has no name for."""

import asyncio
import struct

from tests.live import HOST

ELECT_LEADERS, VERSION = 43, 1
UNCLEAN = 1
ANSWER_S_MAX = 20.0


class ElectionFailedError(Exception):
    """Kafka did not elect anybody; the text is its own."""


async def elect_whoever_is_there(port: int, topic: str, partition: int) -> None:
    """Let a replica lead that may lack what the others had (KIP-460). Raises ElectionFailedError, TimeoutError."""
    async with asyncio.timeout(ANSWER_S_MAX):
        reader, writer = await asyncio.open_connection(HOST, port)
        try:
            writer.write(_framed(_request(topic, partition)))
            size = int.from_bytes(await reader.readexactly(4))
            _judge(await reader.readexactly(size), len(topic))
        finally:
            writer.transport.abort()


def _request(topic: str, partition: int) -> bytes:
    head = struct.pack(">hhi", ELECT_LEADERS, VERSION, 0) + _text("tests")
    places = struct.pack(">i", 1) + _text(topic) + struct.pack(">ii", 1, partition)
    return head + struct.pack(">b", UNCLEAN) + places + struct.pack(">i", int(ANSWER_S_MAX * 1000))


def _judge(answer: bytes, topic_chars: int) -> None:
    """The answer: a correlation id, a throttle time, an error; then topics, partitions of each, an error of each."""
    (error,) = struct.unpack_from(">h", answer, 8)
    if error:
        raise ElectionFailedError(f"error {error}")
    at = 10 + 4 + 2 + topic_chars + 4
    _, error, chars = struct.unpack_from(">ihh", answer, at)
    if error:
        raise ElectionFailedError(f"error {error}: {answer[at + 8 : at + 8 + max(0, chars)].decode()}")


def _text(text: str) -> bytes:
    return struct.pack(">h", len(text)) + text.encode()


def _framed(request: bytes) -> bytes:
    return len(request).to_bytes(4) + request
