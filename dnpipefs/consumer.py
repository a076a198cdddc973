"""Consumer groups for Python programs: the same queue that workers share by reading ``topic@group``."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Final

from dnpipefs.errors import UnknownOutcome
from dnpipefs.groups import Delivery, Member
from dnpipefs.log.reader import Message


class Job:
    """A message of a group that this consumer has in hand."""

    def __init__(self, delivery: Delivery) -> None:
        self._delivery: Final = delivery

    @property
    def message(self) -> Message:
        """The message as it stands in the topic."""
        return Message(self._delivery.offset, self._delivery.time_ns, self._delivery.data)

    @property
    def deliveries(self) -> int:
        """How often it was handed out before, here or elsewhere, and came back."""
        return self._delivery.deliveries


class Consumer:
    """Takes messages of one group; made by `Dnp.consumer`. Its methods may be called from many tasks.

    Leaving the block gives back what was taken and neither acknowledged nor given back.
    """

    def __init__(self, member: Member) -> None:
        self._member: Final = member
        self._in_hand: Final[set[Job]] = set()
        self._lost = member.lost

    async def take(self) -> Job:
        """Wait for a message that nobody else has.

        Raises TopicGone if topic or group are deleted, OutOfSpace if there is a message and etcd has no room
        to claim it.
        """
        return self._taken(await self._member.take())

    async def take_now(self) -> Job | None:
        """Return a message, or None if the group has none that nobody has.

        Raises TopicGone, TimedOut, OutOfSpace.
        """
        delivery = await self._member.take_now()
        return self._taken(delivery) if delivery is not None else None

    def acknowledge(self, job: Job) -> bool:
        """Take a message as done; in etcd it is so a moment later, see `settled`.

        False if it is somebody else's by now: the group was rewound, the message was held too long, or this
        host's session was lost.
        """
        self._in_hand.discard(job)
        return self._member.acknowledge(job._delivery)

    def give_back(self, job: Job) -> bool:
        """Let somebody else have a message; False as for `acknowledge`."""
        self._in_hand.discard(job)
        return self._member.give_back(job._delivery)

    async def settled(self) -> None:
        """Wait until what was acknowledged is so in etcd, and given back what a group has room for.

        Raises TopicGone, TimedOut, OutOfSpace; and UnknownOutcome if some of what was acknowledged since the
        last call, here or by another consumer of this group in this process, may come again: the session
        was lost, or the group was rewound, before it was in etcd.
        """
        await self._member.quiet()
        before, self._lost = self._lost, self._member.lost
        if before != self._lost:
            raise UnknownOutcome(
                "the session was lost, or the group rewound, before all that was acknowledged was in etcd: "
                "some of it may come again"
            )

    async def messages(self, *, wait: bool = True) -> AsyncGenerator[Message, None]:
        """Iterate over messages, each acknowledged when the next one is asked for.

        So a body that raises, or is left by `break`, gives its message back. Without `wait` the iteration
        ends when there is none that nobody has.
        """
        while (job := await self.take() if wait else await self.take_now()) is not None:
            try:
                yield job.message
            except BaseException:  # left by break, return or cancellation, too
                self.give_back(job)
                raise
            self.acknowledge(job)

    def close(self) -> None:
        """Give back what is in hand."""
        for job in list(self._in_hand):
            self.give_back(job)

    def _taken(self, delivery: Delivery) -> Job:
        job = Job(delivery)
        self._in_hand.add(job)
        return job
