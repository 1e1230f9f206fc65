"""What must hold for the log of a session: the life of each generation, fences, messages, and the fold."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from consumer.session import SessionFold
from tests.faults.history import Generation, History, Log, SessionState, place_of

ENDED = ("complete", "failed", "aborted")


def canonical(value: object) -> str:
    """One text for each JSON value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def text_of(record: str) -> str | None:
    """What a writer knows of a session's record: its chunk or its message; None for the broker's own records."""
    told = json.loads(record)
    if told["type"] == "chunk":
        return canonical(told["value"]["chunk"])
    if told["type"] == "message":
        return canonical(told["value"])
    return None


def session_violations(history: History) -> list[str]:
    """Everything that is wrong with the sessions of a history."""
    found = []
    states = {state.path: state for state in history.sessions}
    for log in history.logs:
        if log.path in history.session_paths:
            state = states.get(log.path)
            life = "" if state is None else state.life
            story = Story(log, [it for it in history.generations if (it.path, it.life) == (log.path, life)], state)
            for check in CHECKS:
                found += [f"{check.__name__}: {log.path}: {violation}" for violation in check(story)]
    return found


@dataclass
class Turn:
    """One generation as the log has it. Positions, and the keys of its chunks in their order."""

    opened: list[int] = field(default_factory=list)
    ended: list[int] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)
    chunks: list[tuple[int, str]] = field(default_factory=list)


class Story:
    """The final log of one session, read by generation, beside what its producers know."""

    def __init__(self, log: Log, generations: list[Generation], state: SessionState | None) -> None:
        self.path = log.path
        self.records: list[Any] = [json.loads(text) for text in log.content]
        self.incarnation = log.incarnation
        self.generations = generations
        self.state = state
        self.turns: dict[str, Turn] = defaultdict(Turn)
        for position, record in enumerate(self.records):
            self._read(position, record)

    def _read(self, position: int, record: Any) -> None:
        if record["type"] == "generation":
            turn = self.turns[record["key"]]
            is_end = record["value"]["status"] in ENDED
            (turn.ended if is_end else turn.opened).append(position)
            turn.values.append(record["value"])
        elif record["type"] == "chunk":
            generation_id, _, number = record["key"].rpartition(":")
            self.turns[generation_id].chunks.append((position, number))


def generations_have_one_life(story: Story) -> Iterator[str]:
    """Opened once, ended once, and nothing of it before or after."""
    for generation_id, turn in story.turns.items():
        if len(turn.opened) != 1:
            yield f"{generation_id} is opened {len(turn.opened)} times"
        elif len(turn.ended) != 1:
            yield f"{generation_id} has {len(turn.ended)} ends"
        elif any(not turn.opened[0] < position < turn.ended[0] for position, _ in turn.chunks):
            yield f"{generation_id} has chunks outside its life"


def chunks_are_counted(story: Story) -> Iterator[str]:
    for generation_id, turn in story.turns.items():
        numbers = [number for _, number in turn.chunks]
        if numbers != [str(number) for number in range(len(numbers))]:
            yield f"{generation_id} has chunks numbered {numbers[:20]}"


def lanes_have_one_writer(story: Story) -> Iterator[str]:
    """In a lane fences rise with each generation, and one is open at a time."""
    fences: dict[str, int] = defaultdict(int)
    running: dict[str, str] = {}
    for record in story.records:
        if record["type"] != "generation":
            continue
        generation_id, value = record["key"], record["value"]
        lane = value["lane"]
        if value["status"] in ENDED:
            running.pop(lane, None)
            continue
        if lane in running:
            yield f"{generation_id} began in lane {lane} while {running[lane]} ran"
        if value["fence"] <= fences[lane]:
            yield f"{generation_id} has fence {value['fence']} in lane {lane} after {fences[lane]}"
        running[lane], fences[lane] = generation_id, value["fence"]


def finish_tells_the_truth(story: Story) -> Iterator[str]:
    """An acknowledged finish is the end that the log has, at its offset, with every chunk before it."""
    for generation in story.generations:
        turn = story.turns.get(generation.generation_id)
        if turn is None or generation.finish_status is None:
            if generation.finish_status is not None:
                yield f"{generation.generation_id} was finished and is lost"
            continue
        status = turn.values[-1]["status"]
        if status != generation.finish_status:
            yield f"{generation.generation_id} was finished as {generation.finish_status} and is {status}"
        written = sum(len(batch.texts) for batch in generation.batches)
        if len(turn.chunks) != written:
            yield f"{generation.generation_id} was finished over {len(turn.chunks)} chunks of {written}"
        ends = {end + 1 for end in turn.ended}
        if {place_of(offset).position for offset in generation.finish_offsets} - ends:
            yield f"{generation.generation_id} was told its end is {generation.finish_offsets}, it is {ends}"


def stop_is_a_guarantee(story: Story) -> Iterator[str]:
    for generation in story.generations:
        turn = story.turns.get(generation.generation_id)
        if generation.stop_acked and (turn is None or not turn.ended):
            yield f"{generation.generation_id} was stopped and runs"


def messages_equal_the_fold(story: Story) -> Iterator[str]:
    """What `GET /messages` answers is the fold of the log up to the offset that it names."""
    if story.state is None:
        yield "its messages are not known"
        return
    place = place_of(story.state.offset)
    if place != (len(story.records), story.incarnation):
        yield f"its messages stand at {place}, its log at {len(story.records)}"
    fold = SessionFold()
    for record in story.records[: place.position]:
        fold.add(record)
    if fold.malformed:
        yield f"its log has {fold.malformed} malformed records"
    expected = fold.items()
    if canonical(story.state.items) != canonical(expected):
        pairs = zip(story.state.items, expected, strict=False)
        differing = next(((told, folded) for told, folded in pairs if told != folded), None)
        yield f"{len(story.state.items)} messages, {len(expected)} folded; the first that differs: {differing}"


def everything_has_ended(story: Story) -> Iterator[str]:
    """What is asked for by its id tells the same end as the log."""
    if story.state is None:
        return
    for generation_id, status in story.state.statuses.items():
        turn = story.turns.get(generation_id)
        logged = turn.values[-1]["status"] if turn is not None and turn.values else None
        if status not in ENDED or status != logged:
            yield f"{generation_id} is {status}; the log says {logged}"


CHECKS: tuple[Callable[[Story], Iterator[str]], ...] = (
    generations_have_one_life,
    chunks_are_counted,
    lanes_have_one_writer,
    finish_tells_the_truth,
    stop_is_a_guarantee,
    messages_equal_the_fold,
    everything_has_ended,
)
