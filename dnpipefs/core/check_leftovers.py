"""Checks what lies below the prefix and belongs to no message that can be read. Rules L1 to L7, S10. Pure.

A reset or deletion leaves work orders, and whoever is alive carries them out. So what is ordered to be
removed is no finding, nor are parts of a large batch whose session lives. What nobody will ever remove is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from dnpipefs.core.check_names import Names
from dnpipefs.core.check_records import Records, TopicState
from dnpipefs.core.findings import Finding, Repair, Rule, Stored, absent, removal, unchanged
from dnpipefs.core.keys import KeyRange, KeySchema
from dnpipefs.core.names import FileId
from dnpipefs.core.records import decode_time
from dnpipefs.errors import CorruptData

ORDER_AGE_NS: Final = 600 * 10**9
"""An order that is carried out is removed within a minute as long as any host lives: older is a finding."""


class Pending(NamedTuple):
    """An order to remove the parts of a large batch, and whether its session lives."""

    stored: Stored
    session_lives: bool


def judge_generations(
    topic: FileId,
    state: TopicState,
    old: Sequence[bytes],
    later: Sequence[bytes],
    trash: Stored | None,
    now_ns: int,
) -> list[Finding]:
    """Judge what a topic has of other generations: the first key of each family, if any."""
    findings = []
    for key in later:
        what = (
            f"the topic is in generation {state.generation}: its epoch was changed, or this was put by hand"
        )
        findings.append(Finding(Rule.FOREIGN_GENERATION, key, what, topic))
    if old and not state.ordered and state.sound:
        what = f"of generations before {state.generation}, and no order to remove it"
        findings.append(Finding(Rule.OLD_GENERATION, old[0], what, topic, repair=sweep(topic)))
    if trash is not None and not old:
        findings += judge_order(trash, topic, now_ns)
    return findings


def sweep(topic: FileId) -> Repair:
    """Return the repair that removes what the sweeper finds to be garbage of a topic."""
    return Repair("sweep it", sweep=topic)


def judge_order(trash: Stored, topic: FileId, now_ns: int) -> list[Finding]:
    """Judge an order to remove leftovers of a topic that has none."""
    try:
        if decode_time(trash.key, trash.value) > now_ns - ORDER_AGE_NS:
            return []
    except CorruptData:
        pass  # nobody reads the time but people
    what = "nothing is left to be removed"
    return [Finding(Rule.DONE_ORDER, trash.key, what, topic, repair=removal("remove it", [trash]))]


def judge_pending(keys: KeySchema, pending: Pending, *, ordered: bool) -> list[Finding]:
    """Judge an order to remove the parts of a large batch; *ordered*: all of its topic's are to go."""
    stored = pending.stored
    try:
        topic, generation, body = keys.parse_pending(stored.key)
    except CorruptData as error:
        what = f"{error}: nobody carries it out"
        return [Finding(Rule.BAD_ORDER, stored.key, what, repair=removal("remove it", [stored]))]
    if pending.session_lives or ordered:
        return []
    parts = keys.body_parts(topic, generation, body)
    guards = (*unchanged(stored), *absent(keys.session(body.session)))
    every = (KeyRange(parts[0], parts[-1] + b"\0"),) if parts else ()  # there can be thousands
    repair = Repair("remove it with the parts", guards, deletes=(stored.key,), ranges=every)
    what = f"session {body.session:x} has ended before it committed {len(parts)} parts"
    return [Finding(Rule.DEAD_PENDING, stored.key, what, topic, repair=repair)]


class Stranger(NamedTuple):
    """What there is of a topic that no directory entry names."""

    topic: FileId
    records: Records
    content: Sequence[bytes]
    """A key of each family in which there are batches, segments or large batches."""
    other: Sequence[Stored]
    """A key of each other family: pages of the index, fences, groups."""
    pendings: Sequence[Pending]


def judge_stranger(keys: KeySchema, names: Names, stranger: Stranger, now_ns: int) -> list[Finding]:
    """Judge a topic without a name."""
    topic, (epoch, head, last, mark, trash) = stranger.topic, stranger.records
    if last is not None and head is not None:
        repair = names.attach(topic, *unchanged(last, head))
        what = "no directory entry names it, so nobody can open it"
        return [Finding(Rule.UNNAMED_TOPIC, last.key, what, topic, repair=repair)]
    records = [one for one in (epoch, head, last) if one is not None]
    if records:
        what, repair = "no directory entry names it, and the rest of it is missing", None
        if not stranger.content:
            every = (keys.epoch(topic), keys.head(topic), keys.last(topic))
            there = {one.key for one in records}
            repair = removal("remove it: no message is lost", records, *absent(*(set(every) - there)))
        return [Finding(Rule.LONE_RECORDS, records[0].key, what, topic, repair=repair)]
    found = [
        finding
        for one in stranger.pendings
        for finding in judge_pending(keys, one, ordered=trash is not None)
    ]
    left = [
        *stranger.content,
        *(one.key for one in stranger.other),
        *([mark.key] if mark is not None else []),
    ]
    if trash is not None:
        return found if left or stranger.pendings else [*found, *judge_order(trash, topic, now_ns)]
    bodies = keys.bodies(topic)
    if stranger.pendings:  # their parts go with them
        left = [key for key in left if not bodies.start <= key < bodies.end]
    if left:
        what = "no directory entry names it, and there is no order to remove it"
        found.append(Finding(Rule.DELETED_TOPIC, left[0], what, topic, repair=sweep(topic)))
    return found


def judge_bad_order(stored: Stored, error: CorruptData) -> Finding:
    """Return the finding for a key below `trash/` that is no order."""
    what = f"{error}: nobody carries it out"
    return Finding(Rule.BAD_ORDER, stored.key, what, repair=removal("remove it", [stored]))
