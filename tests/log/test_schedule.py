"""When which host seals: on a real etcd, with a clock of the test's.

(pytest-trio takes the clock from the arguments of the test itself, so each test has it.)
"""

from __future__ import annotations

import pytest
from trio.testing import MockClock

from dnpipefs import etcd
from dnpipefs.core.names import FileId, SessionId
from dnpipefs.core.sealing import Policy, Retention
from dnpipefs.core.tails import IDLE_S
from dnpipefs.errors import CorruptData
from dnpipefs.log.schedule import LOOK_S, PATIENCE_S, ROUND_S, STAGGER_S
from dnpipefs.log.sealer import Step
from tests.log.conftest import Hosts
from tests.model.hosts import Host
from tests.model.oracle import Topic


def sealing(host: Host) -> list[Step]:
    """Return a list that the steps of sealing on a host are added to."""
    steps: list[Step] = []

    async def note(step: Step) -> None:
        steps.append(step)

    host.log.sealer.at = note
    return steps


async def test_an_idle_topic_is_sealed_by_the_host_that_appended_last(
    hosts: Hosts, mock_clock: MockClock
) -> None:
    one, two = await hosts.start(), await hosts.start()
    first, second = sealing(one), sealing(two)
    topic = await hosts.topic()
    await hosts.append(two, topic, b"a\n")
    await hosts.append(two, topic, b"b\n", b"c\n")
    await hosts.append(one, topic, b"d\n")
    await hosts.pass_time(IDLE_S - 2 * LOOK_S, steps=6)
    assert len((await hosts.shown(topic)).tail) == 4
    await hosts.pass_time(4 * LOOK_S, steps=4)
    shown = await hosts.shown(topic)
    assert (len(shown.tail), len(shown.sealed), shown.messages) == (0, 1, 4)
    assert first == list(Step)
    assert second == []
    await hosts.pass_time(ROUND_S / 2, steps=20)
    assert (len(first), len(second)) == (4, 0), "nothing more is done"


async def test_another_host_takes_over_from_a_dead_one(hosts: Hosts, mock_clock: MockClock) -> None:
    dead, living = await hosts.start(), await hosts.start()
    steps = sealing(living)
    topic = await hosts.topic()
    await hosts.append(living, topic, b"a\n")
    await hosts.append(dead, topic, b"b\n")
    await hosts.kill(dead)
    await hosts.pass_time(IDLE_S + 2 * LOOK_S, steps=4)
    assert steps == [], "it lets the other do its duty first"
    await hosts.pass_time(PATIENCE_S + STAGGER_S + 2 * LOOK_S, steps=8)
    shown = await hosts.shown(topic)
    assert (len(shown.tail), shown.messages) == (0, 2)
    assert steps == list(Step)


async def test_a_host_that_only_reads_takes_over_too(hosts: Hosts, mock_clock: MockClock) -> None:
    dead, living = await hosts.start(), await hosts.start()
    topic = await hosts.topic()
    await hosts.append(dead, topic, b"a\n")
    async with living.log.reader(topic.id):
        await hosts.kill(dead)
        await hosts.pass_time(IDLE_S + PATIENCE_S + STAGGER_S + 4 * LOOK_S, steps=20)
        assert (await hosts.shown(topic)).tail == ()


async def test_rounds_find_the_tails_that_nobody_living_knows_of(hosts: Hosts, mock_clock: MockClock) -> None:
    dead, living = await hosts.start(), await hosts.start()
    topics = [await hosts.topic() for _ in range(3)]
    for topic in topics:
        await hosts.append(dead, topic, b"a\n", b"b\n")
    await hosts.kill(dead)
    await hosts.carry_out(living.log.schedule.seal_left_over)
    assert [len((await hosts.shown(topic)).tail) for topic in topics] == [2, 2, 2], "only what is left over"
    await hosts.append(living, topics[0], b"c\n")
    await hosts.carry_out(living.log.schedule.seal_left_over)
    assert [len((await hosts.shown(topic)).tail) for topic in topics] == [0, 0, 0]
    assert [(await hosts.shown(topic)).messages for topic in topics] == [3, 2, 2]


async def test_the_first_host_makes_the_rounds_by_itself(hosts: Hosts, mock_clock: MockClock) -> None:
    dead = await hosts.start()
    topic = await hosts.topic()
    await hosts.append(dead, topic, b"a\n")
    await hosts.kill(dead)
    await hosts.cluster.store.lease_revoke(min(hosts.cluster.sessions()))
    await hosts.start()
    await hosts.pass_time(2 * ROUND_S + 10, steps=40)
    assert (await hosts.shown(topic)).tail == ()


async def test_commands_that_come_and_go_keep_no_host_from_making_the_rounds(
    hosts: Hosts, mock_clock: MockClock
) -> None:
    """Their sessions may have lower ids: which member of etcd has granted them says that, not when."""
    dead = await hosts.start()
    topic = await hosts.topic()
    await hosts.append(dead, topic, b"a\n")
    await hosts.kill(dead)
    await hosts.cluster.store.lease_revoke(min(hosts.cluster.sessions()))
    await hosts.start()
    for command in range(1, 13):  # there is one at each moment
        await hosts.cluster.store.put(hosts.cluster.keys.session(SessionId(command)), b"{}")
        await hosts.cluster.store.delete(hosts.cluster.keys.session(SessionId(command - 1)))
        await hosts.pass_time(ROUND_S / 5, steps=4)
    assert (await hosts.shown(topic)).tail == ()


async def test_rounds_remove_what_has_grown_too_old(hosts: Hosts, mock_clock: MockClock) -> None:
    host = await hosts.start()
    topic = await hosts.topic(Policy(Retention(age_ns=30 * 10**9)))
    await hosts.append(host, topic, b"a\n")
    await hosts.pass_time(IDLE_S + 2 * LOOK_S, steps=5)
    assert len((await hosts.shown(topic)).sealed) == 1
    await hosts.pass_time(31, steps=4)
    await hosts.carry_out(host.log.schedule.trim_all)
    shown = await hosts.shown(topic)
    assert (shown.sealed, shown.first, shown.end) == ((), 2, 2)


async def leave(hosts: Hosts, dead: Host, damaged: Topic, whole: Topic) -> None:
    """Let a host die that has appended to both; the first one may be damaged from now on."""
    for topic in (damaged, whole):
        await hosts.append(dead, topic, b"b\n")
    await hosts.kill(dead)
    assert damaged.id < whole.id, "it is met first"
    await hosts.shown(damaged)
    del hosts.cluster.oracle.topics[damaged.id]  # what follows is meant to be wrong


async def test_a_damaged_topic_does_not_stop_the_rounds(hosts: Hosts, mock_clock: MockClock) -> None:
    dead, living = await hosts.start(), await hosts.start()
    damaged, whole = await hosts.topic(), await hosts.topic()
    await hosts.append(dead, damaged, b"a\n")
    await dead.log.sealer.seal(damaged.id)
    await leave(hosts, dead, damaged, whole)
    segments = hosts.cluster.keys.segments(damaged.id)
    await hosts.cluster.store.delete(segments.start, segments.end)
    await hosts.carry_out(living.log.schedule.seal_left_over)
    await hosts.carry_out(living.log.schedule.seal_left_over)
    assert (await hosts.shown(whole)).tail == ()
    [complaint] = hosts.complaints.found
    assert "are missing in etcd: run dnpipefs fsck" in complaint
    hosts.complaints.found.clear()


async def test_a_long_tail_is_sealed_though_it_is_written_to(
    hosts: Hosts, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dnpipefs.log.schedule.TAIL_BATCHES", 20)
    monkeypatch.setattr("dnpipefs.core.tails.LOOK_BATCHES", 10)
    host = await hosts.start()
    topic = await hosts.topic()
    longest = 0
    for number in range(100):
        await hosts.append(host, topic, b"%d\n" % number)
        await hosts.pass_time(0.3)
        longest = max(longest, len((await hosts.shown(topic)).tail))
    assert longest < 35
    assert len((await hosts.shown(topic)).sealed) > 0


async def test_a_tail_of_many_bytes_is_sealed_though_it_is_written_to(
    hosts: Hosts, mock_clock: MockClock
) -> None:
    host = await hosts.start()
    topic = await hosts.topic()
    for number in range(12):
        await hosts.append(host, topic, b"%d\n" % number + bytes(200_000))
        await hosts.pass_time(0.3)
    shown = await hosts.shown(topic)
    assert len(shown.sealed) > 0
    assert sum(entry.size for entry in shown.tail) < 2 << 20


async def test_a_burst_is_sealed_when_it_is_over(
    hosts: Hosts, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Much comes at once, not enough to be sealed at once, and nothing after it."""
    monkeypatch.setattr("dnpipefs.core.tails.LOOK_BATCHES", 10)
    host = await hosts.start()
    topic = await hosts.topic()
    await hosts.append(host, topic, *[b"%d\n" % number for number in range(10)])
    await hosts.pass_time(2 * LOOK_S, steps=2)
    assert len((await hosts.shown(topic)).tail) == 10
    await hosts.pass_time(IDLE_S + 2 * LOOK_S, steps=4)
    assert (await hosts.shown(topic)).tail == ()


async def test_a_topic_that_was_deleted_meanwhile_is_let_go(hosts: Hosts, mock_clock: MockClock) -> None:
    host = await hosts.start()
    topic, other = await hosts.topic(), await hosts.topic()
    for each in (topic, other):
        await hosts.append(host, each, b"a\n")
    keys = hosts.cluster.keys
    gone = [keys.epoch(topic.id), keys.head(topic.id), keys.last(topic.id), keys.mark(topic.id)]
    await hosts.cluster.store.transaction((), [etcd.delete(key) for key in gone])
    await hosts.pass_time(IDLE_S + 2 * LOOK_S, steps=4)
    assert (await hosts.shown(other)).tail == ()
    assert hosts.complaints.found == []


async def test_sealing_ends_though_the_topic_is_written_to(hosts: Hosts, mock_clock: MockClock) -> None:
    """With another batch at each step: the sealer has others to look after, and trimming comes behind it."""
    host, writer = await hosts.start(), await hosts.start()
    topic = await hosts.topic(Policy(Retention(bytes=100)))
    hosts.cluster.judges_each = False
    steps = 0

    async def push(step: Step) -> None:
        nonlocal steps
        if step is Step.LOOKED:
            steps += 1
            assert steps < 50, "there is no end of it"
            await hosts.append(writer, topic, b"x" * 100 + b"\n")

    await hosts.append(host, topic, *[b"x" * 100 + b"\n"] * 5)
    host.log.sealer.at = push
    view = await host.log.sealer.seal(topic.id)
    assert steps >= 1
    assert len(view.entries) == steps, "what came since it began"
    assert await host.log.sealer.trim(topic.id) > 0


async def test_retention_comes_to_a_topic_that_is_never_idle_nor_busy(
    hosts: Hosts, mock_clock: MockClock
) -> None:
    host = await hosts.start()
    topic = await hosts.topic(Policy(Retention(messages=5)))
    hosts.cluster.judges_each = False
    for number in range(150):
        await hosts.append(host, topic, b"%d\n" % number)
        await hosts.pass_time(2.0, steps=4)
    await hosts.cluster.catch_up()
    view, _ = await host.log.look(topic.id)
    assert view.messages - view.first_message < 100, "two rounds' worth"


async def test_retention_that_is_set_later_comes_to_a_quiet_topic(
    hosts: Hosts, mock_clock: MockClock
) -> None:
    host = await hosts.start()
    topic = await hosts.topic()
    await hosts.append(host, topic, *[b"x" * 100 + b"\n"] * 4)
    await host.log.sealer.seal(topic.id, down_to=2)
    await host.log.sealer.seal(topic.id)
    looks = 0
    trim = host.log.sealer.trim

    async def counted(one: FileId) -> int:
        nonlocal looks
        looks += 1
        if looks == 1:
            raise CorruptData("it does not parse yet")
        return await trim(one)

    host.log.sealer.trim = counted  # type: ignore[method-assign, assignment]
    for messages, expected in ((5, 1), (5, 2), (5, 2), (1, 3)):
        topic.policy = hosts.cluster.policies[topic.id] = Policy(Retention(messages=messages))
        await hosts.carry_out(host.log.schedule.trim_all)
        assert looks == expected, "what has not changed is not read again"


async def test_a_key_in_a_tail_that_does_not_parse_does_not_stop_the_rounds(
    hosts: Hosts, mock_clock: MockClock
) -> None:
    dead, living = await hosts.start(), await hosts.start()
    damaged, whole = await hosts.topic(), await hosts.topic()
    await leave(hosts, dead, damaged, whole)
    await hosts.cluster.store.put(hosts.cluster.keys.tail_prefix(damaged.id) + b"0000", b"")
    for _ in range(2):
        await hosts.carry_out(living.log.schedule.seal_left_over)
    hosts.complaints.found.clear()
    view, _ = await living.log.look(whole.id)
    assert not view.entries
