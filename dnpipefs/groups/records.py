"""The transactions of a group: reading its records, and putting changed ones under comparison.

What a change is, `core/group.py` says; when one is made, `member.py`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from dnpipefs import etcd
from dnpipefs.core.group import (
    Cursor,
    DeadLetter,
    Held,
    Records,
    Returned,
    Term,
    put_back,
    rewind,
    take_over,
)
from dnpipefs.core.group_records import (
    decode_cursor,
    decode_dead_letter,
    decode_held,
    decode_returned,
    encode_cursor,
    encode_dead_letter,
    encode_held,
    encode_returned,
)
from dnpipefs.core.keys import KeySchema
from dnpipefs.core.names import NO_GENERATION, FileId, Revision, SessionId
from dnpipefs.core.view import TopicView
from dnpipefs.errors import CorruptData, NotFound, TopicGone
from dnpipefs.log.failures import TRANSIENT, Backoff

logger: Final = logging.getLogger(__name__)

DEAD_AT_ONCE: Final = 60
"""Dead letters redriven in one transaction: a comparison and a deletion each, below etcd's 128 operations."""


@dataclass(frozen=True, slots=True)
class Known:
    """A group's records, and the revisions they have in etcd (0: there is none)."""

    records: Records
    cursor_at: Revision
    held_at: Revision
    returned_at: Revision
    alive: bool = True
    """The member's session had not ended when they were read."""

    def of(self, generation: Revision) -> Known:
        """Return it for a topic that has come to another generation meanwhile."""
        return replace(self, records=replace(self.records, generation=generation))


class Redriven(NamedTuple):
    """What became of a group's dead letters when it was to have them again, in messages."""

    again: int
    """Those that it has."""
    gone: int
    """Those that it cannot have, since the topic does not have them any more, or a rewind brings them."""
    waiting: int
    """Those for which there is no room before it has worked on some of the others."""


class GroupKeys:
    """One group's keys and transactions. Every method raises EtcdError, those that read CorruptData."""

    def __init__(self, client: etcd.Client, keys: KeySchema, topic: FileId, name: bytes) -> None:
        self._client: Final = client
        self._keys: Final = keys
        self.topic: Final = topic
        self.name: Final = name
        self.cursor: Final = keys.cursor(topic, name)
        self.returned: Final = keys.returned(topic, name)
        self._complained: Final[set[bytes]] = set()

    async def read(self, session: SessionId) -> Known | None:
        """Return the records that one member has to know; None if there is no such group."""
        return _known(await self._client.transaction((), self._gets(session)))

    async def create(self, view: TopicView, *, at_end: bool) -> bool:
        """Begin a group at the first message of *view*, or behind the last; False if there is one.

        False, too, if the topic was reset or deleted since.
        """
        term = Term(view.generation)
        cursor = Cursor(term, view.messages if at_end else view.first_message)
        result = await self._client.transaction(
            [
                etcd.compare_version(self.cursor) == 0,
                etcd.compare_mod_revision(self._keys.epoch(self.topic)) == view.generation,
                etcd.compare_version(self._keys.last(self.topic)) > 0,
            ],
            [etcd.put(self.cursor, encode_cursor(cursor))],
        )
        return result.succeeded

    async def change(
        self, session: SessionId, before: Known, after: Records, *, timeout: float | None = None
    ) -> tuple[bool, Known | None]:
        """Put what differs between *before* and *after*; tell whether it was, and what is known now.

        It is not if somebody was faster or the session is gone; then, as `read` returns it, what there is.
        The member's own record is always put: the answer to a change that was lost is known when the next one
        is through.
        """
        own = self._keys.member(self.topic, self.name, session)
        compares = [
            etcd.compare_version(self._keys.session(session)) > 0,
            etcd.compare_mod_revision(own) == before.held_at,
        ]
        puts = [etcd.put(own, encode_held(after.held))]
        cursor_moves, returned_changes = (
            after.cursor != before.records.cursor,
            after.returned != before.records.returned,
        )
        if cursor_moves:
            compares.append(etcd.compare_mod_revision(self.cursor) == before.cursor_at)
            compares.append(etcd.compare_mod_revision(self._keys.epoch(self.topic)) == after.generation)
            puts.append(etcd.put(self.cursor, encode_cursor(after.cursor)))
        else:
            compares.append(etcd.compare_version(self.cursor) > 0)  # else it would outlive its group
        if returned_changes:
            compares.append(etcd.compare_mod_revision(self.returned) == before.returned_at)
            puts.append(etcd.put(self.returned, encode_returned(after.returned)))
        result = await self._client.transaction(compares, puts, self._gets(session), timeout=timeout)
        if not result.succeeded:
            return False, _known(result)
        at = Revision(result.revision)
        return True, Known(
            after,
            at if cursor_moves else before.cursor_at,
            at,
            at if returned_changes else before.returned_at,
        )

    async def rewind(self, before: Known, after: Records) -> bool:
        """Put the cursor of a new term; False if somebody was faster."""
        result = await self._client.transaction(
            [
                etcd.compare_mod_revision(self.cursor) == before.cursor_at,
                etcd.compare_mod_revision(self._keys.epoch(self.topic)) == after.generation,
            ],
            [etcd.put(self.cursor, encode_cursor(after.cursor))],
        )
        return result.succeeded

    async def rewind_to(self, session: SessionId, message: int, generation: int) -> None:
        """Let the group begin again at the *message* of that number; the caller sets the deadline.

        Raises NotFound if the group is gone, TopicGone if the topic was reset since *generation*.
        """
        backoff = Backoff()
        while True:
            try:
                if (known := await self.read(session)) is None:
                    raise NotFound("the group was deleted")
                records = known.records.current()
                if records.generation != generation:
                    raise TopicGone("the topic was reset meanwhile")
                if await self.rewind(known, rewind(records, message)):
                    return
            except etcd.SpaceExceeded:
                raise
            except TRANSIENT:
                await backoff.wait()  # done twice it does no harm

    async def leave(self, session: SessionId, known: Known) -> None:
        """Delete a member that holds nothing."""
        own = self._keys.member(self.topic, self.name, session)
        await self._client.transaction([etcd.compare_mod_revision(own) == known.held_at], [etcd.delete(own)])

    async def delete(self) -> bool:
        """Delete the group; False if there is none."""
        whole = self._keys.group(self.topic, self.name)
        return (await self._client.delete(whole.start, whole.end)).deleted > 0

    async def remember_dead(self, letter: DeadLetter) -> None:
        """Note that a message is a dead letter, and why, for whoever looks and for `redrive`."""
        key = self._keys.dead_letter(self.topic, self.name, letter.term.generation, letter.message)
        await self._client.put(key, encode_dead_letter(letter))

    async def redrive(self, first: int) -> Redriven:
        """Return to the group what is noted as dead; tell how many messages, and how many are not there.

        Those are below number *first*, of an older generation, or of before a rewind, which brings them
        anyway.
        """
        dead = self._keys.dead_letters(self.topic, self.name)
        again = gone = waiting = 0
        start = dead.start
        while kvs := (await self._client.range(start, dead.end, limit=DEAD_AT_ONCE)).kvs:
            start = kvs[-1].key + b"\0"
            letters = [decode_dead_letter(kv.key, kv.value) for kv in kvs]
            while True:
                epoch, cursor, returned = await self._read(
                    self._keys.epoch(self.topic), self.cursor, self.returned
                )
                if cursor is None:
                    raise NotFound("there is no such group")
                records = Records(
                    _revision(epoch),
                    decode_cursor(cursor.key, cursor.value),
                    Held(),
                    decode_returned(returned.key, returned.value) if returned is not None else Returned(),
                ).current()
                back = [
                    (kv, letter)
                    for kv, letter in zip(kvs, letters, strict=True)
                    if letter.term == records.cursor.term
                    and letter.message >= first
                    and not records.returned.stretches.covers(letter.message, letter.message + 1)
                ]
                there = len(back)
                del back[records.room :]
                if not back:
                    break
                after = put_back(records.returned, [letter.message for _, letter in back])
                result = await self._client.transaction(
                    [
                        etcd.compare_mod_revision(self.cursor) == cursor.mod_revision,
                        etcd.compare_mod_revision(self.returned) == _revision(returned),
                        *(etcd.compare_mod_revision(kv.key) == kv.mod_revision for kv, _ in back),
                    ],
                    [
                        etcd.put(self.returned, encode_returned(after)),
                        *(etcd.delete(kv.key) for kv, _ in back),
                    ],
                )
                if result.succeeded:
                    break
                if await self._client.get(back[0][0].key) is None:  # somebody else redrives
                    back, there = [], 0
                    break
            again += len(back)
            waiting += there - len(back)
            gone += len(kvs) - there
        return Redriven(again, gone, waiting)

    async def gone(self) -> list[SessionId]:
        """Return the members whose session has ended."""
        members, sessions = self._keys.members(self.topic, self.name), self._keys.sessions
        result = await self._client.transaction(
            (),
            [
                etcd.get(members.start, members.end, keys_only=True),
                etcd.get(sessions.start, sessions.end, keys_only=True),
            ],
        )
        found, alive = [response for response in result.responses if isinstance(response, etcd.RangeResult)]
        living = {kv.key for kv in alive.kvs}
        sessions_of = []
        for kv in found.kvs:
            try:
                sessions_of.append(self._keys.parse_member(kv.key))
            except CorruptData as error:
                self._complain(kv.key, error)
        return [session for session in sessions_of if self._keys.session(session) not in living]

    async def take_over(self) -> bool:
        """Return to the group what hosts hold that are gone; tell whether there was any."""
        taken = False
        for session in await self.gone():
            try:
                while not await self._take_over(session):
                    taken = True
            except CorruptData as error:  # nobody can tell what it held, or whether others have it, too
                self._complain(self._keys.member(self.topic, self.name, session), error)
        return taken

    def _complain(self, key: bytes, error: CorruptData) -> None:
        """Say once what keeps a member from being taken over; the others are."""
        if key not in self._complained:
            self._complained.add(key)
            logger.warning("what a host held that is gone stays where it is, run dnpipefs fsck: %s", error)

    async def _take_over(self, session: SessionId) -> bool:
        """Try once; True when there is nothing left to take over, or no room for it now."""
        key = self._keys.member(self.topic, self.name, session)
        epoch, cursor, member, returned = await self._read(
            self._keys.epoch(self.topic), self.cursor, key, self.returned
        )
        if member is None:
            return True
        held = decode_held(member.key, member.value)
        compares = [
            etcd.compare_version(self._keys.session(session)) == 0,
            etcd.compare_mod_revision(key) == member.mod_revision,
        ]
        changes = [etcd.delete(key)]
        if cursor is not None:
            before = Records(
                _revision(epoch),
                decode_cursor(cursor.key, cursor.value),
                held,
                decode_returned(returned.key, returned.value) if returned is not None else Returned(),
            ).current()
            try:
                after, left = take_over(before)
            except ValueError as error:
                raise CorruptData(f"{key!r}: it overlaps with what was returned: {error}") from None
            if left.stretches:
                if not before.room:
                    return True  # until some of what was returned is claimed
                changes = [etcd.put(key, encode_held(left))]
            if before.held.stretches:
                compares.append(etcd.compare_mod_revision(self.returned) == _revision(returned))
                changes.append(etcd.put(self.returned, encode_returned(after)))
        await self._client.transaction(compares, changes)
        return False

    def _gets(self, session: SessionId) -> list[etcd.Op]:
        """Return what reads all that one member has to know; `_known` takes it in."""
        own = self._keys.member(self.topic, self.name, session)
        keys = self._keys.epoch(self.topic), self.cursor, own, self.returned, self._keys.session(session)
        return [etcd.get(key) for key in keys]

    async def _read(self, *keys: bytes) -> list[etcd.KeyValue | None]:
        return _found(await self._client.transaction((), [etcd.get(key) for key in keys]))


def _known(result: etcd.TransactionResult) -> Known | None:
    epoch, cursor, held, returned, alive = _found(result)
    if cursor is None:
        return None
    return Known(
        Records(
            _revision(epoch),
            decode_cursor(cursor.key, cursor.value),
            decode_held(held.key, held.value) if held is not None else Held(),
            decode_returned(returned.key, returned.value) if returned is not None else Returned(),
        ),
        _revision(cursor),
        _revision(held),
        _revision(returned),
        alive is not None,
    )


def _found(result: etcd.TransactionResult) -> list[etcd.KeyValue | None]:
    return [
        response.kvs[0] if response.kvs else None
        for response in result.responses
        if isinstance(response, etcd.RangeResult)
    ]


def moved(known: Known, kv: etcd.KeyValue, keys: GroupKeys) -> Known:
    """Return *known* with a newer cursor or returned record that a watch has brought."""
    at = Revision(kv.mod_revision)
    if kv.key == keys.cursor and at > known.cursor_at:
        cursor = decode_cursor(kv.key, kv.value)
        return replace(known, records=replace(known.records, cursor=cursor), cursor_at=at)
    if kv.key == keys.returned and at > known.returned_at:
        returned = decode_returned(kv.key, kv.value)
        return replace(known, records=replace(known.records, returned=returned), returned_at=at)
    return known


def _revision(kv: etcd.KeyValue | None) -> Revision:
    return Revision(kv.mod_revision) if kv is not None else NO_GENERATION
