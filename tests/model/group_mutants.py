"""Faults that are planted into the groups, to show that their scenarios find such faults."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

import pytest

from dnpipefs import etcd
from dnpipefs.core.group import GivenBack, Held, Piece, Records, Returned, settle, take_over
from dnpipefs.core.intervals import Stretches
from dnpipefs.errors import DnpError
from dnpipefs.groups import groups, member, records
from dnpipefs.groups.delivery import Delivery
from dnpipefs.groups.holdings import Holdings
from dnpipefs.groups.member import Member
from dnpipefs.groups.records import GroupKeys

Mutant = Callable[[pytest.MonkeyPatch], None]


def without_comparing(patch: pytest.MonkeyPatch, method: str, key_of: Callable[[GroupKeys], bytes]) -> None:
    """Let a transaction of `GroupKeys` not compare one key."""
    genuine = getattr(GroupKeys, method)

    class Careless:
        """A client that leaves comparisons out."""

        def __init__(self, client: etcd.Client, key: bytes) -> None:
            self._client, self._key = client, key

        def __getattr__(self, name: str) -> object:
            return getattr(self._client, name)

        async def transaction(
            self, compares: Sequence[etcd.Compare], *operations: Any, **settings: Any
        ) -> object:
            kept = [compare for compare in compares if compare.key != self._key]
            return await self._client.transaction(kept, *operations, **settings)

    async def careless(self: GroupKeys, *arguments: Any, **settings: Any) -> object:
        other = GroupKeys(Careless(self._client, key_of(self)), self._keys, self.topic, self.name)  # type: ignore[arg-type]
        return await genuine(other, *arguments, **settings)

    patch.setattr(GroupKeys, method, careless)


def takes_over_without_comparing_what_was_returned(patch: pytest.MonkeyPatch) -> None:
    without_comparing(patch, "_take_over", lambda keys: keys.returned)


def changes_without_comparing_what_was_returned(patch: pytest.MonkeyPatch) -> None:
    without_comparing(patch, "change", lambda keys: keys.returned)


def claims_without_comparing_the_cursor(patch: pytest.MonkeyPatch) -> None:
    without_comparing(patch, "change", lambda keys: keys.cursor)


def claims_without_comparing_the_epoch(patch: pytest.MonkeyPatch) -> None:
    without_comparing(patch, "change", lambda keys: keys._keys.epoch(keys.topic))


def takes_over_from_the_living(patch: pytest.MonkeyPatch) -> None:
    async def gone(self: GroupKeys) -> Any:
        members = self._keys.members(self.topic, self.name)
        found = await self._client.range(members.start, members.end)
        return [self._keys.parse_member(kv.key) for kv in found.kvs]

    patch.setattr(GroupKeys, "gone", gone)
    genuine_take_over = GroupKeys._take_over

    async def take_over(self: GroupKeys, session: Any) -> bool:
        careless = KeepsNoSession(self)
        return await genuine_take_over(careless, session)  # type: ignore[arg-type]

    class KeepsNoSession:
        def __init__(self, keys: GroupKeys) -> None:
            self._genuine = keys

        def __getattr__(self, name: str) -> object:
            return getattr(self._genuine, name)

        @property
        def _client(self) -> object:
            return self

        async def transaction(
            self, compares: Sequence[etcd.Compare], *operations: Any, **settings: Any
        ) -> object:
            kept = [compare for compare in compares if b"/session/" not in compare.key]
            return await self._genuine._client.transaction(kept, *operations, **settings)

    patch.setattr(GroupKeys, "_take_over", take_over)


def never_takes_over(patch: pytest.MonkeyPatch) -> None:
    async def take_over(_self: GroupKeys) -> bool:
        return False

    patch.setattr(GroupKeys, "take_over", take_over)


def acknowledges_what_is_not_held(patch: pytest.MonkeyPatch) -> None:
    """What its readers have not finished is acknowledged with the rest."""

    def careless(before: Records, done: Sequence[Piece], back: Sequence[GivenBack]) -> Records:
        return settle(before, [*done, *(one.piece for one in back)], [])

    patch.setattr(member, "settle", careless)


def takes_late_acknowledgements(patch: pytest.MonkeyPatch) -> None:
    def acknowledge(self: Member, delivery: Delivery) -> bool:
        self._mine.in_hand.pop(delivery.number, None)
        self._mine.done.append(delivery.piece)
        self.stir()
        return True

    patch.setattr(Member, "acknowledge", acknowledge)


def forgets_orphans_of_a_lost_answer(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(member, "reconcile", lambda *_: Stretches())


def keeps_what_is_void(patch: pytest.MonkeyPatch) -> None:
    genuine = Holdings.drop_void

    def drop_void(self: Holdings, known: Records) -> None:
        in_hand, stock = dict(self.in_hand), list(self.stock)
        genuine(self, known)
        self.in_hand = in_hand
        self.stock.extend(one for one in stock if one not in self.stock)

    patch.setattr(Holdings, "drop_void", drop_void)


def keeps_ahead_what_is_void(patch: pytest.MonkeyPatch) -> None:
    genuine = Holdings.drop_void

    def drop_void(self: Holdings, known: Records) -> None:
        ahead = dict(self.ahead)
        genuine(self, known)
        self.ahead = ahead

    patch.setattr(Holdings, "drop_void", drop_void)


def keeps_ahead_what_nobody_waits_for(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Member, "_unwanted", lambda _: 0)


def forgets_what_watches_bring_meanwhile(patch: pytest.MonkeyPatch) -> None:
    def watched(self: Member, kv: etcd.KeyValue) -> None:
        if self._known is not None:
            self._known = records.moved(self._known, kv, self.keys)
        self.stir()

    patch.setattr(Member, "watched", watched)


def leaves_with_one_try(patch: pytest.MonkeyPatch) -> None:
    async def leave(self: Member) -> None:
        try:
            if self._session is not None:
                await self._leave_once(self._session)
        except DnpError:
            pass

    patch.setattr(Member, "_leave", leave)


def believes_a_failed_comparison_ends_doubt(patch: pytest.MonkeyPatch) -> None:
    genuine = Member._put

    async def put(self: Member, *arguments: Any) -> bool:
        result = await genuine(self, *arguments)
        self._unsettled = False
        return result

    patch.setattr(Member, "_put", put)


def gives_back_nothing_late(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Holdings, "expire", lambda *_, **__: None)


def takes_over_half(patch: pytest.MonkeyPatch) -> None:
    def over(known: Records) -> tuple[Returned, Held]:
        if len(known.held.stretches) > 1:
            first = next(iter(known.held.stretches))
            known = replace(known, held=replace(known.held, stretches=Stretches([first])))
        return take_over(known)

    patch.setattr(records, "take_over", over)


def overlooks_that_sessions_end(patch: pytest.MonkeyPatch) -> None:
    async def watch(_self: groups.Groups) -> None:
        pass

    async def take_over(_self: groups.Groups, one: Member) -> None:
        await one.keys.take_over()

    patch.setattr(groups.Groups, "_watch_sessions", watch)
    patch.setattr(groups.Groups, "_take_over", take_over)


ALL: Final = (
    changes_without_comparing_what_was_returned,
    claims_without_comparing_the_cursor,
    claims_without_comparing_the_epoch,
    takes_over_from_the_living,
    never_takes_over,
    acknowledges_what_is_not_held,
    takes_late_acknowledgements,
    forgets_orphans_of_a_lost_answer,
    keeps_what_is_void,
    keeps_ahead_what_is_void,
    forgets_what_watches_bring_meanwhile,
    leaves_with_one_try,
)

RARE: Final = frozenset({leaves_with_one_try, forgets_what_watches_bring_meanwhile})
"""Which take hundreds of scenarios to be found."""

NOT_FOUND: Final = (
    keeps_ahead_what_nobody_waits_for,
    takes_over_without_comparing_what_was_returned,
    believes_a_failed_comparison_ends_doubt,
    gives_back_nothing_late,
    takes_over_half,
    overlooks_that_sessions_end,
)
"""Which the scenarios were not shown to find: no test runs them.

The take-overs are what `tests/groups/test_records.py` is about. Late give-backs, sessions that end, and
what is claimed ahead for nobody are met on real mounts (`test_group_settings.py`, `test_group_hosts.py`).
A failed comparison that ends doubt is met by nothing.
"""
