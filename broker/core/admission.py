"""Which entries of a generation are accepted: judged by what is there, before anything changes.

What is refused, or a copy of what was accepted, ends here; `generation` does the rest.
"""

from __future__ import annotations

from functools import lru_cache

import msgspec

from broker.core.entry import NEXT_SEQ, Entry, GenerationOptions, Kind
from broker.core.outcome import Outcome, Result, refused
from broker.core.producer import Verdict, check, receipt_of
from broker.core.session_work import Work, message_exists, opened
from broker.core.state import Changes, Generation
from consumer.wire import ENDED, Code, Reason

_replace = msgspec.structs.replace
generation_options = msgspec.msgpack.Decoder(GenerationOptions).decode
"""Of CHUNKS, FINISH and GENERATION_OPEN."""
options_of_later = lru_cache(maxsize=4096)(generation_options)
"""Of batches that open nothing: those of one generation have the same."""

_RAISED_THE_FENCE = frozenset({Reason.STOPPED.value, Reason.LEASE_EXPIRED.value})
"""Why the broker ended a generation that nobody superseded."""


def judge(
    changes: Changes, entry: Entry, index: int, now_ms: int
) -> Outcome | tuple[Work, GenerationOptions, Generation | None]:
    """The answer to a batch that is refused or a duplicate; for any other what accepting it takes.

    No generation is there yet when the batch opens it; the options then say all that the new one is.
    """
    work = opened(changes, entry, index, now_ms)
    if work is None:
        return refused(Code.SESSION_NOT_FOUND)
    is_later = entry.kind == Kind.CHUNKS and entry.seq > 0
    options = options_of_later(entry.options) if is_later else generation_options(entry.options)
    generation = work.generation(options.generation_id)
    if generation is not None:
        judge_known = _judge_unnumbered if entry.seq == NEXT_SEQ else _judge_batch
        answer = judge_known(work, generation)
        return (work, options, generation) if answer is None else answer
    if entry.seq == NEXT_SEQ and entry.kind == Kind.FINISH:
        return refused(Code.GENERATION_NOT_FOUND, stream=work.stream)
    if entry.seq > 0:
        return refused(Code.SEQ_GAP, "the generation begins with seq 0", expected_seq=0)
    judged = judge_opening(work, options)
    return judged if isinstance(judged, Outcome) else (work, judged, None)


def confirm(work: Work, generation: Generation, options: GenerationOptions) -> Outcome:
    """The answer to opening a generation that has been opened."""
    if not _is_as_asked(generation, options):
        return refused(
            Code.GENERATION_MISMATCH,
            "the generation was opened with other facts",
            stream=work.stream,
            generation=generation,
            epoch=work.epoch(generation.lane),
        )
    if generation.status in ENDED:
        return fenced(work, generation)
    return Outcome(
        Result.UNCHANGED,
        stream=work.stream,
        generation=generation,
        next_position=work.stream.tail,
        epoch=generation.fence,
        seq=generation.sequence.seq,
    )


def _is_as_asked(generation: Generation, options: GenerationOptions) -> bool:
    """Whether opening it is what made this generation. Which lane one continues in is not the client's alone to say."""
    return (
        generation.continues == options.continues
        and options.message_id in ("", generation.message_id)
        and options.format in ("", generation.format)
        and (bool(options.continues) or options.lane == generation.lane)
        and (bool(options.continues) or options.role == generation.role)
        and options.actor_id == generation.actor_id
        and options.lease_ms == generation.lease_ms
        and options.metadata == generation.metadata
    )


def judge_opening(work: Work, options: GenerationOptions) -> Outcome | GenerationOptions:
    """Why a generation cannot be opened, or all that it is to be."""
    if options.continues:
        resolved = _continuing(work, options)
        if isinstance(resolved, Outcome):
            return resolved
        options = resolved
    else:
        options = _replace(options, message_id=options.message_id or options.generation_id)
        if work.message(options.message_id) is not None:
            return message_exists(work, options.message_id)
    return _refuse_opening(work, options) or options


def _continuing(work: Work, options: GenerationOptions) -> Outcome | GenerationOptions:
    """What a generation is that goes on with another one's message."""
    before = work.generation(options.continues)
    if before is None or before.incarnation != work.stream.incarnation:
        return refused(Code.GENERATION_NOT_FOUND, "there is nothing of this id to go on with", stream=work.stream)
    if before.continued_by:
        return _mismatch(work, f"it is continued by {before.continued_by}")
    if options.message_id not in ("", before.message_id) or options.format not in ("", before.format):
        return _mismatch(work, "what goes on with a message has its id and its format")
    lane = options.lane or before.lane
    if lane == before.lane and _has_moved_on(work, before):
        lane = options.generation_id
    return _replace(options, message_id=before.message_id, format=before.format, role=before.role, lane=lane)


def _mismatch(work: Work, detail: str) -> Outcome:
    return refused(Code.GENERATION_MISMATCH, detail, stream=work.stream)


def _has_moved_on(work: Work, generation: Generation) -> bool:
    """Whether its lane has begun another generation since."""
    lane = work.lane(generation.lane)
    if lane is None:
        return False
    raised = generation.status in ENDED and generation.reason in _RAISED_THE_FENCE
    return lane.epoch > generation.fence + raised


def _refuse_opening(work: Work, options: GenerationOptions) -> Outcome | None:
    """Why a generation cannot be opened where it is wanted; None when it can."""
    lanes = work.session.lanes
    superseded = superseded_by(work, options)
    if options.yields and superseded:
        return refused(Code.LANE_BUSY, stream=work.stream, generation=superseded[0])
    crowded = work.lane(options.lane) is None and len(lanes) >= options.lanes_max
    if crowded and not (options.frees_lanes and work.idle_lane()):
        return refused(Code.TOO_MANY_LANES, f"the session has {len(lanes)} lanes", stream=work.stream)
    others = len(work.session.open) - len(superseded)
    if others >= options.generations_max:
        return refused(Code.TOO_MANY_GENERATIONS, f"{others} generations are open", stream=work.stream)
    return None


def superseded_by(work: Work, options: GenerationOptions) -> list[Generation]:
    """What ends when this opens: a lane has one writer, and so has a message."""
    return [
        generation
        for generation in work.session.open
        if generation.lane == options.lane or generation.generation_id == options.continues
    ]


def _judge_unnumbered(work: Work, generation: Generation) -> Outcome | None:
    """The answer to a batch without a number that is not accepted; None for one that is.

    Nothing tells a copy of it from the next batch, but for a finish: there is one.
    """
    entry, known = work.entry, generation.sequence
    options = generation_options(entry.options)
    if options.message_id not in ("", generation.message_id):
        return _mismatch(work, f"the generation writes message {generation.message_id}")
    if generation.status not in ENDED:
        return None
    if entry.kind == Kind.FINISH and known.receipts and known.receipts[-1].digest == entry.digest:
        return _duplicate(work, generation, known.seq)
    return fenced(work, generation)


def _judge_batch(work: Work, generation: Generation) -> Outcome | None:
    """The answer to a batch that is not the next one of a generation that is open; None for that one."""
    entry, known = work.entry, generation.sequence
    verdict = check(generation.fence, known, generation.fence, entry.seq, entry.digest)
    if verdict is Verdict.DUPLICATE:
        return _duplicate(work, generation, entry.seq)
    if verdict is Verdict.MISMATCH:
        return refused(
            Code.PAYLOAD_MISMATCH,
            "this seq was accepted with other bytes",
            stream=work.stream,
            generation=generation,
            epoch=generation.fence,
            seq=known.seq,
        )
    if generation.status in ENDED:
        return fenced(work, generation)
    if verdict is Verdict.GAP:
        return refused(
            Code.SEQ_GAP,
            stream=work.stream,
            generation=generation,
            epoch=generation.fence,
            seq=known.seq,
            expected_seq=known.seq + 1,
        )
    return None


def _duplicate(work: Work, generation: Generation, seq: int) -> Outcome:
    receipt = receipt_of(generation.sequence, seq)
    return Outcome(
        Result.DUPLICATE,
        stream=work.stream,
        generation=generation,
        next_position=None if receipt is None else receipt.next_position,
        epoch=generation.fence,
        seq=generation.sequence.seq,
    )


def fenced(work: Work, generation: Generation) -> Outcome:
    """The answer to whoever writes a generation that has ended."""
    return refused(
        Code.FENCED,
        "the generation has ended",
        stream=work.stream,
        generation=generation,
        epoch=work.epoch(generation.lane),
        seq=generation.sequence.seq,
    )
