"""The doctor's findings, from facts as numbers only."""

from dataclasses import replace
from typing import Any

import pytest

from dnpipefs.core.records import SessionRecord
from dnpipefs.doctor import Facts, Level, judge
from dnpipefs.doctor.facts import Endpoint, Prefix, Server
from dnpipefs.doctor.judgement import CLOCK_S, LONG_HISTORY, MUCH_FREE_BYTES, ORDER_S, SLOW_FSYNC_S, Finding
from dnpipefs.doctor.repair import KEPT_REVISIONS, Defragmented, Plan, plan
from dnpipefs.etcd import Alarm, AlarmKind, Member
from dnpipefs.etcd.space import NO_QUOTA_BYTES

GIB = 1 << 30
SOUND = Server(
    version="3.5.33",
    member_id=1,
    leads=True,
    revision=5_000,
    size=GIB,
    in_use=GIB,
    quota=8 * GIB,
    compacted=4_000,
    command=["etcd", "--auto-compaction-retention=1"],
    fsync_s=0.001,
    ahead_s=0.1,
)
MEMBER = Member(1, "a", (), ("http://127.0.0.1:1",), is_learner=False)
HOST = SessionRecord("web1", 4711, "/dnp", "0.1.0")
PREFIX = Prefix("/dnp/", reads_s=(0.001,), writes_s=(0.003,), sessions=(HOST,), behind_s=(0.002,))
ONE, THREE = "http://127.0.0.1:1", "http://127.0.0.1:3"
WELL = Facts(
    endpoints=(Endpoint("http://127.0.0.1:1", given=True, server=SOUND),),
    members=(MEMBER,),
    alarms=(),
    prefix=PREFIX,
)


def of_server(**changes: Any) -> Facts:
    return replace(WELL, endpoints=(replace(WELL.endpoints[0], server=replace(SOUND, **changes)),))


def of_prefix(**changes: Any) -> Facts:
    return replace(WELL, prefix=replace(PREFIX, **changes))


def three(**changes: Any) -> Facts:
    """Three members; `changes` are to the third."""
    endpoints = [
        Endpoint(f"http://127.0.0.1:{n}", given=True, server=replace(SOUND, member_id=n, leads=n == 2))
        for n in (1, 2, 3)
    ]
    assert endpoints[2].server is not None
    endpoints[2] = replace(endpoints[2], server=replace(endpoints[2].server, **changes))
    return replace(WELL, endpoints=tuple(endpoints), members=tuple(replace(MEMBER, id=n) for n in (1, 2, 3)))


def worse(facts: Facts) -> list[Finding]:
    return [finding for finding in judge(facts) if finding.level is not Level.OK]


def test_a_sound_cluster_has_no_finding() -> None:
    assert worse(WELL) == []
    assert worse(three()) == []
    assert len(judge(WELL)) >= 10


NOSPACE = Alarm(1, AlarmKind.NOSPACE)
CORRUPT = Alarm(1, AlarmKind.CORRUPT)
PLAIN = replace(WELL, endpoints=(replace(WELL.endpoints[0], name="http://etcd1:2379"),))
DEAD = replace(WELL, endpoints=(*WELL.endpoints, Endpoint("http://etcd2:1", given=True, failure="why")))
ASTRAY = replace(WELL, endpoints=(*WELL.endpoints, Endpoint("http://etcd2:1", given=False, failure="why")))


@pytest.mark.parametrize(
    ("facts", "level", "subject", "meaning", "advice"),
    [
        (DEAD, "problem", "endpoint http://etcd2:1", "why", "as it says"),
        (
            ASTRAY,
            "note",
            "endpoint http://etcd2:1",
            "is not reached from here: why",
            "--advertise-client-urls",
        ),
        (PLAIN, "note", "TLS", "none on the way to http://etcd1:2379", "certificates"),
        (PLAIN, "note", "user", "asks for no user", "guard it"),
        (replace(WELL, members=None), "note", "members", "does not tell this user", ""),
        (replace(WELL, members=(MEMBER,) * 3), "note", "members", "3, of which 1", "--endpoints"),
        (replace(WELL, members=(MEMBER,) * 2), "note", "members", "2 voters", "add or remove one"),
        (three(leads=None, member_id=2), "note", "members", "3, of which 2", "--endpoints"),
        (of_server(leads=False), "problem", "members", "none of them leads", "majority"),
        (of_server(version="3.5.1"), "warning", "release", "can lose writes", "upgrade to 3.5.33"),
        (three(version="3.6.14"), "warning", "release", "differ: 3.5.33, 3.6.14", "finish the upgrade"),
        (of_server(version=""), "note", "release", "does not tell", ""),
        (replace(WELL, alarms=None), "note", "alarms", "does not tell", ""),
        (replace(WELL, alarms=(NOSPACE,)), "problem", "alarm NOSPACE", "is full", "doctor --fix"),
        (replace(WELL, alarms=(NOSPACE,), embedded=True), "problem", "alarm NOSPACE", "full", "by itself"),
        (replace(WELL, alarms=(CORRUPT,)), "problem", "alarm CORRUPT", "members differ", "replace it"),
        (three(size=None), "note", "space of " + THREE, "cannot be told", ""),
        (three(quota=None), "note", "space of " + THREE, "cannot be told", ""),
        (of_server(quota=NO_QUOTA_BYTES), "note", "space of " + ONE, "without a quota", "set"),
        (three(size=6 * GIB, in_use=6 * GIB), "warning", "space of " + THREE, "near", "--fix"),
        (three(size=8 * GIB, in_use=8 * GIB), "problem", "space of " + THREE, "full", "--fix"),
        (
            three(in_use=GIB // 4),
            "note",
            "space of " + THREE,
            "768 MiB of the file are free",
            "--fix",
        ),
        (
            of_server(command=[], compacted=None),
            "note",
            "compaction of " + ONE,
            "cannot be told",
            "",
        ),
        (
            of_server(command=["etcd"], compacted=-1),
            "note",
            "compaction of " + ONE,
            "none so far",
            "",
        ),
        (
            of_server(command=["etcd"], compacted=-1, revision=LONG_HISTORY),
            *("warning", "compaction of " + ONE, "1,000,000 revisions", "=periodic"),
        ),
        (
            of_server(command=["etcd", "--auto-compaction-retention", "0"], compacted=-1),
            *("note", "compaction of " + ONE, "none so far, in 5,000", ""),
        ),
        (of_prefix(reads_s=(0.2,)), "warning", "latency", "200 ms, a write 3 ms", "nearer"),
        (of_prefix(writes_s=(0.5,)), "warning", "latency", "a write 500 ms", "faster disks"),
        (
            three(fsync_s=2 * SLOW_FSYNC_S),
            "warning",
            "disk of " + THREE,
            "20 ms on average",
            "disk",
        ),
        (three(ahead_s=CLOCK_S + 5), "warning", "clock of " + THREE, "about 7 s ahead", "NTP"),
        (three(ahead_s=-CLOCK_S - 5), "warning", "clock of " + THREE, "about 7 s behind", "NTP"),
        (of_server(ahead_s=None), "note", "clocks of etcd", "cannot be told", ""),
        (of_prefix(behind_s=()), "note", "clocks of hosts", "nobody pushed", ""),
        (of_prefix(behind_s=(1.0, -60.0)), "warning", "clocks of hosts", "60 s in the future", "NTP"),
        (of_prefix(behind_s=(60.0,)), "warning", "clocks of hosts", "60 s old", "NTP"),
        (of_prefix(read_failure="no", denied=True), "problem", "prefix /dnp/", "be read: no", "a role"),
        (of_prefix(write_failure="no", denied=True), "problem", "prefix /dnp/", "be written: no", "a role"),
        (of_prefix(read_failure="no"), "problem", "prefix /dnp/", "be read: no", "a majority"),
        (of_prefix(write_failure="no"), "problem", "prefix /dnp/", "be written: no", "a majority"),
        (of_prefix(format_failure="version 99"), "problem", "prefix /dnp/", "version 99", "release"),
        (of_prefix(in_use=False), "note", "prefix /dnp/", "holds nothing yet", "--prefix"),
        (
            of_prefix(sessions=(HOST, replace(HOST, version="0.2.0"))),
            *("note", "hosts", "different releases of dnpipefs: 0.1.0, 0.2.0", ""),
        ),
        (of_prefix(orders_age_s=(1.0, ORDER_S + 1)), "warning", "leftovers", "1 order to remove", "a mount"),
    ],
)
def test_what_is_found(facts: Facts, level: str, subject: str, meaning: str, advice: str) -> None:
    found = [finding for finding in worse(facts) if finding.subject == subject and meaning in finding.meaning]
    assert len(found) == 1, worse(facts)
    assert found[0].level.value == level
    assert advice in found[0].advice
    assert bool(found[0].advice) or level == "note", "what to do"
    assert "\n" not in found[0].meaning + found[0].advice


@pytest.mark.parametrize("endpoint", ["unix:/x", "http://127.0.0.1:1", "localhost:1", "https://etcd1:1"])
def test_ways_on_which_nobody_listens(endpoint: str) -> None:
    assert worse(replace(WELL, endpoints=(replace(WELL.endpoints[0], name=endpoint),))) == []


def test_what_a_full_etcd_refuses_is_not_blamed_on_the_role() -> None:
    facts = replace(of_prefix(write_failure="database space exceeded", writes_s=()), alarms=(NOSPACE,))
    assert [finding.subject for finding in worse(facts)] == ["alarm NOSPACE"]


def test_who_leads_may_be_unknown() -> None:
    """An ordinary user, and no metrics."""
    facts = three()
    unknown = tuple(
        replace(endpoint, server=replace(endpoint.server, leads=None))
        for endpoint in facts.endpoints
        if endpoint.server is not None
    )
    (finding,) = worse(replace(facts, endpoints=unknown))
    assert finding.meaning == "3; which leads cannot be told"


def test_nothing_is_found_of_what_is_not_reached() -> None:
    dead = Facts((Endpoint("http://etcd1:1", given=True, failure="why"),))
    assert [finding.subject for finding in judge(dead)] == ["endpoint http://etcd1:1"]


def test_a_member_with_two_addresses_is_one() -> None:
    again = Endpoint("http://localhost:1", given=True, server=SOUND)
    facts = replace(WELL, endpoints=(*WELL.endpoints, again))
    assert [finding.subject for finding in judge(facts)].count("alarms") == 1
    assert len([finding for finding in judge(facts) if finding.subject.startswith("space")]) == 1
    assert worse(facts) == []


# What --fix does


def names(steps: Plan) -> list[str]:
    return [endpoint.name for endpoint in steps.defragment]


def test_nothing_is_done_where_nothing_is_to_be_won() -> None:
    assert plan(WELL) == Plan(0, (), disarm=False)
    assert plan(replace(WELL, alarms=(CORRUPT,))) == Plan(0, (), disarm=False)
    assert plan(of_server(in_use=GIB - MUCH_FREE_BYTES + 1)).defragment == ()


def test_a_full_cluster_is_compacted_and_defragmented_the_leader_last() -> None:
    steps = plan(replace(three(), alarms=(NOSPACE,)))
    assert steps.compact == SOUND.revision
    assert names(steps) == ["http://127.0.0.1:1", "http://127.0.0.1:3", "http://127.0.0.1:2"]
    assert steps.disarm


@pytest.mark.parametrize("changes", [{"size": 7 * GIB}, {"in_use": GIB // 4}])
def test_a_member_near_its_quota_or_half_empty(changes: dict[str, int]) -> None:
    steps = plan(three(**changes))
    assert names(steps) == ["http://127.0.0.1:3"]
    assert steps.compact == 5_000 - KEPT_REVISIONS
    assert not steps.disarm


@pytest.mark.parametrize(
    ("after", "quota", "room"),
    [(GIB, 8 * GIB, True), (8 * GIB - 1, 8 * GIB, False), (GIB, None, True), (2 * GIB - 1, None, False)],
)
def test_when_there_is_room_to_disarm(after: int, quota: int | None, *, room: bool) -> None:
    assert Defragmented("x", 2 * GIB, after, quota, 1.0).room is room
