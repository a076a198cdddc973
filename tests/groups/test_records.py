"""What a transaction of a group does when somebody else was faster, between its planning and its arrival."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from dnpipefs.core.group import Cursor, DeadLetter, Held, Piece, Returned, Term, claim, rewind, settle
from dnpipefs.core.group_records import decode_returned, encode_cursor, encode_held, encode_returned
from dnpipefs.core.intervals import Stretch, Stretches
from dnpipefs.core.keys import KeySchema
from dnpipefs.core.names import FileId, Offset, Revision, SessionId
from dnpipefs.etcd import Compare, Op, RangeResult, TransactionResult
from dnpipefs.groups.records import GroupKeys
from tests.support.memory_etcd import MemoryClient, MemoryEtcd

TOPIC, NAME = FileId(7), b"workers"
DEAD, OTHER = SessionId(1), SessionId(2)
KEYS = KeySchema("/dnp/")

Meanwhile = Callable[[], Awaitable[object]]


class Overtaken(MemoryClient):
    """A client of which one transaction is overtaken by what `meanwhile` does."""

    meanwhile: Meanwhile | None = None

    async def transaction(
        self,
        compare: Sequence[Compare],
        success: Sequence[Op],
        failure: Sequence[Op] = (),
        *,
        timeout: float | None = None,
    ) -> TransactionResult:
        meanwhile = self.meanwhile
        if compare and meanwhile is not None:
            self.meanwhile = None
            await meanwhile()
        return await super().transaction(compare, success, failure, timeout=timeout)


class World:
    """A group whose cursor is at 10: a host that is gone holds 0 to 3, and 5 was returned."""

    def __init__(self) -> None:
        self.store = MemoryEtcd()
        self.slow, self.fast = Overtaken(self.store), MemoryClient(self.store)
        self.slow_keys = GroupKeys(self.slow, KEYS, TOPIC, NAME)
        self.fast_keys = GroupKeys(self.fast, KEYS, TOPIC, NAME)
        self.term = Term()

    async def begin(self) -> None:
        self.term = Term(Revision(await self.fast.put(KEYS.epoch(TOPIC), b"")))
        await self.fast.put(KEYS.session(OTHER), b"")
        await self.fast.put(self.fast_keys.cursor, encode_cursor(Cursor(self.term, 10)))
        await self.fast.put(
            KEYS.member(TOPIC, NAME, DEAD), encode_held(Held(self.term, stretches((0, 2, 0), (2, 3, 1))))
        )
        await self.fast.put(
            self.fast_keys.returned, encode_returned(Returned(self.term, stretches((5, 6, 1))))
        )

    async def claim_what_was_returned(self) -> None:
        known = await self.fast_keys.read(OTHER)
        assert known is not None
        after = claim(known.records.current(), [Piece(5, 6)], None)
        done, _ = await self.fast_keys.change(OTHER, known, after)
        assert done

    async def returned(self) -> Stretches:
        kv = await self.fast.get(self.fast_keys.returned)
        assert kv is not None
        return decode_returned(kv.key, kv.value).stretches


def stretches(*items: tuple[int, int, int]) -> Stretches:
    return Stretches(Stretch(*item) for item in items)


@pytest.fixture
async def world() -> World:
    world = World()
    await world.begin()
    return world


async def test_a_host_that_is_gone_returns_all_that_it_held(world: World) -> None:
    assert await world.slow_keys.gone() == [DEAD]
    assert await world.slow_keys.take_over()
    assert await world.returned() == stretches((0, 2, 1), (2, 3, 2), (5, 6, 1))
    assert await world.fast.get(KEYS.member(TOPIC, NAME, DEAD)) is None
    assert not await world.slow_keys.take_over()


async def test_what_a_host_held_comes_back_as_there_is_room(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dnpipefs.core.group.RETURNED_STRETCHES", 2)
    assert await world.slow_keys.take_over()
    assert await world.returned() == stretches((0, 2, 1), (5, 6, 1))
    assert not await world.slow_keys.take_over()
    await world.claim_what_was_returned()
    assert await world.slow_keys.take_over()
    assert await world.returned() == stretches((0, 2, 1), (2, 3, 2))
    assert await world.fast.get(KEYS.member(TOPIC, NAME, DEAD)) is None


async def test_what_is_claimed_during_a_take_over_does_not_come_back_with_it(world: World) -> None:
    world.slow.meanwhile = world.claim_what_was_returned
    await world.slow_keys.take_over()
    assert await world.returned() == stretches((0, 2, 1), (2, 3, 2))


async def test_two_take_over_the_same_host(world: World) -> None:
    world.slow.meanwhile = world.fast_keys.take_over
    await world.slow_keys.take_over()
    assert await world.returned() == stretches((0, 2, 1), (2, 3, 2), (5, 6, 1))


async def test_a_host_that_is_not_gone_after_all_keeps_what_it_has(world: World) -> None:
    async def live() -> None:
        await world.fast.put(KEYS.session(DEAD), b"")

    world.slow.meanwhile = live
    assert not await world.slow_keys._take_over(DEAD)
    assert await world.returned() == stretches((5, 6, 1))


async def test_a_change_that_is_too_late_gets_the_records_as_they_are(world: World) -> None:
    known = await world.slow_keys.read(OTHER)
    assert known is not None
    before = known.records.current()
    await world.fast.put(KEYS.session(SessionId(3)), b"")

    async def another_claims() -> None:
        theirs = await world.fast_keys.read(SessionId(3))
        assert theirs is not None
        after = claim(theirs.records.current(), [], Piece(10, 12))
        assert (await world.fast_keys.change(SessionId(3), theirs, after))[0]

    world.slow.meanwhile = another_claims
    done, now = await world.slow_keys.change(OTHER, known, claim(before, [], Piece(10, 11)))
    assert not done
    assert now == await world.fast_keys.read(OTHER)
    assert now is not None
    assert now.records.cursor.message == 12
    after = claim(now.records.current(), [], Piece(12, 13))
    done, now = await world.slow_keys.change(OTHER, now, after)
    assert (done, now) == (True, await world.fast_keys.read(OTHER))


async def test_a_change_of_a_session_that_has_ended_is_refused(world: World) -> None:
    known = await world.slow_keys.read(OTHER)
    assert known is not None
    world.slow.meanwhile = lambda: world.fast.delete(KEYS.session(OTHER))
    done, now = await world.slow_keys.change(OTHER, known, known.records.current())
    assert not done
    assert now is not None
    assert not now.alive


async def test_an_acknowledgement_needs_no_one_elses_record(world: World) -> None:
    await world.claim_what_was_returned()
    known = await world.slow_keys.read(OTHER)
    assert known is not None
    world.slow.meanwhile = lambda: world.fast.put(
        world.fast_keys.cursor, encode_cursor(Cursor(world.term, 500))
    )
    done, _ = await world.slow_keys.change(OTHER, known, settle(known.records, [Piece(5, 6)], []))
    assert done


async def test_a_rewind_of_what_was_rewound_meanwhile_is_tried_again(world: World) -> None:
    known = await world.slow_keys.read(OTHER)
    assert known is not None
    after = rewind(known.records.current(), 0)
    assert await world.fast_keys.rewind(known, after)
    assert not await world.slow_keys.rewind(known, rewind(known.records.current(), 3))


async def test_dead_letters_come_back_once(world: World) -> None:
    for message in (1, 8, 9):
        letter = DeadLetter(world.term, message, Offset(100 * message), 3, "delivered 3 times")
        await world.fast_keys.remember_dead(letter)
    old = DeadLetter(world.term._replace(rewinds=5), 7, Offset(700), 3, "")
    await world.fast_keys.remember_dead(old)
    world.slow.meanwhile = lambda: world.fast_keys.redrive(4)
    assert await world.slow_keys.redrive(4) == (0, 4, 0)
    assert await world.returned() == stretches((5, 6, 1), (8, 10, 0))


async def test_dead_letters_come_back_as_there_is_room(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dnpipefs.core.group.RETURNED_STRETCHES", 2)
    for message in (3, 7, 9):
        await world.fast_keys.remember_dead(DeadLetter(world.term, message, Offset(0), 3, "gave up"))
    assert await world.slow_keys.redrive(4) == (1, 1, 1)
    assert await world.slow_keys.redrive(4) == (0, 1, 1)
    await world.claim_what_was_returned()
    assert await world.slow_keys.redrive(4) == (1, 1, 0)
    assert await world.returned() == stretches((7, 8, 0), (9, 10, 0))


async def test_dead_letters_come_back_beside_what_is_claimed_meanwhile(world: World) -> None:
    await world.fast_keys.remember_dead(DeadLetter(world.term, 8, Offset(800), 3, ""))
    world.slow.meanwhile = world.claim_what_was_returned
    assert await world.slow_keys.redrive(0) == (1, 0, 0)
    assert await world.returned() == stretches((8, 9, 0))


async def test_dead_letters_that_came_back_while_they_were_looked_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for message in (4, 6):
        await world.fast_keys.remember_dead(DeadLetter(world.term, message, Offset(0), 3, "gave up"))
    looked_up = world.slow.range

    async def overtaken(*args: Any, **options: Any) -> RangeResult:
        found = await looked_up(*args, **options)
        monkeypatch.undo()
        assert await world.fast_keys.redrive(0) == (2, 0, 0)
        return found

    monkeypatch.setattr(world.slow, "range", overtaken)
    assert await world.slow_keys.redrive(0) == (0, 2, 0)
    assert await world.returned() == stretches((4, 5, 0), (5, 6, 1), (6, 7, 0))


async def test_what_a_dead_host_left_that_cannot_be_understood_stays_and_keeps_no_other(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    members = KEYS.members(TOPIC, NAME)
    garbage = {
        KEYS.member(TOPIC, NAME, SessionId(0x11)): b"garbage",
        members.start + b"nobody": b"garbage",
        # It overlaps with what was returned.
        KEYS.member(TOPIC, NAME, SessionId(0x12)): encode_held(Held(world.term, stretches((4, 7, 0)))),
    }
    for key, value in garbage.items():
        await world.fast.put(key, value)
    assert await world.slow_keys.take_over()
    assert await world.returned() == stretches((0, 2, 1), (2, 3, 2), (5, 6, 1))
    assert not await world.slow_keys.take_over()
    assert {kv.key for kv in (await world.fast.range(members.start, members.end)).kvs} == set(garbage)
    assert len(caplog.records) == len(garbage), "each is named once"
