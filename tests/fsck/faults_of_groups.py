"""Groups whose records do not fit together, or do not parse."""

from dnpipefs import Dnp
from dnpipefs.cluster import open_cluster
from dnpipefs.core.group import Cursor, DeadLetter, Held, Returned, Term
from dnpipefs.core.group_records import (
    decode_held,
    decode_returned,
    encode_cursor,
    encode_dead_letter,
    encode_held,
    encode_returned,
)
from dnpipefs.core.intervals import Stretch, Stretches
from dnpipefs.core.names import Offset, Revision, SessionId
from tests.fsck.conftest import Lab
from tests.fsck.faults import NOBODY, fault

GROUP = b"workers"


def stretches(*items: tuple[int, int]) -> Stretches:
    return Stretches(Stretch(start, end, 0) for start, end in items)


class Planted:
    """A group of a topic with its records put by hand."""

    def __init__(self, lab: Lab, term: Term) -> None:
        self.lab = lab
        self.term = term
        self.cursor = lab.keys.cursor(lab.topic, GROUP)
        self.returned = lab.keys.returned(lab.topic, GROUP)

    async def put_cursor(self, message: int) -> None:
        await self.lab.client.put(self.cursor, encode_cursor(Cursor(self.term, message)))

    async def put_member(self, session: SessionId, *items: tuple[int, int]) -> bytes:
        key = self.lab.keys.member(self.lab.topic, GROUP, session)
        await self.lab.client.put(key, encode_held(Held(self.term, stretches(*items))))
        return key

    async def put_returned(self, *items: tuple[int, int]) -> None:
        await self.lab.client.put(self.returned, encode_returned(Returned(self.term, stretches(*items))))

    async def held(self, session: SessionId) -> Stretches:
        key = self.lab.keys.member(self.lab.topic, GROUP, session)
        return decode_held(key, await self.lab.value(key)).stretches

    async def back(self) -> Stretches:
        return decode_returned(self.returned, await self.lab.value(self.returned)).stretches

    async def put_letter(self, message: int, value: bytes | None = None) -> bytes:
        key = self.lab.keys.dead_letter(self.lab.topic, GROUP, self.term.generation, message)
        letter = DeadLetter(self.term, message, Offset(0), 3, "why")
        await self.lab.client.put(key, encode_dead_letter(letter) if value is None else value)
        return key


async def plant_group(lab: Lab, message: int = 4) -> Planted:
    """Lay down a sound group of one member, that holds 0, of which 1 came back and the rest is done."""
    group = Planted(lab, Term(await lab.generation()))
    await group.put_cursor(message)
    await group.put_member(await lab.begin_session(), (0, 1))
    await group.put_returned((1, 2))
    await group.put_letter(2)
    return group


@fault("G1")
async def a_cursor_that_does_not_parse(lab: Lab) -> None:
    group = await plant_group(lab)
    await lab.client.put(group.cursor, b'{"message":')


@fault("G1", mended=True)
async def a_cursor_that_does_not_parse_and_is_void(lab: Lab) -> None:
    await lab.client.put(lab.keys.cursor(lab.topic, GROUP), b"?")
    await reset(lab)


@fault("G2")
async def a_member_that_does_not_parse(lab: Lab) -> None:
    await plant_group(lab)
    await lab.client.put(lab.keys.member(lab.topic, GROUP, NOBODY), b"[]")


@fault("G2")
async def a_key_of_no_member(lab: Lab) -> None:
    group = await plant_group(lab)
    key = lab.keys.members(lab.topic, GROUP).start + b"me"
    await lab.client.put(key, encode_held(Held(group.term, stretches((2, 3)))))


@fault("G2")
async def what_was_returned_does_not_parse(lab: Lab) -> None:
    group = await plant_group(lab)
    await lab.client.put(group.returned, b'{"generation":"1","rewinds":0,"stretches":[[2,1,0]]}')


@fault("G2", mended=True)
async def what_was_returned_does_not_parse_and_is_void(lab: Lab) -> None:
    group = await plant_group(lab)
    await lab.client.put(group.returned, b"?")
    await reset(lab)


@fault("G3", mended=True)
async def a_message_that_two_hosts_hold(lab: Lab) -> None:
    group = await plant_group(lab)
    await group.put_member(await lab.begin_session(), (0, 1))


@fault("G3", mended=True)
async def a_message_that_is_held_and_returned(lab: Lab) -> None:
    group = await plant_group(lab)
    await group.put_returned((0, 2))


@fault("G4", mended=True)
async def a_message_held_behind_the_cursor(lab: Lab) -> None:
    group = await plant_group(lab)
    await group.put_member(await lab.begin_session(), (3, 6))


@fault("G4", mended=True)
async def a_message_returned_behind_the_cursor(lab: Lab) -> None:
    group = await plant_group(lab)
    await group.put_returned((1, 2), (4, 5))


@fault("G5", mended=True)
async def a_cursor_behind_what_is_to_come(lab: Lab) -> None:
    await plant_group(lab, 1000)


@fault("G5", mended=True)
async def a_cursor_behind_what_is_to_come_and_nothing_returned(lab: Lab) -> None:
    group = await plant_group(lab, 1000)
    await lab.delete(group.returned)


@fault("G6", mended=True)
async def what_was_returned_after_a_rewind_that_never_was(lab: Lab) -> None:
    group = await plant_group(lab)
    group.term = Term(group.term.generation, 7)
    await group.put_returned((1, 2))


@fault("G6", mended=True)
async def a_cursor_of_a_generation_that_never_began(lab: Lab) -> None:
    group = Planted(lab, Term(Revision(2**40)))
    await group.put_cursor(3)


@fault("G7")
async def a_group_that_lost_its_cursor(lab: Lab) -> None:
    group = await plant_group(lab)
    await lab.delete(group.cursor)


@fault("G7", mended=True)
async def a_note_that_outlived_its_group(lab: Lab) -> None:
    group = Planted(lab, Term(await lab.generation()))
    await group.put_letter(2)
    await group.put_returned()


@fault("G8", mended=True)
async def a_note_that_does_not_parse(lab: Lab) -> None:
    group = await plant_group(lab)
    await group.put_letter(3, b"?")


@fault("G8", mended=True)
async def a_note_of_another_message(lab: Lab) -> None:
    group = await plant_group(lab)
    await group.put_letter(3, await lab.value(await group.put_letter(2)))


@fault("G9")
async def a_member_of_a_session_that_ended(lab: Lab) -> None:
    group = await plant_group(lab)
    await group.put_member(NOBODY, (2, 3))


@fault("U1")
async def a_key_of_a_group_that_no_release_knows(lab: Lab) -> None:
    group = await plant_group(lab)
    await lab.client.put(group.cursor + b"s", b"?")


async def reset(lab: Lab) -> None:
    """Begin a new generation, and leave nothing of the old one."""
    async with open_cluster(lab.settings) as cluster:
        await Dnp(cluster).reset("t")
        await cluster.log.sweeper.sweep_all()
    lab.messages.clear()
