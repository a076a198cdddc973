"""A picture as text for people, all of it, and as JSON for scripts (docs/top.md says what is in it). Pure."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from typing import Any

from dnpipefs.cluster import VERSION
from dnpipefs.core.places import timestamp
from dnpipefs.etcd import Health, MemberHealth
from dnpipefs.groups import GroupState
from dnpipefs.log.log import TopicStat
from dnpipefs.log.session import Host
from dnpipefs.top.sample import Picture, Rate
from dnpipefs.top.tables import (
    TABLES,
    WIDE,
    Choices,
    Table,
    bytes_text,
    counted,
    printable,
    rate_text,
    time_text,
)


def head(picture: Picture) -> str:
    """Say in one line what there is, and what is pushed to all of it."""
    sample = picture.sample
    groups = sum(len(topic.groups) for topic in sample.topics)
    parts = [
        counted(len(sample.topics), "topic"),
        counted(groups, "group"),
        counted(len(sample.hosts), "host"),
    ]
    if picture.measured_s is not None:
        messages = sum(rate.messages for rate in picture.rates.values())
        size = sum(rate.bytes for rate in picture.rates.values())
        parts.append(f"{rate_text(messages)} msg/s, {bytes_text(size)}/s")
    return ", ".join(parts)


def etcd_line(health: Health) -> str:
    """Say in one line how etcd is, if a majority of it answers."""
    answering = sum(member.answers for member in health.members)
    parts = [f"{answering} of {counted(len(health.members), 'member')} answer{'s' if answering == 1 else ''}"]
    if health.leader is not None:
        parts.append(f"{health.leader.name or health.leader.endpoint} leads")
    if health.read_s is not None:
        parts.append(f"a read takes {time_text(health.read_s)}")
    sizes = [
        (member.state.size, member.state.quota)
        for member in health.members
        if member.state is not None and member.state.size is not None
    ]
    if sizes:
        size, quota = max(sizes, key=lambda pair: pair[0])
        parts.append(f"{bytes_text(size)} of {bytes_text(quota)}" if quota else bytes_text(size))
    parts += [f"alarm {alarm.name}" for alarm in health.alarms]
    return "etcd: " + ", ".join(parts)


def as_text(picture: Picture, choices: Choices) -> str:
    """Write all tables, as wide as they are."""
    taken = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(picture.sample.time_ns / 1e9))
    lines = [f"dnpipefs {VERSION}, {taken}: {head(picture)}"]
    if picture.health is not None:
        lines.append(etcd_line(picture.health))
    for table in TABLES:
        rows, _ = choices[table.title].rows(table, picture)
        if rows:
            lines += ["", *_lines(table, rows)]
        if table.title == "etcd":
            lines += [printable(table.detail(member)) for member in rows if not member.answers]
    return "\n".join(lines) + "\n"


def _lines(table: Table[Any], rows: Sequence[Any]) -> list[str]:
    columns = [column for column, _ in table.shown(WIDE)]
    cells = [[column.title for column in columns]]
    cells += [[printable(column.text(row)) for column in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            f"{cell:{'<' if column.left else '>'}{width}}"
            for column, cell, width in zip(columns, line, widths, strict=True)
        ).rstrip()
        for line in cells
    ]


def as_json(picture: Picture, choices: Choices) -> str:
    """Write everything, exactly, as one object in one line; its lists are filtered and in order, too."""
    sample = picture.sample
    rows = {table.title: choices[table.title].rows(table, picture)[0] for table in TABLES}
    document = {
        "version": VERSION,
        "time": timestamp(sample.time_ns),
        "interval_s": None if picture.measured_s is None else round(picture.measured_s, 6),
        "topics": [_topic(row.topic.path, row.topic.stat, row.rate) for row in rows["topics"]],
        "groups": [_group(row.topic.path, row.state) for row in rows["groups"]],
        "hosts": [_host(row.host) for row in rows["hosts"]],
        "etcd": None if picture.health is None else _health(picture.health, rows["etcd"]),
    }
    return json.dumps(document) + "\n"


def _topic(path: str, stat: TopicStat | None, rate: Rate | None) -> dict[str, object]:
    return {
        "topic": path,
        "messages": stat and stat.messages,
        "size": stat and stat.end - stat.first,
        "first_offset": stat and stat.first,
        "end_offset": stat and stat.end,
        "stored": stat and stat.stored,
        "newest": timestamp(stat.modified_ns) if stat is not None and stat.messages else None,
        "messages_per_s": None if rate is None else round(rate.messages, 3),
        "bytes_per_s": None if rate is None else round(rate.bytes, 3),
    }


def _group(topic: str, state: GroupState) -> dict[str, object]:
    return {
        "topic": topic,
        "group": os.fsdecode(state.name),
        "lag": state.lag,
        "pending": state.pending,
        "returned": state.returned,
        "redeliveries": state.redeliveries,
        "members": [f"{session:x}" for session in state.members],
        "message": state.message,
    }


def _host(host: Host) -> dict[str, object]:
    return {
        "host": host.host,
        "pid": host.pid,
        "mountpoint": host.mountpoint,
        "version": host.version,
        "session": f"{host.session:x}",
        "since": None if host.since_ns is None else timestamp(host.since_ns),
    }


def _health(health: Health, members: Sequence[MemberHealth]) -> dict[str, object]:
    leader = health.leader
    return {
        "read_s": health.read_s,
        "failure": health.failure or None,
        "leader": None if leader is None else leader.name or leader.endpoint,
        "alarms": [alarm.name for alarm in health.alarms],
        "members": [_member(member) for member in members],
    }


def _member(member: MemberHealth) -> dict[str, object]:
    state = member.state
    return {
        "name": member.name or None,
        "endpoint": member.endpoint,
        "answers": member.answers,
        "failure": member.failure or None,
        "latency_s": member.latency_s,
        "version": state and (state.version or None),
        "leads": state and state.leads,
        "learner": state and state.is_learner,
        "revision": state and state.revision,
        "raft_term": state and state.raft_term,
        "raft_index": state and state.raft_index,
        "size": state and state.size,
        "in_use": state and state.in_use,
        "quota": state and state.quota,
        "alarms": [alarm.name for alarm in member.alarms],
    }
