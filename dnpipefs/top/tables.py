"""The four tables: which columns they have, how cells are written, how rows are sorted and chosen. Pure.

A cell's text is for people; `report` has the exact numbers.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Final, Generic, NamedTuple, TypeVar

from dnpipefs.etcd import MemberHealth, MemberState
from dnpipefs.groups import GroupState
from dnpipefs.log.log import TopicStat
from dnpipefs.log.session import Host
from dnpipefs.overview import TopicOverview
from dnpipefs.top.sample import Picture, Rate

WIDE: Final = 120
"""From so many columns of a terminal on, all columns of a table are shown."""
UNKNOWN: Final = "-"

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Column(Generic[Row]):
    """A column."""

    title: str
    name: str
    """How it is called on the command line."""
    width: int
    """How many cells of a terminal it takes; 0 if it shares with others what is left."""
    value: Callable[[Row], Any]
    """What rows are sorted by; those for which it is None come last."""
    write: Callable[[Any], str] = str
    """How a value that is known is written."""
    largest_first: bool = True
    wide: bool = False
    """Whether it is left out where there is little room."""

    def text(self, row: Row) -> str:
        """Return the cell of a row."""
        value = self.value(row)
        return UNKNOWN if value is None else self.write(value)

    @property
    def left(self) -> bool:
        """Whether it is flush left, as words are; numbers are flush right."""
        return not self.width


@dataclass(frozen=True, slots=True)
class Table(Generic[Row]):
    """A table, and where its rows come from."""

    title: str
    rows: Callable[[Picture], Iterable[Row]]
    """In the order of the rows' names."""
    name: Callable[[Row], str]
    """What the filter looks at."""
    identity: Callable[[Row], object]
    """What stays the same of a row from look to look."""
    detail: Callable[[Row], str]
    """All there is to say of a row, in one line."""
    columns: Sequence[Column[Row]]

    def shown(self, width: int) -> list[tuple[Column[Row], int]]:
        """Return the columns to show in *width* cells, and how wide each is then; a cell is between two."""
        columns = [column for column in self.columns if width >= WIDE or not column.wide]
        left = width - sum(column.width for column in columns) - (len(columns) - 1)
        sharing = sum(not column.width for column in columns)
        shares = [max(1, (left + index) // sharing) for index in reversed(range(sharing))]
        return [(column, column.width or shares.pop(0)) for column in columns]

    def column(self, name: str) -> Column[Row] | None:
        """Return the column of that name."""
        return next((column for column in self.columns if column.name == name), None)

    def chosen(
        self, picture: Picture, *, matching: str, by: Column[Row] | None, reverse: bool
    ) -> tuple[list[Row], int]:
        """Return the rows that match a filter, sorted, and how many there are in all.

        *by* None, or the first column, leaves them in the order of their names. Equal ones are in it, too.
        """
        rows = list(self.rows(picture))
        found = [row for row in rows if matches(self.name(row), matching)] if matching else rows[:]
        if by is not None and by is not self.columns[0]:
            valued = [(by.value(row), row) for row in found]
            known = [pair for pair in valued if pair[0] is not None]
            known.sort(key=itemgetter(0), reverse=by.largest_first != reverse)
            found = [row for _, row in known] + [row for value, row in valued if value is None]
        elif reverse:
            found.reverse()
        return found, len(rows)


def matches(name: str, wanted: str) -> bool:
    """Tell whether a name matches a filter: a pattern with ``*``, ``?`` or ``[``, else a part of it.

    Upper and lower case are the same, a pattern is to match all of the name.
    """
    name, wanted = name.lower(), wanted.lower()
    return fnmatch.fnmatchcase(name, wanted) if any(sign in wanted for sign in "*?[") else wanted in name


def counted(number: int, what: str) -> str:
    """Return a number with what it counts, in its plural where that belongs."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def printable(text: str) -> str:
    """Return *text* with a ``?`` for what would play with a terminal."""
    return text if text.isprintable() else "".join(sign if sign.isprintable() else "?" for sign in text)


def bytes_text(size: float) -> str:
    """Write a number of bytes as `ls -h` does: 999, 1.5K, 15K, 2.0G; the units are of 1024."""
    if size < 1000:
        return f"{size:.0f}"
    for unit in "KMGTP":
        size /= 1024
        if size < 9.95:
            return f"{size:.1f}{unit}"
        if size < 999.5:
            return f"{size:.0f}{unit}"
    return f"{size / 1024:.1f}E"


def count_text(count: float) -> str:
    """Write a count: as it is up to eight digits, then with a unit of thousands."""
    if count < 1e8:
        return str(int(count))
    return f"{count / 1e6:.0f}M" if count < 1e11 else f"{count / 1e9:.0f}G"


def rate_text(rate: float) -> str:
    """Write how many a second, such as 0.5, 12, 34K."""
    if 0 < rate < 9.95:
        return f"{rate:.1f}"
    return f"{rate:.0f}" if rate < 99_999.5 else f"{rate / 1000:.0f}K"


def age_text(seconds: float) -> str:
    """Write how long ago something was, such as 3s, 12m, 5h, 40d."""
    seconds = max(0.0, seconds)
    for unit, length, limit in (("s", 1, 100), ("m", 60, 100), ("h", 3600, 48)):
        if seconds < limit * length:
            return f"{int(seconds / length)}{unit}"
    return f"{int(seconds / 86400)}d"


def time_text(seconds: float) -> str:
    """Write how long something took, such as 1.2ms, 35ms, 1.5s."""
    if seconds < 0.00995:
        return f"{seconds * 1000:.1f}ms"
    return f"{seconds * 1000:.0f}ms" if seconds < 0.9995 else f"{seconds:.1f}s"


class TopicRow(NamedTuple):
    """A topic."""

    topic: TopicOverview
    rate: Rate | None
    now_ns: int

    @property
    def age_s(self) -> float | None:
        """How long ago the newest message was pushed; None if there is no message."""
        stat = self.topic.stat
        return (self.now_ns - stat.modified_ns) / 1e9 if stat and stat.messages else None

    @property
    def lag(self) -> int | None:
        """The lag of the group that is farthest behind."""
        return max((group.lag for group in self.topic.groups), default=None)

    @property
    def detail(self) -> str:
        """All there is to say."""
        stat = self.topic.stat
        if stat is None:
            return f"{self.topic.path}: its records cannot be read, dnpipefs fsck tells more"
        groups = ", ".join(os.fsdecode(group.name) for group in self.topic.groups)
        return (
            f"{self.topic.path}: {counted(stat.messages, 'message')}, bytes {stat.first} to {stat.end}, "
            f"{bytes_text(stat.stored)} stored, {'groups ' + groups if groups else 'no groups'}"
        )


def _topic_rows(picture: Picture) -> list[TopicRow]:
    now_ns, rates = picture.sample.time_ns, picture.rates
    return [TopicRow(topic, rates.get(topic.id), now_ns) for topic in picture.sample.topics]


def _of_stat(value: Callable[[TopicStat], int]) -> Callable[[TopicRow], int | None]:
    return lambda row: None if row.topic.stat is None else value(row.topic.stat)


def _of_rate(value: Callable[[Rate], float]) -> Callable[[TopicRow], float | None]:
    return lambda row: None if row.rate is None else value(row.rate)


TOPICS: Final[Table[TopicRow]] = Table(
    "topics",
    _topic_rows,
    lambda row: row.topic.path,
    lambda row: row.topic.id,
    lambda row: row.detail,
    (
        Column("TOPIC", "name", 0, lambda row: row.topic.path, largest_first=False),
        Column("MESSAGES", "messages", 8, _of_stat(lambda stat: stat.messages), count_text),
        Column("SIZE", "size", 6, _of_stat(lambda stat: stat.end - stat.first), bytes_text),
        Column("MSG/S", "rate", 7, _of_rate(lambda rate: rate.messages), rate_text),
        Column("BYTES/S", "bytes", 8, _of_rate(lambda rate: rate.bytes), bytes_text),
        Column("FIRST", "first", 6, _of_stat(lambda stat: stat.first), bytes_text),
        Column("END", "end", 6, _of_stat(lambda stat: stat.end), bytes_text),
        Column("NEWEST", "newest", 7, lambda row: row.age_s, age_text, largest_first=False),
        Column("LAG", "lag", 8, lambda row: row.lag, count_text, wide=True),
        Column("STORED", "stored", 7, _of_stat(lambda stat: stat.stored), bytes_text, wide=True),
    ),
)


class GroupRow(NamedTuple):
    """A consumer group."""

    topic: TopicOverview
    state: GroupState

    @property
    def group(self) -> str:
        """Its name."""
        return os.fsdecode(self.state.name)

    @property
    def name(self) -> str:
        """As the view of a mount is called."""
        return f"{self.topic.path}@{self.group}"

    @property
    def detail(self) -> str:
        """All there is to say."""
        hosts = ", ".join(f"{session:x}" for session in self.state.members) or "none"
        return f"{self.name}: lag {self.state.lag}, next message {self.state.message}, members {hosts}"


GROUPS: Final[Table[GroupRow]] = Table(
    "groups",
    lambda picture: [GroupRow(topic, state) for topic in picture.sample.topics for state in topic.groups],
    lambda row: row.name,
    lambda row: row.name,
    lambda row: row.detail,
    (
        Column("TOPIC", "name", 0, lambda row: row.topic.path, largest_first=False),
        Column("GROUP", "group", 0, lambda row: row.group, largest_first=False),
        Column("LAG", "lag", 8, lambda row: row.state.lag, count_text),
        Column("PENDING", "pending", 8, lambda row: row.state.pending, count_text),
        Column("RETURNED", "returned", 8, lambda row: row.state.returned, count_text),
        Column("AGAIN", "again", 8, lambda row: row.state.redeliveries, count_text),
        Column("MEMBERS", "members", 7, lambda row: len(row.state.members), count_text),
    ),
)


class HostRow(NamedTuple):
    """A mount, command or program."""

    host: Host
    now_ns: int

    @property
    def age_s(self) -> float | None:
        """How long it is there."""
        return None if self.host.since_ns is None else (self.now_ns - self.host.since_ns) / 1e9

    @property
    def name(self) -> str:
        """As `mount` shows where it is."""
        return f"{self.host.host}:{self.host.mountpoint or ''}"

    @property
    def detail(self) -> str:
        """All there is to say."""
        what = "no mount" if self.host.mountpoint is None else f"mounted on {self.host.mountpoint}"
        return (
            f"{self.host.host}: process {self.host.pid}, {what}, dnpipefs {self.host.version}, "
            f"session {self.host.session:x}"
        )


HOSTS: Final[Table[HostRow]] = Table(
    "hosts",
    lambda picture: [HostRow(host, picture.sample.time_ns) for host in picture.sample.hosts],
    lambda row: row.name,
    lambda row: row.host.session,
    lambda row: row.detail,
    (
        Column("HOST", "name", 0, lambda row: row.host.host, largest_first=False),
        Column("MOUNT", "mount", 0, lambda row: row.host.mountpoint, largest_first=False),
        Column("PID", "pid", 8, lambda row: row.host.pid, largest_first=False),
        Column("VERSION", "version", 9, lambda row: row.host.version),
        Column("SESSION", "session", 16, lambda row: f"{row.host.session:x}", largest_first=False),
        Column("SINCE", "since", 6, lambda row: row.age_s, age_text),
    ),
)


def role(member: MemberHealth) -> str:
    """Return what a member does in its cluster."""
    state = member.state
    if state is None:
        return "away"
    if state.leads is None:
        return "answers"
    return "leader" if state.leads else "learner" if state.is_learner else "follower"


def _of_state(value: Callable[[MemberState], Any]) -> Callable[[MemberHealth], Any]:
    return lambda member: None if member.state is None else value(member.state)


def _used(state: MemberState) -> float | None:
    return state.size / state.quota if state.size is not None and state.quota else None


def _alarms(member: MemberHealth) -> str | None:
    return ",".join(alarm.name for alarm in member.alarms) or None


def _member_detail(member: MemberHealth) -> str:
    alarms = f", alarm {_alarms(member)}" if member.alarms else ""
    if member.state is None:
        return f"{member.name or member.endpoint}: {member.failure}{alarms}"
    name = f"{member.name} at {member.endpoint}" if member.name else member.endpoint
    return f"{name}: {role(member)}, etcd {member.state.version}, revision {member.state.revision}{alarms}"


ETCD: Final[Table[MemberHealth]] = Table(
    "etcd",
    lambda picture: picture.health.members if picture.health is not None else (),
    lambda member: f"{member.name} {member.endpoint}",
    lambda member: member.endpoint,
    _member_detail,
    (
        Column("MEMBER", "name", 0, lambda member: member.name or member.endpoint, largest_first=False),
        Column("ROLE", "role", 8, role, largest_first=False),
        Column("VERSION", "version", 8, _of_state(lambda state: state.version or None)),
        Column("SIZE", "size", 6, _of_state(lambda state: state.size), bytes_text),
        Column("QUOTA", "quota", 6, _of_state(lambda state: state.quota), bytes_text),
        Column("USED", "used", 5, _of_state(_used), "{:.0%}".format),
        Column("LATENCY", "latency", 7, lambda member: member.latency_s, time_text),
        Column("TERM", "term", 5, _of_state(lambda state: state.raft_term), count_text),
        Column("INDEX", "index", 9, _of_state(lambda state: state.raft_index), count_text),
        Column("ALARM", "alarm", 7, _alarms),
    ),
)

TABLES: Final[tuple[Table[Any], ...]] = (TOPICS, GROUPS, HOSTS, ETCD)
BUSIEST_FIRST: Final = {TOPICS.title: "rate", GROUPS.title: "lag"}
"""How tables are sorted unless somebody wants it otherwise; the others by name."""
SORTABLE: Final = tuple(dict.fromkeys(column.name for table in TABLES for column in table.columns))
"""The names of all columns."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Which rows of a table to show, and in which order."""

    matching: str = ""
    """A filter, see `matches`."""
    sort: str = "name"
    """The name of a column; a table that has none of that name is in the order of its rows' names."""
    reverse: bool = False

    def rows(self, table: Table[Any], picture: Picture) -> tuple[list[Any], int]:
        """Return the rows of a table to show, and how many it has in all."""
        by = table.column(self.sort)
        return table.chosen(picture, matching=self.matching, by=by, reverse=self.reverse)


Choices = Mapping[str, Choice]
"""By the tables' titles."""


def choices(matching: str = "", sort: str | None = None, *, reverse: bool = False) -> dict[str, Choice]:
    """Return the choices for all tables; the filter is for topics and groups."""
    return {
        table.title: Choice(
            matching if table in (TOPICS, GROUPS) else "",
            BUSIEST_FIRST.get(table.title, "name") if sort is None else sort,
            reverse,
        )
        for table in TABLES
    }
