"""Talkers: sessions with whole messages and generations that finish, are stopped, superseded or left to die."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto

from tests.faults.client import SESSIONS, STREAMS, Answer
from tests.faults.history import Generation, Told, Write
from tests.faults.session_checker import canonical
from tests.faults.storm import Storm
from tests.faults.writers import is_lost

WINDOW_MAX = 4
BATCHES_MAX = 10
CHUNKS_MAX = 5
LEASE_MS_OF_THE_LEFT = 1000
LEASE_MS = 60_000
JSON = {"content-type": "application/json"}


class Ending(Enum):
    """What is to become of a generation."""

    FINISHED = auto()
    FAILED = auto()
    STOPPED = auto()
    SUPERSEDED = auto()
    LEFT = auto()


@dataclass(eq=False)
class Talker:
    """One client of a session: posts messages, writes generations in one lane, and asks for what must be refused."""

    storm: Storm
    session_id: str
    lane: str = "main"
    life: str = ""
    turns_max: int | None = None
    ended: list[Write] = field(default_factory=list)
    """The last batches of generations that have ended for certain."""

    def __post_init__(self) -> None:
        self.chance = self.storm.chance(f"{self.session_id}/{self.lane}/{self.life}")
        self.turn = 0
        self.generations = 0

    @property
    def path(self) -> str:
        return f"sessions/{self.session_id}"

    @property
    def target(self) -> str:
        return f"{SESSIONS}/{self.session_id}"

    async def run(self) -> None:
        """Talk until the storm is over or `turns_max` turns are through."""
        while not self._is_done():
            self.turn += 1
            await self.post_message()
            await self.generate(self.chance.choice(list(Ending)))
            await self._ask_for_what_is_refused()

    def _is_done(self) -> bool:
        return self.storm.over.is_set() or (self.turns_max is not None and self.turn >= self.turns_max)

    async def create(self) -> None:
        """Create the session, with its first message in the same request."""
        message = self._message("first")
        write = self._write((canonical(message),))
        answer = await self._settle(write, "PUT", self.target, canonical({"message": message}).encode())
        if answer.status not in (200, 201):
            self._complain(write, answer)

    async def delete(self) -> None:
        """Delete it with all that is in it; nothing of it is on its way any more."""
        while True:
            answer = await self.storm.client.ask("DELETE", self.target)
            if answer is not None:
                break
            await self.storm.pause(self.chance)
        if answer.status not in (204, 404):  # 404: an attempt before had deleted it, and its answer was lost
            self.storm.history.complain(f"delete of {self.path} was answered {answer}")
        answer = await self.storm.client.ask("GET", f"{self.target}/messages")
        if answer is not None and answer.status != 404:
            self.storm.history.complain(f"messages of {self.path}, just deleted, were answered {answer}")

    async def post_message(self) -> None:
        """A whole message; now and then told twice, and then with other content under the same id."""
        message = self._message(f"m{self.turn}")
        write = self._write((canonical(message),))
        answer = await self._settle(write, "POST", f"{self.target}/messages", write.texts[0].encode())
        if answer.status not in (200, 201):
            self._complain(write, answer)
        if self.chance.random() < 0.3:
            await self.attempt(write, "POST", f"{self.target}/messages", write.texts[0].encode())
        if self.chance.random() < 0.3:
            other = canonical({**message, "other": True})
            await self._forbidden(other, f"{self.target}/messages", other.encode())

    async def generate(self, ending: Ending) -> None:
        """One generation, and if it is to be superseded, the next one too."""
        self.generations += 1
        name = f"{self._id_prefix()}g{self.generations}"
        lease_ms = LEASE_MS_OF_THE_LEFT if ending is Ending.LEFT else LEASE_MS
        writer = GenerationWriter(self, name, lease_ms)
        match ending:
            case Ending.FINISHED | Ending.FAILED:
                await writer.write_all()
                await writer.finish("complete" if ending is Ending.FINISHED else "failed")
            case Ending.STOPPED:
                await self._interrupt(writer, writer.stop)
            case Ending.SUPERSEDED:
                successor = GenerationWriter(self, f"{name}-next", LEASE_MS)
                await self._interrupt(writer, successor.write_all)
                await successor.finish("complete")
            case Ending.LEFT:
                await writer.write_all()
        if ending is not Ending.LEFT and writer.generation.batches:
            self.ended.append(writer.generation.batches[-1])

    async def _interrupt(self, writer: "GenerationWriter", interrupt: Callable[[], Awaitable[None]]) -> None:
        writing = asyncio.create_task(writer.write_all())
        await writer.opened.wait()
        await self.storm.pause(self.chance)
        await asyncio.gather(writing, interrupt())

    async def _ask_for_what_is_refused(self) -> None:
        asks = [
            self._late_chunk,
            self._other_bytes,
            self._gap,
            self._broken_body,
            self._unknown_format,
            self._raw_write,
        ]
        await self.chance.choice(asks)()

    async def _late_chunk(self) -> None:
        if self.ended:
            write = self.ended[-1]
            await self._forbidden_chunk(write.producer, write.seq + 2)

    async def _other_bytes(self) -> None:
        if self.ended and self.ended[-1].is_acked:
            await self._forbidden_chunk(self.ended[-1].producer, self.ended[-1].seq)

    async def _gap(self) -> None:
        await self._forbidden_chunk(f"{self._id_prefix()}unopened{self.turn}", 7)

    async def _unknown_format(self) -> None:
        await self._forbidden_chunk(f"{self._id_prefix()}unknown{self.turn}", 0, {"format": "no-such-format"})

    async def _broken_body(self) -> None:
        target = f"{self.target}/generations/{self._id_prefix()}broken{self.turn}/chunks"
        text = self._forbidden_text()
        await self._forbidden(text, target, text.encode()[:-1], {"producer-seq": "0"})

    async def _raw_write(self) -> None:
        text = self._forbidden_text()
        await self._forbidden(text, f"{STREAMS}/{self.path}", text.encode())

    async def _forbidden_chunk(self, generation_id: str, seq: int, params: Mapping[str, str] | None = None) -> None:
        text = self._forbidden_text()
        target = f"{self.target}/generations/{generation_id}/chunks"
        await self._forbidden(text, target, text.encode(), {"producer-seq": str(seq)}, params)

    def _forbidden_text(self) -> str:
        return canonical({"type": "text-delta", "id": "t", "delta": f"forbidden {len(self.storm.history.writes)}"})

    async def _forbidden(
        self,
        text: str,
        target: str,
        body: bytes,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
    ) -> None:
        write = self.storm.history.forbidden(self.path, text)
        answer = await self.attempt(write, "POST", target, body, headers, params)
        if answer is not None and not 400 <= answer.status < 500:
            self._complain(write, answer)

    # -- what its generations use too --------------------------------------------------------------------------------

    def _message(self, name: str) -> dict[str, object]:
        message_id = f"{self._id_prefix()}{name}"
        return {
            "id": message_id,
            "role": "user",
            "parts": [{"type": "text", "text": f"{self.session_id} {message_id}"}],
        }

    def _id_prefix(self) -> str:
        return f"{self.lane}-{self.life}-"

    def _write(self, texts: tuple[str, ...]) -> Write:
        return self.storm.history.write(self.path, texts, life=self.life)

    async def _settle(self, write: Write, method: str, target: str, body: bytes) -> Answer:
        """Attempt until there is an answer."""
        while True:
            answer = await self.attempt(write, method, target, body)
            if answer is not None:
                return answer
            await self.storm.pause(self.chance)

    async def attempt(
        self,
        write: Write,
        method: str,
        target: str,
        body: bytes,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
    ) -> Answer | None:
        at = len(write.told)
        write.told.append(Told.UNKNOWN)
        headers = {**JSON, **(headers or {})}
        answer = await self.storm.client.ask(method, target, headers=headers, params=params, content=body)
        if answer is not None:
            write.told[at] = judged(write, answer)
        return answer

    def _complain(self, write: Write, answer: Answer) -> None:
        self.storm.history.complain(f"{write.name} was answered {answer}")


def judged(write: Write, answer: Answer) -> Told:
    """What an answer of the session API says of a write."""
    if answer.status in (200, 201):
        offset = answer.problem.get("offset")
        # A session that was there already is told where it stands, not where its first message went.
        if isinstance(offset, str) and answer.problem.get("created") is not False:
            write.offsets.add(offset)
        return Told.ACKED
    if answer.code == "SEQ_GAP" and not write.forbidden:
        return Told.NOT_YET
    if answer.code == "FENCED":
        write.absent = True  # an accepted batch would have been a duplicate, for as long as the session lives
    return Told.REFUSED


class GenerationWriter:
    """The producer of one generation: its batches in a window, the same bytes again until there is an answer."""

    def __init__(self, talker: Talker, generation_id: str, lease_ms: int) -> None:
        self.talker = talker
        self.storm = talker.storm
        self.chance = talker.chance
        self.opened = asyncio.Event()
        self.fenced = False
        self.lost = False
        """The broker waits for what it has acknowledged: to try again would be in vain."""
        self.target = f"{talker.target}/generations/{generation_id}"
        self.text_id = f"{talker.session_id}/{generation_id}"
        self.is_text = self.chance.random() < 0.3
        self.generation = Generation(talker.path, generation_id, f"msg-{generation_id}", talker.lane, talker.life)
        self.storm.history.generations.append(self.generation)
        self.params = {
            "messageId": self.generation.message_id,
            "lane": talker.lane,
            "format": "text" if self.is_text else "ai-sdk-ui-message-stream",
            "leaseMs": str(lease_ms),
        }

    async def write_all(self) -> None:
        """All its batches, or those up to the one that is fenced."""
        window = asyncio.Semaphore(self.chance.randint(1, WINDOW_MAX))
        async with asyncio.TaskGroup() as group:
            for seq in range(self.chance.randint(1, BATCHES_MAX)):
                await window.acquire()
                if self.fenced or self.lost:
                    break
                write = self._batch(seq)
                group.create_task(self._settle(write)).add_done_callback(lambda _: window.release())
                if self.chance.random() < 0.2:
                    await self.storm.pause(self.chance)

    async def finish(self, status: str) -> None:
        """The last batch of the sequence; awaited, for it is what says that nothing is missing."""
        headers = {"producer-seq": str(len(self.generation.batches))}
        body = canonical({"status": status, "usage": {"tokens": len(self.generation.batches)}}).encode()
        for _ in range(1 + (self.chance.random() < 0.2)):
            answer = await self._ask("finish", body, headers)
            if answer.status == 200:
                self.generation.finish_status = status
                self.generation.finish_offsets.add(str(answer.problem["offset"]))
            else:
                self.storm.history.complain(f"finish of {self.generation.generation_id} was answered {answer}")

    async def stop(self) -> None:
        """Stopped by somebody else than its producer."""
        answer = await self._ask("stop", b'{"requestedBy":"a reader"}', {})
        if answer.status == 200:
            self.generation.stop_acked = True
        else:
            self.storm.history.complain(f"stop of {self.generation.generation_id} was answered {answer}")

    async def _ask(self, what: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        params = self.params if what == "finish" else None
        headers = {**JSON, **headers}
        while True:
            answer = await self.storm.client.ask(
                "POST", f"{self.target}/{what}", headers=headers, params=params, content=body
            )
            if answer is not None:
                return answer
            await self.storm.pause(self.chance)

    def _batch(self, seq: int) -> Write:
        name = f"{self.generation.generation_id}/{seq}"
        texts = [self._chunk(f"{name}/{number}") for number in range(self.chance.randint(1, CHUNKS_MAX))]
        if seq == 0 and not self.is_text:
            texts = [canonical({"type": "text-start", "id": self.text_id}), *texts]
        write = self.storm.history.write(
            self.talker.path, texts, self.generation.generation_id, 0, seq, life=self.talker.life
        )
        self.generation.batches.append(write)
        return write

    def _chunk(self, name: str) -> str:
        delta = f"{self.talker.session_id}/{name} é😀" + "y" * int(100 * self.chance.random() ** 3)
        if self.is_text:
            return canonical(delta)
        return canonical({"type": "text-delta", "id": self.text_id, "delta": delta})

    async def _settle(self, write: Write) -> None:
        body = write.texts[0] if len(write.texts) == 1 else f"[{','.join(write.texts)}]"
        headers = {"producer-seq": str(write.seq)}
        while not write.is_settled and not self.lost:
            acked = [batch for batch in self.generation.batches if batch.is_acked]
            answer = await self.talker.attempt(
                write, "POST", f"{self.target}/chunks", body.encode(), headers, self.params
            )
            self._look_at(write, answer, acked)
            if not write.is_settled:
                await self.storm.pause(self.chance)
        if write.is_acked and self.chance.random() < 0.1:
            await self.talker.attempt(write, "POST", f"{self.target}/chunks", body.encode(), headers, self.params)

    def _look_at_gap(self, answer: Answer, acked: list[Write]) -> None:
        if is_lost(answer.problem.get("expectedSeq"), acked):
            self.storm.history.complain(f"{self.generation.generation_id}, after acknowledgements, got {answer}")
            self.lost = True
            self.opened.set()

    def _look_at(self, write: Write, answer: Answer | None, acked: list[Write]) -> None:
        if answer is None:
            return
        if write.told[-1] is Told.ACKED:
            self.opened.set()
        elif answer.code == "FENCED":
            self.fenced = True
            self.opened.set()
        elif write.told[-1] is Told.NOT_YET:
            self._look_at_gap(answer, acked)
        elif write.told[-1] is Told.REFUSED:
            self.storm.history.complain(f"{write.name} was answered {answer}")


async def talk_in_lanes(storm: Storm, session_id: str, lanes: int) -> None:
    """A session with a writer in each of its lanes, and at last generations that nobody ends."""
    talkers = [Talker(storm, session_id, f"lane{number}") for number in range(lanes)]
    await talkers[0].create()
    async with asyncio.TaskGroup() as group:
        for talker in talkers:
            group.create_task(talker.run())
    for talker in talkers:
        await talker.generate(Ending.LEFT)


async def talk_life_after_life(storm: Storm, session_id: str) -> str:
    """Create a session, talk, delete it, and again; the name of the life that is left."""
    life = 0
    while True:
        talker = Talker(storm, session_id, life=f"life{life}", turns_max=2)
        await talker.create()
        await talker.run()
        if storm.over.is_set():
            return talker.life
        await talker.delete()
        life += 1
