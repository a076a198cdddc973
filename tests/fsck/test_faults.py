"""Every fault is found and named; what is mended is not found again; no repair costs a message."""

import re
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace

import pytest

from dnpipefs import Dnp, etcd
from dnpipefs.cluster import open_cluster
from dnpipefs.core.findings import Repair, Rule
from dnpipefs.core.keys import prefix_range
from dnpipefs.core.names import ROOT, FileId, Offset, Revision
from dnpipefs.errors import CorruptData
from dnpipefs.fsck.run import TOPICS_AT_ONCE, Checker
from tests.docs.documents import FSCK
from tests.fsck import faults_of_content, faults_of_groups, faults_of_leftovers, faults_of_records
from tests.fsck.conftest import LINES, Lab, lay_down
from tests.fsck.faults import FAULTS, NOBODY, Fault, segment_of
from tests.fsck.faults_of_groups import plant_group

assert faults_of_records, faults_of_content  # importing them registers their faults
assert faults_of_leftovers, faults_of_groups


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
async def test_a_planted_fault(bare: Lab, fault: Fault) -> None:
    lab = bare
    await lay_down(lab, LINES if fault.rules[0].startswith("S") else 5)
    await fault.plant(lab)
    before = await lab.all(lab.everything)
    found = await lab.check()
    assert found.left == sorted(fault.rules), found.verdicts
    assert any(fault.about(verdict) for verdict in found.verdicts), found.verdicts
    assert await lab.all(lab.everything) == before, "without --repair nothing is changed"
    mended = await lab.check(repair=True)
    again = await lab.check()
    if fault.mended:
        assert (mended.left, mended.mended) == ([], sorted(fault.rules)), mended.verdicts
        assert again.verdicts == []
    else:
        assert (mended.left, mended.mended) == (sorted(fault.rules), []), mended.verdicts
        assert await lab.all(lab.everything) == before, "nothing was certain enough"
    if fault.reads and fault.rules[0] not in ("M1", "T5", "N1", "N2"):
        assert await lab.pull() == lab.messages


async def test_what_lies_behind_a_lost_stretch_is_read(lab: Lab) -> None:
    key, found = await segment_of(lab, 1)
    assert found.data == b"line 0\n"
    await lab.flip(key)
    lost = (await lab.check()).what("S5").finding.lost
    assert lost is not None
    async with lab.connect() as dnp:
        behind = [message.data async for message in dnp.pull("t", start=lost[1])]
        assert behind == lab.messages[2:]
        with pytest.raises(CorruptData):
            await anext(aiter(dnp.pull("t", start=lost[0])))


async def test_hosts_that_follow_the_topic_go_on(lab: Lab) -> None:
    """Of what a repair puts they learn nothing new."""
    async with lab.connect() as dnp, lab.connect() as other, aclosing(dnp.pull("t", follow=True)) as pulled:
        assert [(await anext(pulled)).data for _ in lab.messages] == lab.messages
        head = await lab.head()
        await lab.delete((await lab.all(lab.keys.index(lab.topic)))[0].key)
        await lab.put(lab.keys.head(lab.topic), replace(head, messages=head.messages + 7).encode())
        mended = await lab.check(repair=True)
        assert (mended.left, mended.mended) == ([], ["S2", "S3"])
        await other.push("t", "in between")
        assert (await anext(pulled)).data == b"in between\n"
        await lab.delete(lab.keys.mark(lab.topic))
        mended = await lab.check(repair=True)
        assert (mended.left, mended.mended) == ([], ["T5"])
        await other.push("t", "one more")
        assert (await anext(pulled)).data == b"one more\n"
        await other.reset("t")
        await other.push("t", "anew")
        assert (await anext(pulled)).data == b"anew\n"
        assert (await lab.check()).verdicts == []


async def _put_the_head_by_hand(lab: Lab) -> None:
    await lab.client.put(lab.keys.head(lab.topic), await lab.value(lab.keys.head(lab.topic)))


async def _spoil_last(lab: Lab) -> None:
    await lab.put(lab.keys.last(lab.topic), b"now")


async def _delete_the_head(lab: Lab) -> None:
    await lab.delete(lab.keys.head(lab.topic))


@pytest.mark.parametrize(
    ("plant", "rule", "sealed"),
    [(_put_the_head_by_hand, "T3", True), (_spoil_last, "T2", True), (_delete_the_head, "T4", False)],
)
async def test_hosts_that_follow_the_topic_are_told_of_what_is_put(
    bare: Lab, plant: Callable[[Lab], Awaitable[None]], rule: str, *, sealed: bool
) -> None:
    """They wait for the revision of `last`, which only their watch can bring."""
    if sealed:
        await lay_down(bare)
    else:
        async with bare.connect() as dnp:
            await dnp.push("t", "one", "two")
    async with open_cluster(replace(bare.settings, op_timeout=5.0)) as cluster:
        topic = await bare.id_of(cluster, b"t")
        bare.topic = topic
        async with cluster.log.reader(topic) as reader:
            end = (await reader.confirm()).end
            await plant(bare)
            mended = await bare.check(repair=True)
            assert (mended.left, mended.mended) == ([], [rule])
            assert (await reader.read(end, 10)).data == b""
            async with cluster.log.reader(topic) as other:
                assert (await other.confirm()).end == end


async def test_a_repair_that_etcd_refuses_is_not_the_end(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for plant in (faults_of_records.no_mark, faults_of_records.no_last_of_the_namespace):
        await plant(lab)
    carry_out = Checker._carry_out

    async def refuse_one(checker: Checker, repair: Repair) -> bool:
        if repair.puts[0][0] == lab.keys.last_namespace:
            raise etcd.InvalidRequest("too many operations")
        return await carry_out(checker, repair)

    monkeypatch.setattr(Checker, "_carry_out", refuse_one)
    mended = await lab.check(repair=True)
    assert (mended.left, mended.mended) == (["N7"], ["T5"])
    assert "not mended: too many operations" in caplog.text
    caplog.clear()


def test_there_is_a_fault_of_every_rule() -> None:
    planted = {rule for fault in FAULTS for rule in fault.rules} | {"L3"}  # see below
    assert planted == {rule.code for rule in Rule}


def test_the_document_says_what_is_mended() -> None:
    mended = {fault.rules[0] for fault in FAULTS if fault.mended} | {"L3", "T4"}
    described = {row[0] for row in FSCK.rows if re.fullmatch(r"[A-Z]\d+", row[0]) and row[3][:2] != "no"}
    assert described == mended


async def test_a_head_is_put_again_if_nothing_was_sealed(bare: Lab) -> None:
    async with bare.connect() as dnp:
        await dnp.push("t", "one", "two")
    [head] = await bare.all(prefix_range(bare.keys.prefix + b"head/"))
    await bare.delete(head.key)
    assert (await bare.check()).left == ["T4"]
    mended = await bare.check(repair=True)
    assert (mended.left, mended.mended) == ([], ["T4"])
    assert await bare.pull() == [b"one\n", b"two\n"]


async def test_a_topic_that_lost_its_name_is_attached_again(lab: Lab) -> None:
    await lab.delete(lab.keys.entry(ROOT, b"t"))
    found = await lab.check()
    assert found.left == ["L3"]
    mended = await lab.check(repair=True)
    assert (mended.left, mended.mended) == ([], ["L3"])
    assert (await lab.check()).verdicts == []
    assert await lab.pull(f"lost+found-{lab.topic:x}") == lab.messages


async def test_a_topic_whose_entry_cannot_be_read_gets_no_second_name(lab: Lab) -> None:
    entry = lab.keys.entry(ROOT, b"t")
    value = await lab.value(entry)
    await lab.put(entry, b"{}")
    await lab.client.put(lab.keys.last_namespace, await lab.value(lab.keys.last_namespace))
    mended = await lab.check(repair=True)
    assert (mended.left, mended.mended) == (["L3", "N2"], [])
    await lab.put(entry, value)
    await lab.client.put(lab.keys.last_namespace, await lab.value(lab.keys.last_namespace))
    assert (await lab.check(repair=True)).verdicts == []


async def two_faults_each(lab: Lab, count: int) -> dict[str, FileId]:
    """Make topics without a mark, and with something of an older generation; return their ids by name."""
    async with open_cluster(lab.settings) as cluster:
        names = [f"t{number:02}" for number in range(count)]
        for name in names:
            await Dnp(cluster).push(name, name)
        topics = {name: await lab.id_of(cluster, name.encode()) for name in names}
    for topic in topics.values():
        await lab.delete(lab.keys.mark(topic))
        await lab.client.put(lab.keys.segment(topic, Revision(1), Offset(0), 3), b"???")
    return topics


async def test_faults_of_many_topics_are_told_topic_by_topic_and_all_mended(bare: Lab) -> None:
    """Topics are looked at side by side, and each repair is looked at once more."""
    topics = await two_faults_each(bare, 3 * TOPICS_AT_ONCE)
    names = list(topics)
    for repair in (False, True):
        checked = await bare.check(repair=repair)
        told = [(verdict.path or "", verdict.finding.rule.code) for verdict in checked.verdicts]
        assert sorted(told) == [(name, code) for name in names for code in ("L1", "T5")]
        assert [name for name, _ in told[::2]] == [name for name, _ in told[1::2]], "each topic's in one go"
        assert {verdict.mended for verdict in checked.verdicts} == {repair}
        assert checked.report.topics == len(names)
    assert (await bare.check()).verdicts == []
    for name in names:
        assert await bare.pull(name) == [name.encode() + b"\n"]


async def test_a_last_that_was_put_anew_says_nothing_of_the_size(bare: Lab) -> None:
    """It was put once, like that of a new topic."""
    await lay_down(bare, 5)
    await bare.delete(bare.keys.last(bare.topic))
    assert (await bare.check(repair=True)).mended == ["T2"]
    size = len(b"".join(bare.messages))
    async with bare.connect() as dnp:
        for _ in range(2):
            assert size in [entry.size for entry in await dnp.ls()]
            found = {topic.path: topic.stat for topic in await dnp.overview()}["t"]
            assert found is not None
            assert (found.end, found.messages) == (size, len(bare.messages))


async def test_a_key_that_cannot_be_swept_keeps_nothing_else_from_being_mended(bare: Lab) -> None:
    topics = await two_faults_each(bare, 2 * TOPICS_AT_ONCE)
    await bare.client.put(bare.keys.tail(topics["t03"]).start + b"zzz", b"")
    mended = await bare.check(repair=True)
    assert mended.left == ["B1"]
    assert mended.mended == ["L1", "T5"]
    assert mended.report.mended == 2 * len(topics)
    assert (await bare.check()).left == ["B1"]


async def test_what_two_have_stays_with_the_host_that_lives(bare: Lab) -> None:
    await lay_down(bare, 5)
    group = await plant_group(bare)
    alive = await bare.begin_session()
    await group.put_member(alive, (2, 4))
    await group.put_member(NOBODY, (3, 4))
    await group.put_returned((1, 3))
    mended = await bare.check(repair=True)
    assert (mended.left, mended.mended) == (["G9"], ["G3"])
    assert list(await group.held(alive)) == [(2, 4, 0)]
    assert list(await group.held(NOBODY)) == []
    assert list(await group.back()) == [(1, 2, 0)]


async def test_what_nobody_had_is_delivered_when_it_comes(bare: Lab) -> None:
    await lay_down(bare, 5)
    group = await plant_group(bare, count := len(bare.messages))
    await group.put_cursor(count + 3)
    await group.put_returned((count + 1, count + 2))
    assert (await bare.check(repair=True)).mended == ["G5"]
    assert list(await group.back()) == [(count, count + 3, 0)]
    async with bare.connect() as dnp:
        await dnp.push("t", "one", "two", "three")
        async with (
            dnp.consumer("t", "workers") as consumer,
            aclosing(consumer.messages(wait=False)) as messages,
        ):
            assert [message.data async for message in messages] == [b"one\n", b"two\n", b"three\n"]
    assert (await bare.check()).left == []
