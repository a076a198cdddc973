"""Judges the history of a cluster: the guarantees of docs/semantics.md and docs/groups.md as a predicate.

Each kind of guarantee has a module: `topic_log` one topic's log (from `tests/support`, where the kinds of
anomalies are listed), `judge_subscriptions` what `topic@` delivers, `judge_names` what names mean,
`judge_calls` that calls end and daemons live. Consumption in groups is judged apart (`judge_groups`).

A topic is known by its inode number, which is the same on all hosts, for all handles, across renames.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from tests.cluster.history import Create, Delete, Final, History, Open, Read, Rename, Truncate, Write
from tests.cluster.judge_calls import check_calls
from tests.cluster.judge_names import check_names
from tests.cluster.judge_subscriptions import check_subscriptions
from tests.support.messages import MessageId, Outcome
from tests.support.topic_log import NEVER, Anomaly, Kind, Lines, Push, Reset, Scan, Size, TopicLog

__all__ = ["Anomaly", "Kind", "Limits", "judge"]


@dataclass(frozen=True)
class Limits:
    """How long things may take, in seconds."""

    op_timeout: float = 30.0
    hung: float = 5.0
    """So much longer than `op_timeout` a call may take."""
    name_lag: float = 10.0
    """A name that is found may be so old: "as fresh as the watch", which faults may delay."""


def judge(history: History, limits: Limits | None = None) -> list[Anomaly]:
    """Return what is wrong with a history; empty if nothing is."""
    limits = limits or Limits()
    lines = Lines()
    logs = topic_logs(history, lines)
    anomalies = [anomaly for log in logs.values() for anomaly in log.check()]
    anomalies += check_subscriptions(history, logs, lines)
    anomalies += check_names(history, int(limits.name_lag * 1e9))
    anomalies += check_calls(history, int((limits.op_timeout + limits.hung) * 1e9))
    anomalies += _check_finals(history)
    return anomalies


def topic_logs(history: History, lines: Lines) -> dict[int, TopicLog]:
    """Sort what was done by topics."""
    found: dict[int, TopicLog] = {}

    def topic(ino: int, name: str = "") -> TopicLog:
        if ino not in found:
            found[ino] = TopicLog(f"topic {ino:x}", lines)
        if name and f"({name}" not in found[ino].name:
            found[ino].name = f"topic {ino:x} ({name})"
        return found[ino]

    opened: dict[tuple[str, int], int] = {}
    """When a handle was opened, or last was at a confirmed end of file."""
    for call in history.calls:
        match call:
            case Create(ino=ino, name=name) if ino:
                topic(ino, name)
            case Write(ino=ino):
                topic(ino).pushes += pushes_of(call)
            case Truncate(ino=ino):
                topic(ino).resets.append(Reset(call.outcome, call.began, call.ended))
            case Delete(ino=ino, name=name) if ino:
                topic(ino, name).deletions.append(Reset(call.outcome, call.began, call.ended))
            case Rename(replaced=ino, target=name) if ino:
                topic(ino, name).deletions.append(Reset(call.outcome, call.began, call.ended))
            case Open(ino=ino, mode="read") if ino and call.ok:
                opened[call.client, call.handle] = call.began
                reader = f"{call.client} on {call.mount}"
                topic(ino, call.name).sizes.append(Size(reader, call.began, call.ended, call.size))
            case _:
                pass
    aligned: dict[tuple[str, int], int] = {}
    for read in sorted(history.of(Read), key=lambda read: read.began):
        if read.ended == NEVER:
            continue
        key = read.client, read.handle
        if read.offset == 0:
            aligned[key] = opened.get(key, 0)
        end_began = read.last_began if read.sizes and read.sizes[-1] == 0 else None
        topic(read.ino).scans.append(
            Scan(
                f"{read.client} on {read.mount}",
                opened.get(key, 0),
                aligned.get(key, 0),
                read.ended,
                read.offset,
                read.data,
                end_began,
                read.sizes,
                read.base,
            )
        )
        if end_began is not None:
            opened[key] = end_began
    return found


def pushes_of(write: Write) -> Iterator[Push]:
    """Return the messages of a write."""
    whole = write.count if write.whole < 0 else write.whole
    for index in range(write.count):
        # The rest of a short write may be hidden behind an error of a later piece.
        outcome = write.outcome if index < whole else Outcome.UNKNOWN
        yield Push(MessageId(write.writer, write.first + index), outcome, write.began, write.ended)


def _check_finals(history: History) -> Iterator[Anomaly]:
    """All mounts agree in the end: each has read each topic to its end, and it is the same end."""
    for final in history.of(Final):
        if not final.ok:
            yield Anomaly(Kind.UNFINISHED, f"the mounts did not come to agree: {final}")
            continue
        ends: dict[str, dict[str, tuple[int, int]]] = defaultdict(dict)
        for read in history.of(Read):
            if read.round == final.round and final.round and read.ok and read.sizes[-1:] == (0,):
                ends[read.name][read.mount] = read.ino, read.offset + read.base + len(read.data)
        for name in final.names:
            missing = set(final.mounts) - ends[name].keys()
            if missing:
                yield Anomaly(Kind.UNFINISHED, f"{name}: no final read on {', '.join(sorted(missing))}")
            if len(set(ends[name].values())) > 1:
                yield Anomaly(Kind.DIVERGING, f"{name}: final reads end at {dict(ends[name])}")
