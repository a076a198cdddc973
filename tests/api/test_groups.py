"""Consumer groups as Python programs use them, on two hosts of a real etcd."""

from __future__ import annotations

import json
from contextlib import aclosing
from typing import Any

import pytest
import trio
import trio.testing

from dnpipefs import CorruptData, Dnp, InvalidName, NotFound, TopicGone, UnknownOutcome, etcd
from dnpipefs.core.names import FileId, SessionId
from dnpipefs.groups.rate import Rate
from dnpipefs.groups.records import GroupKeys
from tests.api.conftest import Connect


async def taken(dnp: Dnp, topic: str, group: str, count: int | None = None) -> list[bytes]:
    """Return what a reader gets that does not wait, acknowledged."""
    found: list[bytes] = []
    async with dnp.consumer(topic, group) as consumer:
        while count is None or len(found) < count:
            job = await consumer.take_now()
            if job is None:
                break
            found.append(job.message.data)
            assert consumer.acknowledge(job)
        await consumer.settled()
    return found


async def test_what_is_acknowledged_on_one_host_is_so_on_the_other(dnp: Dnp, other: Dnp) -> None:
    await dnp.push("jobs", "1", "2", "3")
    assert await taken(dnp, "jobs", "w", 2) == [b"1\n", b"2\n"]
    assert await taken(other, "jobs", "w") == [b"3\n"]
    assert await taken(dnp, "jobs", "w") == []


async def test_a_body_that_raises_gives_back(dnp: Dnp, other: Dnp) -> None:
    await dnp.push("jobs", "1", "2")
    seen: list[bytes] = []

    async def work() -> None:
        async with aclosing(dnp.group("jobs", "w")) as messages:
            async for message in messages:
                seen.append(message.data)
                if len(seen) == 2:
                    raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await work()
    assert seen == [b"1\n", b"2\n"]
    with trio.fail_after(10):
        async with aclosing(other.group("jobs", "w")) as messages:
            assert (await anext(messages)).data == b"2\n"


async def test_what_came_back_is_not_claimed_for_nobody(dnp: Dnp, monkeypatch: pytest.MonkeyPatch) -> None:
    """However fast this host's readers were: the last of them may have gone."""
    monkeypatch.setattr(Rate, "measure", lambda _, now: 1_000.0)
    await dnp.push("jobs", "1", "2")
    async with dnp.consumer("jobs", "w") as consumer:
        assert consumer.give_back(await consumer.take())
        await consumer.settled()
        [facts] = await dnp.groups("jobs")
        assert (facts.pending, facts.returned, facts.redeliveries) == (0, 1, 0)


async def test_readers_wait_for_what_is_pushed_elsewhere(dnp: Dnp, other: Dnp) -> None:
    await dnp.push("jobs", "first")
    async with dnp.consumer("jobs", "w") as consumer, trio.open_nursery() as nursery:
        assert (await consumer.take()).message.data == b"first\n"
        nursery.start_soon(other.push, "jobs", "second")
        with trio.fail_after(10):
            assert (await consumer.take()).message.data == b"second\n"


async def test_two_hosts_divide_the_work(dnp: Dnp, other: Dnp) -> None:
    await dnp.push("jobs", *map(str, range(300)))
    got: dict[Dnp, list[bytes]] = {dnp: [], other: []}

    async def work(host: Dnp) -> None:
        async with host.consumer("jobs", "w") as consumer:
            while (job := await consumer.take_now()) is not None:
                got[host].append(job.message.data)
                await trio.lowlevel.checkpoint()
                consumer.acknowledge(job)

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(work, dnp)
            nursery.start_soon(work, other)
    assert sorted([*got[dnp], *got[other]], key=int) == [b"%d\n" % n for n in range(300)]


async def test_a_rewound_group_knows_no_old_hands(dnp: Dnp, other: Dnp) -> None:
    await dnp.push("jobs", "1", "2")
    async with dnp.consumer("jobs", "w") as consumer:
        job = await consumer.take()
        await other.seek("jobs", "w", "first")
        assert await taken(other, "jobs", "w") == [b"1\n", b"2\n"]
        again = await consumer.take_now()
        assert again is None
        assert not consumer.acknowledge(job)


async def test_a_reset_rewinds(dnp: Dnp, other: Dnp) -> None:
    await dnp.push("jobs", "old", "older")
    async with dnp.consumer("jobs", "w") as consumer:
        held = await consumer.take()
        await other.reset("jobs")
        await other.push("jobs", "new")
        with trio.fail_after(10):
            job = await consumer.take()
        assert job.message.data == b"new\n"
        assert not consumer.acknowledge(held)
        assert consumer.acknowledge(job)
    (facts,) = await other.groups("jobs")
    assert facts.name == b"w"


@pytest.mark.parametrize("how", ["wait", "now"])
async def test_after_a_reset_nobody_gets_what_its_host_had_claimed(dnp: Dnp, how: str) -> None:
    await dnp.push("jobs", *map(str, range(5000)))
    async with dnp.consumer("jobs", "w") as consumer:
        for _ in range(2000):  # fast, so its host claims ahead of it
            consumer.acknowledge(await consumer.take())
            await trio.lowlevel.checkpoint()
        await dnp.reset("jobs")
        assert how == "wait" or await consumer.take_now() is None
        await dnp.push("jobs", "new")
        with trio.fail_after(10):
            job = await consumer.take()
        assert job.message.data == b"new\n"


async def test_invariant_5_who_opens_a_group_after_a_reset_gets_nothing_of_before(
    dnp: Dnp, other: Dnp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though its host has claimed some of that, and its watch is late."""
    await dnp.push("jobs", *map(str, range(5000)))
    views, goes_on = other._groups._log._views, trio.Event()
    watch = views._watch

    async def watch_late(*args: Any) -> None:
        await goes_on.wait()
        await watch(*args)

    monkeypatch.setattr(views, "_watch", watch_late)
    got: list[object] = []

    async def look() -> None:
        async with other.consumer("jobs", "w") as late:
            got.append(await late.take_now())

    async with other.consumer("jobs", "w") as consumer, trio.open_nursery() as nursery:
        for _ in range(2000):  # fast, so its host claims ahead of it
            consumer.acknowledge(await consumer.take())
            await trio.lowlevel.checkpoint()
        assert consumer._member.readable
        await dnp.reset("jobs")
        nursery.start_soon(look)
        await trio.testing.wait_all_tasks_blocked(0.2)
        goes_on.set()
    assert got == [None]


async def test_no_dead_letter_is_noted_that_is_in_the_group_again(
    dnp: Dnp, monkeypatch: pytest.MonkeyPatch
) -> None:
    await dnp.push("jobs", "1")
    await dnp.configure("jobs", max_deliveries="1")
    put = dnp._groups._dead_letter

    async def put_and_rewind(*args: Any) -> None:
        await put(*args)
        await dnp.seek("jobs", "w", "first")

    monkeypatch.setattr(dnp._groups, "_dead_letter", put_and_rewind)
    async with dnp.consumer("jobs", "w") as consumer:
        consumer.give_back(await consumer.take())
        with trio.fail_after(10):
            assert consumer.acknowledge(await consumer.take())
            await consumer._member.quiet()
    assert await dnp.redrive("jobs", "w") == (0, 0, 0)


async def test_removing_a_group_ends_its_readers(dnp: Dnp, other: Dnp) -> None:
    await dnp.push("jobs", "1")
    async with dnp.consumer("jobs", "w") as consumer:
        consumer.acknowledge(await consumer.take())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other.remove_group, "jobs", "w")
            with pytest.raises(TopicGone), trio.fail_after(10):
                await consumer.take()
    with pytest.raises(NotFound):
        await other.remove_group("jobs", "w")
    assert await taken(other, "jobs", "w") == [b"1\n"], "a new one begins at the first message"


async def test_deleting_the_topic_ends_its_readers(dnp: Dnp, other: Dnp) -> None:
    await dnp.push("jobs", "1")
    async with dnp.consumer("jobs", "w") as consumer:
        consumer.acknowledge(await consumer.take())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other.remove, "jobs")
            with pytest.raises(TopicGone), trio.fail_after(10):
                await consumer.take()


async def test_what_a_host_holds_comes_back_when_it_goes(dnp: Dnp, connect: Connect) -> None:
    await dnp.push("jobs", "1")
    async with connect() as leaving, leaving.consumer("jobs", "w") as consumer:
        await consumer.take()
    with trio.fail_after(10):
        async with dnp.consumer("jobs", "w") as consumer:
            job = await consumer.take()
            assert (job.message.data, job.deliveries) == (b"1\n", 1)


async def test_start_last(dnp: Dnp) -> None:
    await dnp.push("jobs", "old")
    await dnp.configure("jobs", start="last")
    assert await taken(dnp, "jobs", "w") == []
    await dnp.push("jobs", "new")
    assert await taken(dnp, "jobs", "w") == [b"new\n"]


async def test_names(dnp: Dnp) -> None:
    await dnp.push("jobs", "1")
    for wrong in ("", "a@b", "a/b"):
        with pytest.raises(InvalidName):
            await taken(dnp, "jobs", wrong)
    with pytest.raises(NotFound):
        await taken(dnp, "missing", "w")


async def test_a_group_whose_readers_are_busy_is_rewound_at_once(dnp: Dnp) -> None:
    await dnp.push("jobs", *map(str, range(2000)))
    async with dnp.consumer("jobs", "w") as consumer, trio.open_nursery() as nursery:

        async def work() -> None:
            while True:
                consumer.acknowledge(await consumer.take())
                await trio.lowlevel.checkpoint()

        nursery.start_soon(work)
        with trio.fail_after(10):
            for _ in range(5):
                await dnp.seek("jobs", "w", "first")
        nursery.cancel_scope.cancel()


async def test_a_host_whose_readers_have_gone_takes_nothing_after_a_rewind(dnp: Dnp, other: Dnp) -> None:
    await dnp.push("jobs", *map(str, range(100)))
    for _ in range(5):
        async with other.consumer("jobs", "w") as consumer:  # fast, so its host would claim ahead
            while (job := await consumer.take_now()) is not None:
                consumer.acknowledge(job)
        await dnp.seek("jobs", "w", "first")
        async with dnp.consumer("jobs", "w") as consumer:
            job = await consumer.take()
            assert job.message.data == b"0\n"
            consumer.give_back(job)


async def test_records_that_do_not_fit_together_end_their_group_only(dnp: Dnp, other: Dnp) -> None:
    """What was returned lies behind the cursor, or does not parse: nothing can be planned from that."""
    await dnp.push("jobs", "1", "2")
    for group in ("good", "behind", "garbage"):
        assert await taken(dnp, "jobs", group, 1) == [b"1\n"]
    client = dnp._groups._client
    keys = {
        name: next(
            kv for kv in (await client.range(b"\0", b"\xff")).kvs if kv.key.endswith(b"/%s/cursor" % name)
        )
        for name in (b"behind", b"garbage")
    }
    cursor = keys[b"behind"]
    behind = json.loads(cursor.value) | {"redeliveries": 0, "stretches": [[700, 701, 1]]}
    await client.put(cursor.key.replace(b"cursor", b"returned"), json.dumps(behind).encode())
    await client.put(keys[b"garbage"].key.replace(b"cursor", b"returned"), b"garbage")
    for group in ("behind", "garbage"):
        with trio.fail_after(10), pytest.raises(CorruptData):
            await taken(other, "jobs", group)
    assert await taken(other, "jobs", "good") == [b"2\n"]
    assert [facts.name for facts in await other.groups("jobs")] == [b"behind", b"good"]


async def test_a_message_that_is_counted_and_not_there_keeps_nobody_else(dnp: Dnp) -> None:
    """A batch whose key says two messages has one: who waits for the second must not stop the host."""
    await dnp.push("jobs", "1")
    client, keys = dnp._groups._client, dnp._groups._keys
    [entry] = (await dnp._namespace.sync()).children(FileId(1)).values()
    tail = keys.tail(entry.id)
    found = ((kv, keys.parse_tail(entry.id, kv.key)) for kv in (await client.range(tail.start, tail.end)).kvs)
    [(kv, key)] = [(kv, key) for kv, key in found if key is not None]
    wrong = keys.batch(entry.id, SessionId(0x77), 1, key.size, key.messages + 1, None)
    with trio.fail_after(8):  # one that looks without end takes longer
        async with dnp.consumer("jobs", "w") as consumer, trio.open_nursery() as nursery:
            assert (await consumer.take()).message.data == b"1\n"
            for _ in range(2):
                nursery.start_soon(consumer.take)
            await trio.testing.wait_all_tasks_blocked(0.2)
            await client.put(wrong, kv.value)
            for _ in range(20):
                await dnp.push("other", "goes on")
            nursery.cancel_scope.cancel()


async def test_a_group_that_takes_long_to_open_holds_up_no_other(
    dnp: Dnp, monkeypatch: pytest.MonkeyPatch
) -> None:
    await dnp.push("jobs", "1")
    read, asked = GroupKeys.read, trio.Event()

    async def read_slowly(self: GroupKeys, session: SessionId) -> object:
        if self.name == b"slow":
            asked.set()
            await trio.sleep_forever()
        return await read(self, session)

    monkeypatch.setattr(GroupKeys, "read", read_slowly)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(taken, dnp, "jobs", "slow")
        await asked.wait()
        with trio.fail_after(10):
            assert await taken(dnp, "jobs", "w") == [b"1\n"]
        nursery.cancel_scope.cancel()


async def test_a_burial_that_fails_unexpectedly_ends_nothing(
    dnp: Dnp, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await dnp.push("jobs", "1", "2")
    await dnp.configure("jobs", max_deliveries="1")
    put, failures = dnp._groups._dead_letter, iter([ZeroDivisionError("of the test")])

    async def fail_once(*args: Any) -> None:
        for failure in failures:
            raise failure
        await put(*args)

    monkeypatch.setattr(dnp._groups, "_dead_letter", fail_once)
    await dnp.push("jobs.dead", "0")
    async with dnp.consumer("jobs", "w") as consumer, trio.open_nursery() as nursery:
        consumer.give_back(await consumer.take())
        assert (await consumer.take()).message.data == b"2\n"
        nursery.start_soon(consumer.take)
        with trio.fail_after(10):
            async with aclosing(dnp.pull("jobs.dead", follow=True)) as messages:
                assert [(await anext(messages)).data for _ in range(2)] == [b"0\n", b"1\n"]
        nursery.cancel_scope.cancel()
    assert "ZeroDivisionError('of the test')" in caplog.text


async def test_what_was_acknowledged_and_is_lost_is_said_once(dnp: Dnp) -> None:
    await dnp.push("jobs", "1", "2")
    client, keys = dnp._groups._client, dnp._groups._keys
    async with dnp.consumer("jobs", "w") as consumer, dnp.consumer("jobs", "other") as of_another_group:
        job = await consumer.take()
        found = await client.range(keys.sessions.start, keys.sessions.end)
        [session] = [keys.parse_session(kv.key) for kv in found.kvs]
        await client.lease_revoke(session)
        assert consumer.acknowledge(job), "nobody knows yet"
        with pytest.raises(UnknownOutcome):
            await consumer.settled()
        await consumer.settled()
        await of_another_group.settled()
        with trio.fail_after(10):
            for data in b"1\n", b"2\n":
                job = await consumer.take()
                assert job.message.data == data
                assert consumer.acknowledge(job)
        await consumer.settled()
    async with dnp.consumer("jobs", "w") as consumer:
        await consumer.settled()


async def test_what_has_no_room_in_the_group_comes_back_as_others_take_it(
    dnp: Dnp, other: Dnp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dnpipefs.core.group.RETURNED_STRETCHES", 2)
    await dnp.push("jobs", *map(str, range(10)))
    async with dnp.consumer("jobs", "w") as consumer:
        jobs = [await consumer.take() for _ in range(10)]
        for job in jobs[::2]:
            assert consumer.acknowledge(job)
        await consumer.settled()
        for job in jobs[1::2]:
            assert consumer.give_back(job)
        with trio.fail_after(10):
            while (facts := (await dnp.groups("jobs"))[0]).returned < 2:
                pass
        assert (facts.returned, facts.pending) == (2, 3)
        async with other.consumer("jobs", "w") as elsewhere:
            with trio.fail_after(10):
                for _ in range(5):
                    job = await elsewhere.take()
                    assert job.deliveries == 1
                    elsewhere.acknowledge(job)
            await elsewhere.settled()
        await consumer.settled()
    assert (await dnp.groups("jobs"))[0].lag == 0


async def test_who_holds_too_many_pieces_gets_no_more_before_some_are_done(
    dnp: Dnp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dnpipefs.core.group.HELD_STRETCHES", 4)
    monkeypatch.setattr(Rate, "measure", lambda _, now: 0.0)  # nothing is claimed ahead of who takes it
    await dnp.push("jobs", *map(str, range(20)))
    async with dnp.consumer("jobs", "w") as consumer, trio.open_nursery() as nursery:
        held = []
        for _ in range(3):
            held.append(await consumer.take())
            assert consumer.acknowledge(await consumer.take())
            await consumer.settled()
        held.append(await consumer.take())
        got: list[bytes] = []

        async def take() -> None:
            got.append((await consumer.take()).message.data)

        nursery.start_soon(take)
        await trio.testing.wait_all_tasks_blocked(0.2)
        assert got == []
        assert consumer.acknowledge(held[0])
        nursery.cancel_scope.deadline = trio.current_time() + 10
    assert got == [b"7\n"]


async def test_what_is_acknowledged_meanwhile_is_not_waited_for(
    dnp: Dnp, monkeypatch: pytest.MonkeyPatch
) -> None:
    await dnp.push("jobs", *map(str, range(50)))
    async with dnp.consumer("jobs", "w") as consumer:
        jobs = [await consumer.take() for _ in range(50)]
        change = GroupKeys.change

        async def change_meanwhile(*args: Any, **options: Any) -> Any:
            if jobs:
                consumer.acknowledge(jobs.pop())
            return await change(*args, **options)

        monkeypatch.setattr(GroupKeys, "change", change_meanwhile)
        consumer.acknowledge(jobs.pop())
        await consumer.settled()
        assert len(jobs) > 40


async def test_nothing_is_claimed_before_it_comes_where_deliveries_count(dnp: Dnp, other: Dnp) -> None:
    """Or what this host never had would have been delivered once when it dies."""
    await dnp.push("jobs", "1")
    await dnp.configure("jobs", max_deliveries="1")
    async with dnp.consumer("jobs", "w") as consumer, trio.open_nursery() as nursery:
        assert consumer.acknowledge(await consumer.take())
        for _ in range(3):
            nursery.start_soon(consumer.take)
        await trio.testing.wait_all_tasks_blocked(0.2)
        [entry] = (await dnp._namespace.sync()).children(FileId(1)).values()
        group = GroupKeys(dnp._groups._client, dnp._groups._keys, entry.id, b"w")
        known = await group.read(SessionId(0))
        assert known is not None
        assert known.records.cursor.message == 1
        await other.push("jobs", "2", "3", "4")


@pytest.mark.parametrize("refused", [b"/session/", b"/cursor"])
async def test_a_watch_that_is_refused_ends_no_more_than_it_must(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, refused: bytes
) -> None:
    """As when the role of this host's user is changed, and the connection then made anew."""
    watch, refusals = etcd.Client.watch, iter(["of the test"])

    def refuse_once(self: etcd.Client, start: bytes, *args: Any, **options: Any) -> Any:
        if refused in start and next(refusals, None) is not None:
            raise etcd.PermissionDenied("refused")
        return watch(self, start, *args, **options)

    monkeypatch.setattr(etcd.Client, "watch", refuse_once)
    async with connect() as dnp:
        await dnp.push("jobs", "1")
        if refused == b"/cursor":
            async with dnp.consumer("jobs", "w") as consumer:
                with pytest.raises(etcd.PermissionDenied), trio.fail_after(10):
                    await consumer.take()
        with trio.fail_after(10):
            assert await taken(dnp, "jobs", "w") == [b"1\n"]
    assert next(refusals, None) is None
