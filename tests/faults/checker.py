"""The checker: what a history must not hold. It names every violation; an empty list is the proof.

Its vocabulary: nothing acknowledged is lost, nothing is doubled, nothing refused is ever visible, every producer's
batches are in order without a hole, any two readers agree, closed is final, one life never shows through in another.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, pairwise

from tests.faults.history import History, Log, Place, View, Write, place_of
from tests.faults.session_checker import session_violations, text_of

VIOLATIONS_SHOWN_MAX = 40
_Life = tuple[str, int]


@dataclass(frozen=True)
class Found:
    """A text in a log, at [start, end)."""

    text: str
    life: _Life
    start: int
    end: int


class Evidence:
    """A history with its texts found: for each life of a path one log that all its readers must agree with."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.logs = logs_by_life(history)
        self.found = {life: list(texts_of(history, log)) for life, log in self.logs.items()}
        self.by_text: dict[str, list[Found]] = defaultdict(list)
        for texts in self.found.values():
            for one in texts:
                self.by_text[one.text].append(one)


def violations(history: History) -> list[str]:
    """Everything that is wrong with a history."""
    evidence = Evidence(history)
    found = [f"at once: {complaint}" for complaint in history.complaints]
    for check in CHECKS:
        found += [f"{check.__name__}: {violation}" for violation in check(evidence)]
    return found + session_violations(history)


def shown(found: list[str]) -> str:
    """The violations as a test reports them."""
    lines = [f"{len(found)} violations", *found[:VIOLATIONS_SHOWN_MAX]]
    return "\n".join(lines)


# -- what there is ---------------------------------------------------------------------------------------------------


def logs_by_life(history: History) -> dict[_Life, Log]:
    """The final log of each life; of a life that is over, the longest view that began at its start."""
    logs = {(log.path, log.incarnation): log for log in history.logs}
    for view in sorted(history.views, key=lambda view: -view.position):
        life = (view.path, view.incarnation)
        if view.start == 0 and life not in logs:
            closed = view.ended is not None
            logs[life] = Log(view.path, view.incarnation, view.content, closed=closed, complete=closed)
    return logs


def texts_of(history: History, log: Log) -> Iterator[Found]:
    """The texts of a log, as writers know them. Of a session's own records (generation, stop) no writer knows."""
    life = (log.path, log.incarnation)
    if log.path not in history.byte_paths:
        is_session = log.path in history.session_paths
        for position, record in enumerate(log.content):
            text = text_of(record) if is_session else record
            if text is not None:
                yield Found(text, life, position, position + 1)
        return
    start = 0
    for line in "".join(log.content).splitlines(keepends=True):
        if line.endswith("\n") or log.complete:
            yield Found(line, life, start, start + len(line))
        start += len(line)


# -- the checks ------------------------------------------------------------------------------------------------------


def acked_is_there(evidence: Evidence) -> Iterator[str]:
    """KI1: every acknowledged batch is at its acknowledged offset, with its bytes."""
    for write in evidence.history.writes:
        if write.is_acked and not write.forbidden:
            for offset in write.offsets:
                yield from misplaced(evidence, write, place_of(offset))
            if not write.offsets and not all(text in evidence.by_text for text in write.texts):
                yield f"{write.name} was acknowledged and is lost"


def misplaced(evidence: Evidence, write: Write, end: Place) -> Iterator[str]:
    log = evidence.logs.get((write.path, end.incarnation))
    if log is None or (not log.complete and len(log.content) < end.position):
        return  # a life that is over, and no reader came that far
    found = [one for text in write.texts for one in evidence.by_text.get(text, [])]
    if not found:
        yield f"{write.name} was acknowledged at {end.position} and is lost"
    elif found[-1].end != end.position or found[-1].life != (write.path, end.incarnation):
        yield f"{write.name} was acknowledged at {end.position} and is at {found[-1].end} of {found[-1].life}"


def nothing_is_doubled(evidence: Evidence) -> Iterator[str]:
    """KI2, KI10: each text is there at most once, over all lives of all paths."""
    for text, found in evidence.by_text.items():
        if len(found) > 1:
            yield f"{text[:80]} is there {len(found)} times: {[(one.life, one.start) for one in found]}"


def nothing_refused_is_visible(evidence: Evidence) -> Iterator[str]:
    """KI3: what was refused is neither in a log nor was it ever shown to a reader."""
    shown_texts = set(evidence.by_text) | set(texts_of_views(evidence.history))
    for write in evidence.history.writes:
        if not write.may_be_visible:
            yield from (f"{write.name} was refused and is visible" for text in write.texts if text in shown_texts)


def texts_of_views(history: History) -> Iterator[str]:
    for view in history.views:
        log = Log(view.path, view.incarnation, view.content, complete=False)
        yield from (found.text for found in texts_of(history, log))


def nothing_came_from_nowhere(evidence: Evidence) -> Iterator[str]:
    written = {text for write in evidence.history.writes for text in write.texts}
    for text, found in evidence.by_text.items():
        if text not in written:
            yield f"nobody wrote {text[:80]!r}, and it is at {found[0].start} of {found[0].life}"


def batches_are_whole(evidence: Evidence) -> Iterator[str]:
    """A batch is one unit: all of it side by side, or nothing."""
    for write in evidence.history.writes:
        found = [one for text in write.texts for one in evidence.by_text.get(text, [])]
        if found and any(before.end != after.start for before, after in pairwise(found)):
            yield f"{write.name} is torn apart: {[one.start for one in found]}"
        elif found and len(found) < len(write.texts) and evidence.logs[found[0].life].complete:
            yield f"{write.name} is there in part: {len(found)} of {len(write.texts)}"


def producers_are_in_order(evidence: Evidence) -> Iterator[str]:
    """KI4, KI8: for each producer the visible epochs rise, and in each the seqs are 0, 1, 2, … without a hole."""
    author = {text: write for write in evidence.history.writes if write.producer for text in write.texts}
    for life, found in evidence.found.items():
        batches: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for one in found:
            write = author.get(one.text)
            if write is not None and batches[write.producer][-1:] != [(write.epoch, write.seq)]:
                batches[write.producer].append((write.epoch, write.seq))
        for producer, order in batches.items():
            yield from (f"{producer} in {life}: {fault}" for fault in disorder(order))


def disorder(order: list[tuple[int, int]]) -> Iterator[str]:
    """What is wrong with the (epoch, seq) of one producer's batches, in the order of the log."""
    for before, after in pairwise(order):
        if after[0] < before[0]:
            yield f"epoch {after[0]} wrote after epoch {before[0]}"
    for epoch, batches in groupby(sorted(order, key=lambda batch: batch[0]), key=lambda batch: batch[0]):
        seqs = [seq for _, seq in batches]
        for expected, seq in enumerate(seqs):
            if seq != expected:
                yield f"epoch {epoch} has seq {seq} where {expected} belongs"
                break


def readers_agree(evidence: Evidence) -> Iterator[str]:
    """KI5, KI6: what every reader saw, over all its drops and resumptions, is the log from where it began."""
    for view in evidence.history.views:
        log = evidence.logs.get((view.path, view.incarnation))
        if log is not None and list(log.content[view.start : view.position]) != view.content:
            yield disagreement(view, log)


def disagreement(view: View, log: Log) -> str:
    there = log.content[view.start : view.position]
    pairs = zip(view.content, there, strict=False)
    at = next((at for at, (saw, holds) in enumerate(pairs) if saw != holds), min(len(view.content), len(there)))
    saw, holds = view.content[at : at + 1], list(there[at : at + 1])
    return f"{view.reader} saw {saw} at {view.start + at} of {view.path}, where the log has {holds}"


def receipts_agree(evidence: Evidence) -> Iterator[str]:
    """A duplicate is told the offset of the original."""
    for write in evidence.history.writes:
        if len(write.offsets) > 1:
            yield f"{write.name} was told several offsets: {sorted(write.offsets)}"


def closed_is_final(evidence: Evidence) -> Iterator[str]:
    """KI9: nothing comes after the end, and every reader is told the same end."""
    for closing in evidence.history.closings:
        place = place_of(closing.offset)
        log = evidence.logs.get((closing.path, place.incarnation))
        if log is not None and log.complete and not log.closed:
            yield f"{closing.path} was closed at {place.position} and is open"
        if log is not None and len(log.content) > place.position:
            yield f"{closing.path} was closed at {place.position} and goes on to {len(log.content)}"
    for view in evidence.history.views:
        log = evidence.logs.get((view.path, view.incarnation))
        if view.ended is not None and log is not None and view.ended != len(log.content):
            yield f"{view.reader} was told that {view.path} ends at {view.ended}; it ends at {len(log.content)}"


def lives_are_apart(evidence: Evidence) -> Iterator[str]:
    """KI10: what was written to one life of a path is in no other."""
    incarnations: dict[tuple[str, str], set[int]] = defaultdict(set)
    for write in evidence.history.writes:
        if write.life:
            told = {place_of(offset).incarnation for offset in write.offsets}
            seen = {one.life[1] for text in write.texts for one in evidence.by_text.get(text, [])}
            incarnations[write.path, write.life] |= told | seen
    owners: dict[_Life, set[str]] = defaultdict(set)
    for (path, life), numbers in incarnations.items():
        if len(numbers) > 1:
            yield f"life {life} of {path} is in several incarnations: {sorted(numbers)}"
        for number in numbers:
            owners[path, number].add(life)
    yield from (
        f"{sorted(lives)} of {path} share one incarnation" for (path, _), lives in owners.items() if lives_max(lives)
    )


def lives_max(lives: Iterable[str]) -> bool:
    return len(set(lives)) > 1


CHECKS: tuple[Callable[[Evidence], Iterator[str]], ...] = (
    acked_is_there,
    nothing_is_doubled,
    nothing_refused_is_visible,
    nothing_came_from_nowhere,
    batches_are_whole,
    producers_are_in_order,
    readers_agree,
    receipts_agree,
    closed_is_final,
    lives_are_apart,
)
