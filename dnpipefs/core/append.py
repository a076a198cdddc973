"""The fence: how a push is applied exactly once although answers get lost.

Each append of a session to a topic is one transaction

    if    epoch/<t> has mod_revision == generation
      and writer/<t>/<s> has version == sequence - 1
    then  put writer/<t>/<s> = "<sequence>:<attempt>"; put the batch; put last/<t>

The version of the writer key counts its puts, so version == last sequence number, and an absent
key is sequence 0. The key lives on the session's lease: a put on a lease that is gone fails the
whole transaction, which freezes the outcome of everything a lost session had under way.

`attempt` tells batches apart that were tried under the same number. A batch whose callers were
told "timed out" is *abandoned*: it may still take its number, at most once, or never.

The host keeps, per session and topic: the highest number it has seen taken, by whatever batch (the
next append starts behind it), and a count of attempts that never comes back to an old value. It may
forget a topic none of whose batches are under way or abandoned, and look the number up again
(UNKNOWN_SEQUENCE) before the next append.

Invariants:

1. Of all transactions sent with one sequence number at most one commits.
2. `settle` says Committed only if this very batch is in the tail (or was, before a reset).
3. `settle` says Retry only if no transaction sent so far for this batch has committed or can commit
   any more: its number is taken, or its generation is over - or the retry is that same transaction.
4. Nothing is sent with NO_GENERATION: etcd would compare it as "epoch/<t> is absent", and the batch
   would be in no generation. A topic that has none is given one first.
5. Nothing is sent with UNKNOWN_SEQUENCE: `settle` gives the number behind the last one taken.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, NamedTuple

from dnpipefs.core.names import Revision
from dnpipefs.errors import CorruptData

_NUMBER: Final = re.compile(rb"[0-9]{1,20}")
UNKNOWN_SEQUENCE: Final = 0
"""Instead of a sequence number: this session may have appended to the topic, and it has to be looked up."""


class Fence(NamedTuple):
    """What a transaction was sent with."""

    generation: Revision
    sequence: int
    attempt: int

    def encode(self) -> bytes:
        """Return the value of the writer key."""
        return b"%d:%d" % (self.sequence, self.attempt)


@dataclass(frozen=True, slots=True)
class Observed:
    """What one linearizable read found: the topic's generation and the writer key, None if absent.

    `generation`: the epoch's mod_revision, NO_GENERATION if the topic has none, None if it was deleted.
    `session_alive` (the session's own key, on the same lease, exists) tells "never appended" from
    "appended, and the writer key went with its lease".
    """

    generation: Revision | None
    writer: tuple[int, int] | None
    """(sequence, attempt)."""
    session_alive: bool


@dataclass(frozen=True, slots=True)
class Committed:
    """The batch is in the log."""


@dataclass(frozen=True, slots=True)
class Retry:
    """The batch is not in the log; send it with this generation and sequence number.

    With NO_GENERATION one has to be begun first.
    """

    generation: Revision
    sequence: int


@dataclass(frozen=True, slots=True)
class Gone:
    """The topic was deleted; the batch is in no generation that anyone can read."""


@dataclass(frozen=True, slots=True)
class SessionLost:
    """The writer key vanished with its lease; `settle_lost` decides.

    Sending again does not bring this out: etcd compares before it looks at the lease.
    """


@dataclass(frozen=True, slots=True)
class Unknown:
    """It can not be found out any more whether the batch was applied, and it cannot be applied later."""


COMMITTED: Final = Committed()
GONE: Final = Gone()
SESSION_LOST: Final = SessionLost()
UNKNOWN: Final = Unknown()


def decode_writer(key: bytes, raw: bytes) -> tuple[int, int]:
    """Parse the value of a writer key."""
    sequence, colon, attempt = raw.partition(b":")
    if not (colon and _NUMBER.fullmatch(sequence) and _NUMBER.fullmatch(attempt)):
        raise CorruptData(f"{key!r} does not hold sequence:attempt")
    return int(sequence), int(attempt)


def settle(fence: Fence, observed: Observed) -> Committed | Retry | Gone | SessionLost:
    """Decide the fate of a batch from what etcd holds, after a refused or unanswered transaction.

    Or before the first one, if generation or sequence number are not known: then always Retry, unless
    there is nothing any more to append to.
    """
    if observed.writer is not None:
        sequence, attempt = observed.writer
        if (sequence, attempt) == (fence.sequence, fence.attempt):
            return COMMITTED
        known = fence.sequence != UNKNOWN_SEQUENCE and observed.generation is not None
        if known and sequence not in (fence.sequence, fence.sequence - 1):
            raise CorruptData(
                f"the writer key is at append {sequence}, this session expects {fence.sequence}: "
                "another process uses the same session"
            )
        following = sequence + 1  # an abandoned batch may have taken the number
    elif observed.generation is not None and (fence.sequence > 1 or not observed.session_alive):
        return SESSION_LOST
    else:
        following = 1
    if observed.generation is None:
        return GONE
    return Retry(observed.generation, following)


def settle_lost(
    fence: Fence, *, sent_before: bool, found: bool, generation: Revision | None
) -> Committed | Retry | Gone | Unknown:
    """Decide the fate of a batch whose session's lease is gone, so that nothing can be applied any more.

    `sent_before`: a transaction with this very fence went unanswered. `found`: this very batch is in
    the tail (compare the value: a batch abandoned under the same number can have the same key), or its
    number is covered by the head's writer table and no abandoned batch shared it. `generation`: as in
    `Observed`, now. Retry is to be sent under a new session.
    """
    if found:
        return COMMITTED
    if generation is None:
        return GONE
    if sent_before and generation != fence.generation:
        return UNKNOWN  # it may have been applied and then reset away with its key
    return Retry(generation, 1)
