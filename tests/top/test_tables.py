"""What is made of looks at a cluster: rates, rows, cells. No terminal, no etcd."""

import json
import re
from dataclasses import replace

import pytest

from dnpipefs.core.names import NO_GENERATION, FileId, Offset, Revision, SessionId
from dnpipefs.etcd import AlarmKind, Health, MemberHealth, MemberState
from dnpipefs.groups import GroupState
from dnpipefs.log.log import TopicStat
from dnpipefs.log.session import Host
from dnpipefs.overview import TopicOverview
from dnpipefs.top.report import as_json, as_text, etcd_line, head
from dnpipefs.top.sample import Rate, Sample, picture
from dnpipefs.top.screen import HELP, KEYS
from dnpipefs.top.tables import (
    ETCD,
    GROUPS,
    TABLES,
    TOPICS,
    Choice,
    age_text,
    bytes_text,
    choices,
    count_text,
    matches,
    printable,
    rate_text,
    time_text,
)
from dnpipefs.top.widgets import fit
from tests.docs.documents import TOP

NOW_NS = 1795299868 * 10**9
EMPTY = TopicStat(Offset(0), Offset(0), 0, NOW_NS, 0, Revision(5), 0)


def topic(path: str, *groups: GroupState, number: int = 0, **changes: int) -> TopicOverview:
    stat = EMPTY._replace(**changes)  # type: ignore[arg-type]
    return TopicOverview(path, FileId(number or hash(path)), stat, groups)


def sample(*topics: TopicOverview, at: float = 0.0) -> Sample:
    return Sample(at, NOW_NS, topics, ())


def rate(before: TopicOverview | None, now: TopicOverview) -> Rate:
    looks = sample(*([] if before is None else [before])), sample(now, at=2.0)
    return picture(*looks, None).rates[now.id]


def test_rates_count_what_was_pushed() -> None:
    before = topic("t", end=1000, messages=10)
    assert rate(before, topic("t", end=1500, messages=20)) == (5, 250)
    assert rate(before, before) == (0, 0)


def test_retention_takes_nothing_from_rates() -> None:
    before = topic("t", end=1000, messages=10)
    assert rate(before, topic("t", first=900, end=1500, messages=2, first_message=18)) == (5, 250)


def test_a_topic_that_was_reset_or_is_new_counts_from_its_beginning() -> None:
    before = topic("t", end=1000, messages=10, first_message=4)
    assert rate(before, topic("t", end=100, messages=4, generation=9)) == (2, 50)
    assert rate(None, topic("t", end=100, messages=4)) == (2, 50)
    assert rate(before, topic("t", generation=NO_GENERATION)) == (0, 0)


def test_a_topic_keeps_its_rate_when_it_is_renamed() -> None:
    assert rate(topic("a", number=7, messages=10), topic("b", number=7, messages=20)) == (5, 0)


def test_there_are_no_rates_after_one_look() -> None:
    once = picture(None, sample(topic("t", end=100, messages=10)), None)
    assert (once.rates, once.measured_s) == ({}, None)
    row = TOPICS.chosen(once, matching="", by=None, reverse=False)[0][0]
    column = TOPICS.column("rate")
    assert column is not None
    assert column.text(row) == "-"


def test_what_cannot_be_read_has_no_numbers_and_comes_last() -> None:
    broken = replace(topic("a"), stat=None)
    both = picture(sample(), sample(broken, topic("b", messages=3), at=1.0), None)
    for reverse in (False, True):
        rows, _ = Choice(sort="messages", reverse=reverse).rows(TOPICS, both)
        assert [row.topic.path for row in rows] == ["b", "a"]
        assert [column.text(rows[1]) for column in TOPICS.columns[1:]] == ["-"] * 9
        assert "dnpipefs fsck" in TOPICS.detail(rows[1])


def test_equal_rows_stay_in_the_order_of_their_names() -> None:
    names = [f"t{number:02}" for number in range(30)]
    many = picture(None, sample(*[topic(name, messages=index % 3) for index, name in enumerate(names)]), None)
    for reverse in (False, True):
        rows, total = Choice(sort="messages", reverse=reverse).rows(TOPICS, many)
        assert total == 30
        assert [row.topic.stat.messages for row in rows[::10]] == ([0, 1, 2] if reverse else [2, 1, 0])
        for first in (0, 10, 20):
            some = [row.topic.path for row in rows[first : first + 10]]
            assert some == sorted(some)
    assert [row.topic.path for row in Choice().rows(TOPICS, many)[0]] == names
    assert [row.topic.path for row in Choice(reverse=True).rows(TOPICS, many)[0]] == names[::-1]


def test_the_filter_is_for_topics_and_groups() -> None:
    chosen = choices("jobs", "lag", reverse=True)
    assert {title: (choice.matching, choice.sort) for title, choice in chosen.items()} == {
        "topics": ("jobs", "lag"),
        "groups": ("jobs", "lag"),
        "hosts": ("", "lag"),
        "etcd": ("", "lag"),
    }
    assert {title: choice.sort for title, choice in choices().items()} == {
        "topics": "rate",
        "groups": "lag",
        "hosts": "name",
        "etcd": "name",
    }


@pytest.mark.parametrize(
    ("name", "wanted", "found"),
    [
        ("team/jobs", "", True),
        ("team/jobs", "m/J", True),
        ("Team/Jobs", "jobs", True),
        ("team/jobs", "job*", False),
        ("team/jobs", "*job?", True),
        ("team/jobs", "[st]eam/*", True),
        ("a[b", "[", False),
        ("team/jobs", "team jobs", False),
    ],
)
def test_filters(name: str, wanted: str, found: bool) -> None:
    assert matches(name, wanted) == found


@pytest.mark.parametrize(
    ("write", "cells"),
    [
        (bytes_text, {0: "0", 999: "999", 1000: "1.0K", 10188: "9.9K", 10189: "10K", 1023 << 10: "1.0M"}),
        (bytes_text, {2**31: "2.0G", 2**60: "1.0E", 999.4: "999", 999.5 * 1024: "1.0M", 2**63: "8.0E"}),
        (count_text, {0: "0", 99_999_999: "99999999", 123_456_789: "123M", 2**63: "9223372037G"}),
        (rate_text, {0: "0", 0.04: "0.0", 9.94: "9.9", 9.96: "10", 99_999: "99999", 123_456: "123K"}),
        (age_text, {-5: "0s", 0.9: "0s", 99: "99s", 100: "1m", 5999: "99m", 6000: "1h", 172_800: "2d"}),
        (time_text, {0.0012: "1.2ms", 0.00996: "10ms", 0.9: "900ms", 1.26: "1.3s"}),
    ],
)
def test_cells(write: object, cells: dict[float, str]) -> None:
    assert callable(write)
    assert {value: write(value) for value in cells} == cells


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.title)
@pytest.mark.parametrize("width", [80, 119, 120, 200])
def test_a_table_is_as_wide_as_the_terminal(table: object, width: int) -> None:
    assert table in TABLES
    for one in TABLES:
        shown = one.shown(width)
        assert sum(cells for _, cells in shown) + len(shown) - 1 == width
        assert all(cells >= min(len(column.title), 8) for column, cells in shown)
        assert (len(shown) == len(one.columns)) == (width >= 120 or not any(c.wide for c in one.columns))


@pytest.mark.parametrize("width", [1, 10, 40])
def test_a_terminal_that_is_too_small_is_no_failure(width: int) -> None:
    for table in TABLES:
        assert all(cells >= 1 for _, cells in table.shown(width))


def test_lines_fit() -> None:
    cut = [fit(text, 6, left=True) for text in ("abc", "abcdef", "abcdefg")]
    assert cut == ["abc   ", "abcdef", "abcde…"]
    assert fit("12", 4, left=False) == "  12"
    assert fit("漢字漢字", 6, left=True) == "漢字… ", "each takes two cells"
    assert fit("漢字", 4, left=True) == "漢字"
    assert fit("a\x1b[31m\udcff", 9, left=True) == "a?[31m?  "
    assert fit("abc", 1, left=True) == "…"
    assert printable("ok ü") == "ok ü"
    assert max(map(len, (KEYS, *HELP.splitlines()))) <= 80


STATE = MemberState("3.5.9", 1, True, 7, 5000, 4000, 1 << 30, 3, 77, False)
MEMBERS = (
    MemberHealth("http://a:1", "a", STATE, 0.001),
    MemberHealth("http://b:1", "b", failure="it is gone", alarms=(AlarmKind.NOSPACE,)),
    MemberHealth("http://c:1", state=MemberState("")),
)
HEALTH = Health(MEMBERS, (AlarmKind.NOSPACE,), 0.0021)
GROUP = GroupState(b"w\xff", 5, 10, 2, 1, 4, (SessionId(0xAB),))
HOST = Host(SessionId(0xAB), "web1", 7, "/dnp", "0.1.0", NOW_NS - 90 * 10**9)
FULL = picture(
    sample(),
    Sample(
        2.0,
        NOW_NS,
        (topic("jobs", GROUP, end=100, messages=10), replace(topic("bad\udcff"), stat=None)),
        (HOST, replace(HOST, mountpoint=None, since_ns=None, host="web2")),
    ),
    HEALTH,
)


def test_the_head() -> None:
    assert head(FULL) == "2 topics, 1 group, 2 hosts, 5 msg/s, 50/s".replace("5 msg", "5.0 msg")
    assert etcd_line(HEALTH) == (
        "etcd: 2 of 3 members answer, a leads, a read takes 2.1ms, 4.9K of 1.0G, alarm NOSPACE"
    )
    assert etcd_line(Health((), (), None)) == "etcd: 0 of 0 members answer"


def test_the_text() -> None:
    lines = as_text(FULL, choices()).splitlines()
    assert lines[2:] == [
        "",
        "TOPIC  MESSAGES  SIZE  MSG/S  BYTES/S  FIRST  END  NEWEST  LAG  STORED",
        "jobs         10   100    5.0       50      0  100      0s   10       0",
        "bad?          -     -      -        -      -    -       -    -       -",
        "",
        "TOPIC  GROUP  LAG  PENDING  RETURNED  AGAIN  MEMBERS",
        "jobs   w?      10        2         1      4        1",
        "",
        "HOST  MOUNT  PID  VERSION  SESSION  SINCE",
        "web1  /dnp     7    0.1.0       ab    90s",
        "web2  -        7    0.1.0       ab      -",
        "",
        "MEMBER         ROLE  VERSION  SIZE  QUOTA  USED  LATENCY  TERM  INDEX    ALARM",
        "a            leader    3.5.9  4.9K   1.0G    0%    1.0ms     3     77        -",
        "b              away        -     -      -     -        -     -      -  NOSPACE",
        "http://c:1  answers        -     -      -     -        -     -      -        -",
        "b: it is gone, alarm NOSPACE",
    ]


def test_the_json() -> None:
    told = json.loads(as_json(FULL, choices()))
    assert (told["time"], told["interval_s"]) == ("2026-11-21T22:24:28.000000000Z", 2.0)
    assert told["topics"][0] == {
        "topic": "jobs",
        "messages": 10,
        "size": 100,
        "first_offset": 0,
        "end_offset": 100,
        "stored": 0,
        "newest": "2026-11-21T22:24:28.000000000Z",
        "messages_per_s": 5.0,
        "bytes_per_s": 50.0,
    }
    broken = dict.fromkeys(told["topics"][0])
    assert told["topics"][1] == broken | {"topic": "bad\udcff"}
    assert told["groups"] == [
        {
            "topic": "jobs",
            "group": "w\udcff",
            "lag": 10,
            "pending": 2,
            "returned": 1,
            "redeliveries": 4,
            "members": ["ab"],
            "message": 5,
        }
    ]
    assert told["hosts"][0] == {
        "host": "web1",
        "pid": 7,
        "mountpoint": "/dnp",
        "version": "0.1.0",
        "session": "ab",
        "since": "2026-11-21T22:22:58.000000000Z",
    }
    assert (told["hosts"][1]["mountpoint"], told["hosts"][1]["since"]) == (None, None)
    etcd = told["etcd"]
    assert (etcd["leader"], etcd["alarms"]) == ("a", ["NOSPACE"])
    assert (etcd["failure"], etcd["read_s"]) == (None, 0.0021)
    assert etcd["members"][0] == {
        "name": "a",
        "endpoint": "http://a:1",
        "answers": True,
        "failure": None,
        "latency_s": 0.001,
        "version": "3.5.9",
        "leads": True,
        "learner": False,
        "revision": 7,
        "raft_term": 3,
        "raft_index": 77,
        "size": 5000,
        "in_use": 4000,
        "quota": 1 << 30,
        "alarms": [],
    }
    assert etcd["members"][1] == dict.fromkeys(etcd["members"][0]) | {
        "name": "b",
        "endpoint": "http://b:1",
        "answers": False,
        "failure": "it is gone",
        "alarms": ["NOSPACE"],
    }
    assert json.loads(as_json(replace(FULL, health=None), choices()))["etcd"] is None


def test_all_of_the_json_is_described() -> None:
    told = json.loads(as_json(FULL, choices()))
    found = {"": set(told) - {"topics", "groups", "hosts", "etcd"}, "etcd": set(told["etcd"]) - {"members"}}
    found |= {f"{part}[]": set(told[part][0]) for part in ("topics", "groups", "hosts")}
    found["etcd.members[]"] = set(told["etcd"]["members"][0])
    rows = [row for row in TOP.rows if len(row) == 2 and row[0].startswith("`")]
    described: dict[str, set[str]] = {"": set()}
    for field, what in rows:
        names = re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)|as by .*", "", what))
        for name in re.findall(r"`([\w.]+(?:\[\])?)`", field):
            if name in found:
                described[name] = set(names)
            elif name in told:
                described[""].add(name)
    assert described == found


def test_roles() -> None:
    follower = replace(MEMBERS[0], state=replace(STATE, leads=False))
    learner = replace(MEMBERS[0], state=replace(STATE, leads=False, is_learner=True))
    column = ETCD.column("role")
    assert column is not None
    assert [column.text(member) for member in (follower, learner)] == ["follower", "learner"]


def test_details() -> None:
    (row,) = Choice().rows(GROUPS, FULL)[0]
    assert GROUPS.detail(row) == "jobs@w\udcff: lag 10, next message 5, members ab"
    assert ETCD.detail(MEMBERS[0]) == "a at http://a:1: leader, etcd 3.5.9, revision 7"
