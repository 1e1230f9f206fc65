"""Writers of raw streams: idempotent producers with a window, and some who ask for what must be refused."""

import asyncio
import random
from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.faults.client import STREAMS, Answer
from tests.faults.history import Closing, Told, Write
from tests.faults.session_checker import canonical
from tests.faults.storm import Storm

WINDOW_MAX = 5
EPOCH_BATCHES_MAX = 40
BATCH_TEXTS_MAX = 4
PAD_CHARS_MAX = 300


@dataclass(eq=False)
class Stream:
    """A path that is written to, and how."""

    path: str
    content_type: str
    life: str = ""

    @property
    def target(self) -> str:
        return f"{STREAMS}/{self.path}"

    @property
    def is_json(self) -> bool:
        return self.content_type == "application/json"

    def texts(self, chance: random.Random, name: str) -> list[str]:
        """Unique texts of one batch: records, or lines."""
        count = chance.randint(1, BATCH_TEXTS_MAX)
        return [self.text(chance, f"{name}/{number}") for number in range(count)]

    def text(self, chance: random.Random, name: str) -> str:
        pad = "x" * int(PAD_CHARS_MAX * chance.random() ** 3)
        name = f"{self.path}{self.life and '@'}{self.life}/{name}"
        return canonical({"name": name, "pad": pad}) if self.is_json else f"{name}:{pad}\n"

    def body(self, texts: tuple[str, ...]) -> bytes:
        if not self.is_json:
            return "".join(texts).encode()
        return (texts[0] if len(texts) == 1 else f"[{','.join(texts)}]").encode()


async def created(storm: Storm, stream: Stream, chance: random.Random) -> None:
    """Create the stream; asked again until there is an answer."""
    while True:
        answer = await storm.client.ask("PUT", stream.target, headers={"content-type": stream.content_type})
        if answer is not None:
            if answer.status not in (200, 201):
                storm.history.complain(f"create of {stream.path} was answered {answer}")
            return
        await storm.pause(chance)


async def attempt(
    storm: Storm, write: Write, stream: Stream, headers: Mapping[str, str], body: bytes | None = None
) -> Answer | None:
    """One attempt, written down as unknown until its answer is there: the writer may be cancelled meanwhile."""
    at = len(write.told)
    write.told.append(Told.UNKNOWN)
    content = stream.body(write.texts) if body is None else body
    headers = {"content-type": stream.content_type, **headers}
    answer = await storm.client.ask("POST", stream.target, headers=headers, content=content)
    if answer is not None:
        write.told[at] = judged(storm, write, answer)
    return answer


def judged(storm: Storm, write: Write, answer: Answer) -> Told:
    if answer.status in (200, 204):
        if answer.next_offset is not None:
            write.offsets.add(answer.next_offset)
        return Told.ACKED
    if not 400 <= answer.status < 500:
        storm.history.complain(f"{write.name} was answered {answer}")
    return Told.NOT_YET if answer.code == "SEQ_GAP" and not write.forbidden else Told.REFUSED


@dataclass(eq=False)
class Producer:
    """An idempotent producer: up to `window` batches in flight, the same bytes again until there is an answer.

    Now and then it crashes: what is in flight is let go, its fate unknown for ever, and a new epoch begins.
    """

    storm: Storm
    stream: Stream
    name: str
    batches_max: int | None = None
    epoch: int = 0
    acked: list[Write] = field(default_factory=list)
    """Of the current epoch, in order of their answers."""
    closed: bool = False
    """No more can be written."""
    next_seq: int = 0

    def __post_init__(self) -> None:
        self.chance = self.storm.chance(f"{self.stream.path}/{self.stream.life}/{self.name}")
        self.window = self.chance.randint(2, WINDOW_MAX)

    async def run(self) -> None:
        """Write until the storm is over, the stream closed or `batches_max` written; all of it has an answer then."""
        while not self.is_done():
            crashes = self.batches_max is None and self.chance.random() < 0.5
            await self.write_epoch(crashes=crashes)
            if not self.is_done():
                self._begin_epoch()
                await self.write_first()
                await self._write_as_zombie()

    def is_done(self) -> bool:
        written = self.batches_max is not None and self.next_seq >= self.batches_max
        return self.closed or written or self.storm.over.is_set()

    def _begin_epoch(self) -> None:
        self.epoch += 1
        self.next_seq = 0
        self.acked = []

    async def write_first(self) -> None:
        """A new epoch counts from its first accepted batch; nothing of it may overtake that one."""
        if not self.is_done():
            await self.settle(self.next_write())

    async def write_epoch(self, *, crashes: bool) -> None:
        in_flight: set[asyncio.Task[None]] = set()
        for _ in range(self.chance.randint(1, EPOCH_BATCHES_MAX)):
            if self.is_done():
                break
            in_flight.add(asyncio.create_task(self.settle(self.next_write())))
            if len(in_flight) >= self.window:
                done, in_flight = await asyncio.wait(in_flight, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            if self.chance.random() < 0.1:
                await self.storm.pause(self.chance)
        if crashes and not self.storm.over.is_set():
            for task in in_flight:
                task.cancel()
            await asyncio.gather(*in_flight, return_exceptions=True)
        else:
            await asyncio.gather(*in_flight)

    def next_write(self) -> Write:
        seq, self.next_seq = self.next_seq, self.next_seq + 1
        texts = self.stream.texts(self.chance, f"{self.name}/{self.epoch}/{seq}")
        life = self.stream.life
        return self.storm.history.write(self.stream.path, texts, self.name, self.epoch, seq, life=life)

    async def settle(self, write: Write) -> None:
        """Attempt it until there is a definite answer."""
        while not write.is_settled and not self.closed:
            acks = len(self.acked)
            answer = await attempt(self.storm, write, self.stream, self.headers(write))
            if answer is None or write.told[-1] is Told.NOT_YET:
                self._look_at_gap(answer, self.acked[:acks])
                await self.storm.pause(self.chance)
            elif write.told[-1] is Told.ACKED:
                self.acked.append(write)
                await self._sometimes_look_again(write)
            else:
                self._refused(write, answer)

    def _look_at_gap(self, answer: Answer | None, acked: list[Write]) -> None:
        """A broker that waits for what was acknowledged before it was asked would be waited for in vain: give up."""
        if answer is not None and is_lost(answer.problem.get("expectedSeq"), acked):
            self.storm.history.complain(f"{self.name} of {self.stream.path}, after acknowledgements, got {answer}")
            self.closed = True

    def _refused(self, write: Write, answer: Answer) -> None:
        if answer.code == "STREAM_CLOSED":
            self.closed = True
        else:
            self.storm.history.complain(f"{write.name} was answered {answer}")

    async def _sometimes_look_again(self, write: Write) -> None:
        if self.chance.random() < 0.1:
            await attempt(self.storm, write, self.stream, self.headers(write))
        if self.chance.random() < 0.05:
            for offset in list(write.offsets):
                page = await self.storm.client.page(self.stream.path, offset)
                if page is not None and page.status != 200:
                    self.storm.history.complain(f"a read at {offset}, just acknowledged, was answered {page.status}")

    async def _write_as_zombie(self) -> None:
        """The old epoch is fenced off as soon as the new one has written."""
        if self.acked:
            await forbidden(self, epoch=self.epoch - 1, seq=self.chance.choice([0, 1, 10_000]))

    def headers(self, write: Write) -> dict[str, str]:
        return producer_headers(self.name, write.epoch, write.seq)


def is_lost(expected_seq: object, acked: list[Write]) -> bool:
    """Whether a broker expects a batch that it has acknowledged already."""
    return isinstance(expected_seq, int) and any(write.seq >= expected_seq for write in acked)


def producer_headers(name: str, epoch: int, seq: int) -> dict[str, str]:
    return {"producer-id": name, "producer-epoch": str(epoch), "producer-seq": str(seq)}


async def forbidden(producer: Producer, *, epoch: int, seq: int) -> None:
    """A batch of this producer that must not be accepted; one attempt, with a text of its own."""
    storm, stream = producer.storm, producer.stream
    name = f"forbidden/{producer.name}/{epoch}/{seq}/{len(storm.history.writes)}"
    write = storm.history.forbidden(stream.path, stream.text(producer.chance, name))
    answer = await attempt(storm, write, stream, producer_headers(producer.name, epoch, seq))
    if answer is not None and answer.status == 200:
        storm.history.complain(f"{write.name} was accepted")


@dataclass(eq=False)
class Vandal:
    """Asks a stream for what must be refused while the storm lasts. Each attempt carries a text of its own."""

    storm: Storm
    stream: Stream
    producers: list[Producer]

    def __post_init__(self) -> None:
        self.chance = self.storm.chance(f"{self.stream.path}/vandal")

    async def run(self) -> None:
        attacks = [self.gap, self.other_bytes, self.broken_body, self.broken_headers, self.wrong_content_type]
        while not self.storm.over.is_set():
            await asyncio.sleep(self.chance.uniform(0, 0.05))
            await self.storm.pause(self.chance)
            await self.chance.choice(attacks)()

    async def gap(self) -> None:
        producer = self.chance.choice(self.producers)
        await forbidden(producer, epoch=producer.epoch, seq=producer.next_seq + 100_000)

    async def other_bytes(self) -> None:
        """The seq of an accepted batch with other bytes: a broken client."""
        producer = self.chance.choice(self.producers)
        if producer.acked:
            write = producer.acked[-1]
            await forbidden(producer, epoch=write.epoch, seq=write.seq)

    async def broken_body(self) -> None:
        if self.stream.is_json:
            name = self._name()
            broken = [f'[{{"name":"{name}"}},', f'{{"name":"{name}"}}}}', f'"{name}', f"[{name}]"]
            await self._refused(self.chance.choice(broken).encode(), {})
        else:
            await self._refused(b"", {})

    async def broken_headers(self) -> None:
        broken = [
            {"producer-id": "half"},
            producer_headers("", 0, 0),
            producer_headers("negative", 0, -1),
            {**producer_headers("word", 0, 0), "producer-seq": "one"},
            producer_headers("huge", 2**60, 0),
        ]
        await self._refused(None, self.chance.choice(broken))

    async def wrong_content_type(self) -> None:
        await self._refused(None, {"content-type": "application/x-other"})

    async def _refused(self, body: bytes | None, headers: dict[str, str]) -> None:
        name = self._name()
        write = self.storm.history.forbidden(self.stream.path, self.stream.text(self.chance, name))
        answer = await attempt(self.storm, write, self.stream, headers, body)
        if answer is not None and not 400 <= answer.status < 500:
            self.storm.history.complain(f"rubbish to {self.stream.path} ({headers}, {body!r}) was answered {answer}")

    def _name(self) -> str:
        return f"vandal/{len(self.storm.history.writes)}"


async def write_without_a_producer(storm: Storm, stream: Stream) -> None:
    """Appends that are attempted once, come what may."""
    chance = storm.chance(f"{stream.path}/without")
    number = 0
    while not storm.over.is_set():
        number += 1
        write = storm.history.write(stream.path, stream.texts(chance, f"without/{number}"))
        answer = await attempt(storm, write, stream, {})
        if answer is None:
            await storm.pause(chance)
        elif answer.status != 204:
            storm.history.complain(f"{write.name} was answered {answer}")
        await asyncio.sleep(chance.uniform(0, 0.02))


async def write_and_close(storm: Storm, stream: Stream) -> None:
    """Several producers, one of which closes the stream at some time; then nothing may be accepted any more."""
    chance = storm.chance(f"{stream.path}/closing")
    await created(storm, stream, chance)
    producers = [Producer(storm, stream, f"{stream.path}-p{number}") for number in range(2)]
    async with asyncio.TaskGroup() as group:
        for producer in producers:
            group.create_task(producer.run())
        await wait_a_while(storm, chance.uniform(0.2, 5))
        await (close_with_content(storm, stream, chance) if chance.random() < 0.5 else close(storm, stream, chance))
    for _ in range(3):
        write = storm.history.forbidden(stream.path, stream.text(chance, f"late/{len(storm.history.writes)}"))
        await attempt(storm, write, stream, {})


async def wait_a_while(storm: Storm, wait_s: float) -> None:
    try:
        await asyncio.wait_for(storm.over.wait(), wait_s)
    except TimeoutError:
        return


async def close(storm: Storm, stream: Stream, chance: random.Random) -> None:
    while True:
        answer = await storm.client.ask("POST", stream.target, headers={"stream-closed": "true"})
        if answer is not None:
            break
        await storm.pause(chance)
    if answer.status != 204 or answer.next_offset is None:
        storm.history.complain(f"close of {stream.path} was answered {answer}")
    else:
        storm.history.closings.append(Closing(stream.path, answer.next_offset))


async def close_with_content(storm: Storm, stream: Stream, chance: random.Random) -> None:
    """One batch that closes the stream with it; told again, it is a duplicate even though the stream is closed."""
    write = storm.history.write(stream.path, stream.texts(chance, "closer/0"), f"{stream.path}-closer", 0, 0)
    headers = {**producer_headers(write.producer, 0, 0), "stream-closed": "true"}
    acks = 0
    while acks < 2:
        answer = await attempt(storm, write, stream, headers)
        if answer is None:
            await storm.pause(chance)
        elif write.told[-1] is Told.ACKED and answer.next_offset is not None:
            acks += 1
            storm.history.closings.append(Closing(stream.path, answer.next_offset))
        else:
            storm.history.complain(f"{write.name}, which closes, was answered {answer}")
            return


async def write_life_after_life(storm: Storm, path: str, content_type: str) -> None:
    """Create a stream, write to it, delete it, and again: what one life was told holds in no other."""
    chance = storm.chance(f"{path}/lives")
    old_offsets: list[str] = []
    life = 0
    while True:
        stream = Stream(path, content_type, f"life{life}")
        await created(storm, stream, chance)
        producer = Producer(storm, stream, f"{path}-p", batches_max=chance.randint(3, 15))
        await write_completely(producer)
        await old_offsets_are_gone(storm, path, old_offsets)
        old_offsets = sorted({offset for write in producer.acked for offset in write.offsets})
        if storm.over.is_set():
            return
        await deleted(storm, stream, chance)
        life += 1


async def write_completely(producer: Producer) -> None:
    await producer.write_first()
    if not producer.is_done():
        await producer.write_epoch(crashes=False)
    if not producer.acked:
        await producer.settle(producer.next_write())


async def old_offsets_are_gone(storm: Storm, path: str, offsets: list[str]) -> None:
    for offset in offsets[:3]:
        page = await storm.client.page(path, offset)
        if page is not None and page.status != 410:
            storm.history.complain(f"{offset} of a deleted life of {path} was answered {page.status}")


async def deleted(storm: Storm, stream: Stream, chance: random.Random) -> None:
    while True:
        answer = await storm.client.ask("DELETE", stream.target)
        if answer is not None:
            break
        await storm.pause(chance)
    if answer.status not in (204, 404):  # 404: an attempt before had deleted it, and its answer was lost
        storm.history.complain(f"delete of {stream.path} was answered {answer}")
    page = await storm.client.page(stream.path, "-1")
    if page is not None and page.status != 404:
        storm.history.complain(f"a read of {stream.path}, just deleted, was answered {page.status}")


async def settle_what_is_left(storm: Storm, streams: Mapping[str, Stream]) -> None:
    """Attempt every batch of unknown fate again with the same bytes, in the order of its producer's seqs.

    A producer that crashed has been fenced off by its next epoch since: the answer is a refusal, whatever became of it.
    """
    chance = storm.chance("settle")
    for write in storm.history.writes:
        stream = streams.get(write.path)
        if stream is None or not write.producer or write.life or write.is_settled:
            continue
        while not write.is_settled:
            await attempt(storm, write, stream, producer_headers(write.producer, write.epoch, write.seq))
            if write.told[-1] is Told.NOT_YET:
                storm.history.complain(f"{write.name} is a gap, and all before it have their answers")
                break
            if not write.is_settled:
                await storm.pause(chance)
