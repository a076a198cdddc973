"""What workers had of the groups of kept topics, handed to the judge of groups.

`tests/support/group_checker.py` judges; here a workload's history is put into its terms. Nothing may be left
in the groups. What a test did to a mount is known as a stretch of time, so a redelivery has an explanation if
it falls into one in which the daemon was killed or its session changed. Which of two messages came first is
not judged: in such a stretch, and with workers that fail all the time, nearly any order has an explanation.
Nor is what groups of topics that are reset deliver.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from tests.cluster import history as told
from tests.cluster.history import (
    Acknowledged,
    Call,
    Create,
    Failed,
    GroupOpen,
    History,
    Killed,
    Nemesis,
    Read,
    Received,
    Write,
)
from tests.cluster.judge import pushes_of
from tests.support.group_checker import (
    SECOND,
    Ending,
    Fault,
    FaultKind,
    GroupAnomaly,
    GroupHistory,
    GroupKind,
    Reader,
    Reason,
    Refusal,
    Taken,
)
from tests.support.messages import MessageId, parse
from tests.support.topic_log import NEVER

SESSION_LOST: Final = "session lost"
"""What a test calls the time in which a mount has got another session."""
SLACK_NS: Final = 2 * SECOND
SETTLING_NS: Final = 8 * SECOND
"""A member waits 5 s for the answer to the last change that a trouble has cost, pauses, and sends another."""
_FAULTS: Final = {
    "kill": FaultKind.DAEMON_KILLED,
    "stop": FaultKind.DAEMON_STOPPED,
    SESSION_LOST: FaultKind.SESSION_LOST,
}
_ENDINGS: Final = {Killed: Ending.KILLED, Failed: Ending.FAILED, Acknowledged: Ending.WELL}


@dataclass
class GroupsVerdict:
    """What the groups of all kept topics come to."""

    anomalies: list[GroupAnomaly] = field(default_factory=list)
    deliveries: int = 0
    redelivered: Counter[Reason] = field(default_factory=Counter)


def judge_groups(history: History, kept: Sequence[str], session_s: float) -> GroupsVerdict:
    """Judge the groups of topics that are never reset, once they are drained and all is read to the end."""
    verdict = GroupsVerdict()
    inos = {create.name: create.ino for create in history.of(Create)}
    faults = list(_faults(history))
    calls = _by_topic_and_worker(history)
    for name in kept:
        workers = [_worker(each, faults) for each in calls[name].values()]
        found = GroupHistory(
            pushes=[
                push for write in history.of(Write) if write.ino == inos[name] for push in pushes_of(write)
            ],
            topic=_in_the_end(history, name),
            readers=[reader for reader, _ in workers],
            faults=faults,
            refusals=[refusal for _, refusals in workers for refusal in refusals],
            session_ns=int(session_s * SECOND),
            slack_ns=SLACK_NS,
            settling_ns=SETTLING_NS,
        ).judge()
        verdict.anomalies += [
            GroupAnomaly(kind, f"{name}: {text}")
            for kind, text in found.anomalies
            if kind is not GroupKind.REORDERED
        ]
        verdict.deliveries += found.deliveries
        verdict.redelivered += found.redelivered
    return verdict


_GroupCall = GroupOpen | Received | Acknowledged | Failed | Killed


def _by_topic_and_worker(history: History) -> dict[str, dict[tuple[str, int], list[_GroupCall]]]:
    found: dict[str, dict[tuple[str, int], list[_GroupCall]]] = defaultdict(lambda: defaultdict(list))
    for call in history.calls:
        if isinstance(call, _GroupCall):
            found[call.name][call.client, call.handle].append(call)
    return found


def _worker(calls: list[_GroupCall], faults: Sequence[Fault]) -> tuple[Reader, list[Refusal]]:
    """Return what one worker had and how it ended, and its calls that failed.

    One whose last call has no end is taken for killed, one whose last call failed has failed.
    """
    calls.sort(key=lambda call: call.began)
    taken: list[Taken] = []
    refusals: list[Refusal] = []
    ending, ended = Ending.KILLED, calls[-1].began
    name = f"{calls[0].client} {calls[0].handle}"
    for call in calls:
        if taken and taken[-1].done is None and isinstance(call, Received | Acknowledged):
            taken[-1] = Taken(taken[-1].line, taken[-1].got, call.began)
        if isinstance(call, Received) and call.data:
            taken.append(Taken(call.data, call.ended))
        if call.errno:
            refusals.append(Refusal(name, call.mount, call.errno, _troubled(call, faults)))
            ending, ended = Ending.FAILED, call.ended
        elif type(call) in _ENDINGS:
            ending, ended = _ENDINGS[type(call)], call.began
    return Reader(name, calls[0].mount, taken, ending, ended), refusals


def _troubled(call: Call, faults: Sequence[Fault]) -> int:
    """Return when a call was first in a time of trouble of its mount, or its end if it never was."""
    times = [
        max(call.began, fault.began)
        for fault in faults
        if fault.host == call.mount and fault.began <= call.ended and call.began <= fault.back
    ]
    return min(times, default=call.ended)


def _faults(history: History) -> Iterator[Fault]:
    mounts = {call.mount for call in history.calls if call.mount}
    end = history.end
    for nemesis in history.of(Nemesis):
        kind = _FAULTS.get(nemesis.what, FaultKind.FROZEN)
        ended = end if nemesis.ended == NEVER else nemesis.ended
        for mount in [nemesis.mount] if nemesis.mount else mounts:
            yield Fault(kind, mount, nemesis.began, ended, ended)


def _in_the_end(history: History, name: str) -> list[MessageId]:
    """Return what a topic holds, as one of the final reads found it."""
    rounds = [final.round for final in history.of(told.Final) if final.ok]
    for read in history.of(Read):
        if read.name == name and read.ok and read.round in rounds[-1:]:
            lines = read.data.splitlines(keepends=True)
            return [found for line in lines if (found := parse(line)) is not None]
    return []
