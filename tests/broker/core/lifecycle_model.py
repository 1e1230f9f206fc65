"""The dumb model of sessions that live, are reset, forked and deleted: lists and dictionaries, nothing clever."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field


@dataclass
class GenerationModel:
    """One generation. `batches` has the body of every batch accepted, the finish included."""

    message_id: str
    lane: str
    life: int
    status: str
    batches: list[str] = field(default_factory=list)
    chunks: int = 0
    continued: bool = False


@dataclass
class SessionModel:
    """One session. `records` are (type, key, what it says) of its present life; `newest` is by lane.

    `generations` are in the order of their beginning, `active` in that of their latest batch.
    """

    life: int
    records: list[tuple[str, str, str]] = field(default_factory=list)
    messages: set[str] = field(default_factory=set)
    generations: dict[str, GenerationModel] = field(default_factory=dict)
    newest: dict[str, str] = field(default_factory=dict)
    active: list[str] = field(default_factory=list)

    def open(self, generation_id: str, lane: str, continues: str, *, yields: bool, status: str) -> str:
        """What opening a generation comes to; its message has its id, unless it continues another one's."""
        message_id = generation_id
        if continues:
            before = self.generations.get(continues)
            if before is None or before.life != self.life:
                return "GENERATION_NOT_FOUND"
            if before.continued:
                return "GENERATION_MISMATCH"
            message_id = before.message_id
            lane = lane or before.lane
            if lane == before.lane and self.newest.get(lane, continues) != continues:
                lane = generation_id
        elif message_id in self.messages:
            return "MESSAGE_EXISTS"
        lane = lane or "main"
        in_the_way = self.open_ones(lambda name, each: each.lane == lane or name == continues)
        if yields and in_the_way:
            return "LANE_BUSY"
        for older_id in in_the_way:
            self.end(older_id, "aborted")
        if continues:
            self.generations[continues].continued = True
        self.messages.add(message_id)
        self.newest[lane] = generation_id
        self.active.append(generation_id)
        self.generations[generation_id] = GenerationModel(message_id, lane, self.life, status)
        self.records.append(("generation", generation_id, status))
        return "created"

    def write(self, generation_id: str, seq: int, lane: str, continues: str, chunks: list[str], status: str) -> str:
        """A batch of chunks, or with `status` a finish."""
        body = status or ",".join(chunks)
        if generation_id not in self.generations:
            if seq != 0:
                return "SEQ_GAP"
            word = self.open(generation_id, lane, continues, yields=False, status="streaming")
            if word != "created":
                return word
        generation = self.generations[generation_id]
        if seq < len(generation.batches):
            return "duplicate" if generation.batches[seq] == body else "PAYLOAD_MISMATCH"
        if not is_open(generation):
            return "FENCED"
        if seq > len(generation.batches):
            return "SEQ_GAP"
        if generation.status == "pending" and chunks:
            generation.status = "streaming"
            self.records.append(("generation", generation_id, "streaming"))
        generation.batches.append(body)
        self.active.remove(generation_id)
        self.active.append(generation_id)
        for chunk in chunks:
            self.records.append(("chunk", f"{generation_id}:{generation.chunks}", chunk))
            generation.chunks += 1
        if status:
            self.end(generation_id, status)
        return "accepted"

    def stop(self, wanted: Callable[[str, GenerationModel], bool]) -> int:
        """Stop what is open and wanted; how many that were."""
        found = self.open_ones(wanted)
        for generation_id in found:
            self.records.append(("stop", generation_id, ""))
            self.end(generation_id, "aborted")
        return len(found)

    def open_ones(self, wanted: Callable[[str, GenerationModel], bool]) -> list[str]:
        """The open generations that are wanted."""
        known = self.generations
        return [name for name in self.active if is_open(known[name]) and wanted(name, known[name])]

    def end(self, generation_id: str, status: str) -> None:
        """The one end of a generation."""
        self.generations[generation_id].status = status
        self.records.append(("generation", generation_id, status))

    def say(self, message_id: str) -> str:
        """A whole message; every one says the same."""
        if message_id in self.messages:
            known = ("message", message_id, "") in self.records
            return "duplicate" if known else "MESSAGE_EXISTS"
        self.messages.add(message_id)
        self.records.append(("message", message_id, ""))
        return "accepted"

    def reset(self, life: int) -> None:
        """Empty, but for the ids of generations."""
        for generation in self.generations.values():
            if is_open(generation):
                generation.status = "aborted"
        self.life, self.records, self.messages = life, [], set()

    def forked(self, life: int) -> SessionModel:
        """What a fork begins with."""
        child = deepcopy(self)
        child.life, child.newest = life, {}
        child.generations = {name: each for name, each in child.generations.items() if each.life == self.life}
        child.active = [name for name in child.active if name in child.generations]
        for generation_id, generation in child.generations.items():
            generation.life, generation.batches = life, []
            if is_open(generation):
                child.end(generation_id, "aborted")
        return child


def is_open(generation: GenerationModel) -> bool:
    return generation.status in ("pending", "streaming")
