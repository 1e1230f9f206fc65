"""The dumb model: what streams and sessions do, in lists and dictionaries, with nothing clever to get wrong."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.broker.core.entries import Triple


@dataclass
class StreamModel:
    """One life of a path. `batches` has every batch that was accepted from a producer, in order."""

    kind: str
    ttl_s: int | None
    active_ms: int
    records: list[bytes] = field(default_factory=list)
    batches: list[tuple[Triple, bytes]] = field(default_factory=list)
    closed: bool = False
    closed_by: Triple | None = None
    seq: str = ""

    def append(
        self, kind: str, records: tuple[bytes, ...], producer: Triple | None, seq: str, *, closes: bool, now_ms: int
    ) -> str:
        body = b",".join(records)
        if self.closed:
            if producer and producer == self.closed_by:
                return "duplicate"
            return "STREAM_CLOSED" if records else "unchanged"
        if records and kind != self.kind:
            return "CONTENT_TYPE_MISMATCH"
        word = self.judge(producer, body) if producer else "accepted"
        if word == "accepted" and seq and seq <= self.seq:
            word = "STREAM_SEQ_REGRESSION"
        if word == "accepted":
            self.records += records
            self.batches += [(producer, body)] if producer else []
            self.closed, self.closed_by = closes, producer if closes else None
            self.seq, self.active_ms = seq or self.seq, now_ms
        return word

    def judge(self, producer: Triple, body: bytes) -> str:
        name, epoch, seq = producer
        mine = [(made, held) for made, held in self.batches if made[0] == name]
        newest = max((made[1] for made, _ in mine), default=epoch)
        if epoch != newest:
            return "FENCED" if epoch < newest else "accepted" if seq == 0 else "EPOCH_START"
        count = sum(made[1] == epoch for made, _ in mine)
        if seq >= count:
            return "accepted" if seq == count else "SEQ_GAP"
        return "duplicate" if (producer, body) in mine else "PAYLOAD_MISMATCH"


class StreamsModel:
    """Every path, and the time."""

    def __init__(self) -> None:
        self.now_ms = 0
        self.streams: dict[str, StreamModel] = {}

    def find(self, path: str) -> StreamModel | None:
        stream = self.streams.get(path)
        if stream and stream.ttl_s is not None and self.now_ms >= stream.active_ms + stream.ttl_s * 1100:
            del self.streams[path]
            return None
        return stream

    def create(self, path: str, kind: str, ttl_s: int | None, records: tuple[bytes, ...], *, closed: bool) -> str:
        stream = self.find(path)
        if stream is None:
            self.streams[path] = StreamModel(kind, ttl_s, self.now_ms, list(records), closed=closed)
            return "created"
        return "unchanged" if (stream.kind, stream.ttl_s, stream.closed) == (kind, ttl_s, closed) else "STREAM_EXISTS"

    def delete(self, path: str) -> str:
        if self.find(path) is None:
            return "STREAM_NOT_FOUND"
        del self.streams[path]
        return "accepted"

    def touch(self, path: str) -> str:
        stream = self.find(path)
        if stream is None or stream.ttl_s is None:
            return "unchanged"
        stream.active_ms = self.now_ms
        return "accepted"

    def expire(self, path: str) -> str:
        there = path in self.streams
        return "accepted" if there and self.find(path) is None else "unchanged"


@dataclass
class GenerationModel:
    """One generation. `batches` has the body of every batch accepted, the finish included."""

    message_id: str
    lane: str
    batches: list[bytes] = field(default_factory=list)
    chunks: int = 0
    status: str = "streaming"


class SessionModel:
    """One session. `records` are (type, key, what it says)."""

    def __init__(self) -> None:
        self.records: list[tuple[str, str, str]] = []
        self.messages: dict[str, bytes | None] = {}
        self.generations: dict[str, GenerationModel] = {}

    def message(self, message_id: str, body: bytes) -> str:
        if message_id in self.messages:
            return "duplicate" if self.messages[message_id] == body else "MESSAGE_EXISTS"
        self.messages[message_id] = body
        self.records.append(("message", message_id, body.decode()))
        return "accepted"

    def write(
        self, generation_id: str, seq: int, message_id: str, lane: str, chunks: tuple[bytes, ...], status: str
    ) -> str:
        """A batch of chunks, or with `status` a finish."""
        generation = self.generations.get(generation_id)
        body = status.encode() or b",".join(chunks)
        if generation is None:
            if seq != 0:
                return "SEQ_GAP"
            if message_id in self.messages:
                return "MESSAGE_EXISTS"
            generation = self.open(generation_id, message_id, lane)
        elif seq < len(generation.batches):
            return "duplicate" if generation.batches[seq] == body else "PAYLOAD_MISMATCH"
        elif generation.status != "streaming":
            return "FENCED"
        elif seq > len(generation.batches):
            return "SEQ_GAP"
        generation.batches.append(body)
        for chunk in chunks:
            self.records.append(("chunk", f"{generation_id}:{generation.chunks}", chunk.decode()))
            generation.chunks += 1
        if status:
            self.end(generation_id, status)
        return "accepted"

    def open(self, generation_id: str, message_id: str, lane: str) -> GenerationModel:
        for older_id, older in self.generations.items():
            if older.lane == lane:
                self.end(older_id, "aborted")
        self.messages[message_id] = None
        self.records.append(("generation", generation_id, "streaming"))
        self.generations[generation_id] = GenerationModel(message_id, lane)
        return self.generations[generation_id]

    def end(self, generation_id: str, status: str) -> None:
        generation = self.generations[generation_id]
        if generation.status == "streaming":
            generation.status = status
            self.records.append(("generation", generation_id, status))

    def stop(self, generation_id: str) -> str:
        generation = self.generations.get(generation_id)
        if generation is None:
            return "GENERATION_NOT_FOUND"
        if generation.status != "streaming":
            return "unchanged"
        self.records.append(("stop", generation_id, ""))
        self.end(generation_id, "aborted")
        return "accepted"

    def heartbeat(self, generation_id: str) -> str:
        generation = self.generations.get(generation_id)
        if generation is None:
            return "GENERATION_NOT_FOUND"
        return "accepted" if generation.status == "streaming" else "FENCED"

    def expire_lease(self, generation_id: str, *, unchanged: bool) -> str:
        generation = self.generations.get(generation_id)
        if generation is None:
            return "GENERATION_NOT_FOUND"
        if generation.status != "streaming" or not unchanged:
            return "unchanged"
        self.end(generation_id, "failed")
        return "accepted"
