"""The append fence, in a simulated cluster whose network delays, loses and repeats what it likes.

The simulation owns a small etcd (revisions, generations, writer keys on leases) and hosts that do
what the docstring of `append` tells them. It counts in which generations each batch ended up.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

import pytest

from dnpipefs.core.append import (
    COMMITTED,
    GONE,
    SESSION_LOST,
    UNKNOWN,
    UNKNOWN_SEQUENCE,
    Committed,
    Fence,
    Gone,
    Observed,
    Retry,
    SessionLost,
    Unknown,
    decode_writer,
    settle,
    settle_lost,
)
from dnpipefs.core.names import NO_GENERATION, Revision
from dnpipefs.errors import CorruptData

G1, G2 = Revision(10), Revision(20)
NEVER_SENT = Fence(G1, 0, 0)


def observed(generation: Revision | None, writer: tuple[int, int] | None, *, alive: bool = True) -> Observed:
    return Observed(generation, writer, alive)


@pytest.mark.parametrize(
    ("fence", "seen", "fate"),
    [
        (Fence(G1, 5, 2), observed(G1, (5, 2)), COMMITTED),
        (Fence(G1, 5, 2), observed(G2, (5, 2)), COMMITTED),  # before a reset
        (Fence(G1, 5, 2), observed(None, (5, 2), alive=False), COMMITTED),  # before the deletion
        (Fence(G1, 5, 2), observed(G1, (4, 1)), Retry(G1, 5)),
        (Fence(G1, 5, 2), observed(G2, (4, 1)), Retry(G2, 5)),
        (Fence(G1, 5, 2), observed(G1, (5, 1)), Retry(G1, 6)),  # an abandoned batch has taken it
        (Fence(G1, 5, 2), observed(None, (4, 1)), GONE),
        (Fence(G1, 5, 2), observed(None, None), GONE),
        (Fence(G1, 5, 2), observed(NO_GENERATION, (5, 2)), COMMITTED),  # before a reset by deletion
        (Fence(G1, 5, 2), observed(NO_GENERATION, (4, 1)), Retry(NO_GENERATION, 5)),
        (Fence(G1, 5, 2), observed(NO_GENERATION, (5, 1)), Retry(NO_GENERATION, 6)),
        (Fence(NO_GENERATION, 5, 2), observed(G2, (4, 1)), Retry(G2, 5)),
        (Fence(G1, 5, 2), observed(NO_GENERATION, None), SESSION_LOST),
        (Fence(G1, 1, 2), observed(NO_GENERATION, None), Retry(NO_GENERATION, 1)),
        (Fence(G1, 1, 2), observed(NO_GENERATION, None, alive=False), SESSION_LOST),
        (Fence(G1, 5, 2), observed(G1, None, alive=False), SESSION_LOST),
        (Fence(G1, 5, 2), observed(G1, None), SESSION_LOST),
        (Fence(G1, 1, 2), observed(G1, None), Retry(G1, 1)),
        (Fence(G1, 1, 2), observed(G2, None), Retry(G2, 1)),
        (Fence(G1, 1, 2), observed(None, None, alive=False), GONE),
        # It may have been applied in G1 and gone with lease and reset: "never appended" looks the same.
        (Fence(G1, 1, 2), observed(G2, None, alive=False), SESSION_LOST),
        (Fence(G1, 1, 2), observed(G1, None, alive=False), SESSION_LOST),
        # A forgotten number is found in the writer key.
        (Fence(G1, UNKNOWN_SEQUENCE, 9), observed(G1, (5, 2)), Retry(G1, 6)),
        (Fence(G1, UNKNOWN_SEQUENCE, 9), observed(G2, None), Retry(G2, 1)),
        (Fence(G1, UNKNOWN_SEQUENCE, 9), observed(NO_GENERATION, (5, 2)), Retry(NO_GENERATION, 6)),
        (Fence(G1, UNKNOWN_SEQUENCE, 9), observed(None, (5, 2)), GONE),
        (Fence(G1, UNKNOWN_SEQUENCE, 9), observed(G1, None, alive=False), SESSION_LOST),
        # The topic was deleted by this host, which does not remember its number, and is not swept yet.
        (Fence(G1, 1, 9), observed(None, (5, 2)), GONE),
    ],
)
def test_settle(fence: Fence, seen: Observed, fate: object) -> None:
    """Invariants 2 and 3 of append, case by case."""
    assert settle(fence, seen) == fate


@pytest.mark.parametrize("sequence", [1, 2, 5, 6])
def test_two_processes_in_one_session_are_noticed(sequence: int) -> None:
    with pytest.raises(CorruptData, match="another process uses the same session"):
        settle(Fence(G1, 4, 9), observed(G1, (sequence, 1)))


@pytest.mark.parametrize(
    ("sent_before", "found", "generation", "fate"),
    [
        (True, True, G1, COMMITTED),
        (True, True, G2, COMMITTED),
        (True, True, None, COMMITTED),
        (True, False, G1, Retry(G1, 1)),
        (True, False, G2, UNKNOWN),
        (True, False, None, GONE),
        (True, True, NO_GENERATION, COMMITTED),
        (True, False, NO_GENERATION, UNKNOWN),
        (False, False, NO_GENERATION, Retry(NO_GENERATION, 1)),
        (False, False, G1, Retry(G1, 1)),
        (False, False, G2, Retry(G2, 1)),
        (False, False, None, GONE),
    ],
)
def test_settle_lost(*, sent_before: bool, found: bool, generation: Revision | None, fate: object) -> None:
    fence = Fence(G1, 5, 2)
    assert settle_lost(fence, sent_before=sent_before, found=found, generation=generation) == fate


def test_the_writer_key_round_trips() -> None:
    assert Fence(G1, 7, 12).encode() == b"7:12"
    assert decode_writer(b"k", b"7:12") == (7, 12)


@pytest.mark.parametrize("raw", b"|7|7:|:12|-7:1|7:1:2|7:x|x:7| 7:1|7_0:1".split(b"|"))
def test_what_is_no_writer_value_is_corrupt(raw: bytes) -> None:
    with pytest.raises(CorruptData, match="'the-key' does not hold sequence:attempt"):
        decode_writer(b"the-key", raw)


@dataclass(frozen=True, slots=True)
class Refused:
    """The compares failed; the else branch of the same transaction read this."""

    seen: Observed


@dataclass(frozen=True, slots=True)
class LostRead:
    """What is read about a batch after its session's lease is gone."""

    found: bool
    generation: Revision | None


APPLIED = "applied"
NO_LEASE = "no lease"
Answer = str | Refused | Observed | LostRead


@dataclass(slots=True)
class Etcd:
    """One topic in one etcd; `history` is a ghost that no host can see."""

    revision: int = 10
    epoch: Revision | None = G1
    """None: the topic was deleted."""
    leases: set[int] = field(default_factory=set)
    writers: dict[int, tuple[int, bytes]] = field(default_factory=dict)
    """version and value, by session."""
    tail: dict[tuple[int, int], tuple[int, Revision]] = field(default_factory=dict)
    """Batch and generation, by session and sequence: all batches are of one size, so keys can be equal."""
    history: dict[int, list[Revision]] = field(default_factory=dict)
    """The generations each batch was applied in."""
    numbers: set[tuple[int, int]] = field(default_factory=set)

    def grant(self) -> int:
        self.revision += 1
        self.leases.add(self.revision)
        return self.revision

    def revoke(self, session: int) -> None:
        self.leases.discard(session)
        self.writers.pop(session, None)
        self.revision += 1

    def observe(self, session: int) -> Observed:
        _, value = self.writers.get(session, (0, b""))
        return Observed(self.epoch, decode_writer(b"", value) if value else None, session in self.leases)

    def append(self, fence: Fence, session: int, batch: int) -> Answer:
        version = self.writers.get(session, (0, b""))[0]
        assert fence.sequence != UNKNOWN_SEQUENCE, "invariant 5: sent without its number"
        # A compare of mod_revision takes an absent key for 0, whatever the reason of its absence.
        if (self.epoch or NO_GENERATION) != fence.generation or version != fence.sequence - 1:
            return Refused(self.observe(session))  # compares come first, then leases
        if session not in self.leases:
            return NO_LEASE
        assert (session, fence.sequence) not in self.numbers, "invariant 1: a number was used twice"
        assert self.epoch, "invariant 4: a batch in no generation"
        self.numbers.add((session, fence.sequence))
        self.revision += 1
        self.writers[session] = (version + 1, fence.encode())
        self.tail[session, fence.sequence] = (batch, fence.generation)
        self.history.setdefault(batch, []).append(fence.generation)
        return APPLIED

    def reset(self) -> None:
        if self.epoch is not None:
            self.revision += 1
            self.epoch = Revision(self.revision)

    def reset_by_deletion(self) -> None:
        if self.epoch is not None:
            self.revision += 1
            self.epoch = NO_GENERATION

    def begin_generation(self) -> None:
        if self.epoch == NO_GENERATION:
            self.reset()

    def delete(self) -> None:
        self.revision += 1
        self.epoch = None

    def sweep(self) -> None:
        """Remove leftovers, as far as the sweeper may."""
        self.tail = {key: kept for key, kept in self.tail.items() if kept[1] == self.epoch}
        if self.epoch is None:
            self.writers.clear()


@dataclass(slots=True)
class Call:
    """A request on its way: an append, or a read about a batch."""

    kind: str
    fence: Fence
    session: int
    batch: int
    answer: Answer | None = None
    """Set when etcd has carried it out and the answer is on its way back."""


@dataclass(frozen=True, slots=True)
class Careless:
    """What a host must not do; the simulation has to find out each."""

    finds_by_key: bool = False
    reuses_attempts: bool = False
    overlooks_lost_sessions: bool = False
    forgets_unanswered: bool = False
    retries_unanswered_after_loss: bool = False
    tells_committed_when_taken: bool = False
    sends_without_generation: bool = False


@dataclass(slots=True)
class Host:
    """One writer of the topic, with one batch under way at a time."""

    etcd: Etcd
    network: list[Call]
    fates: dict[int, str]
    seen: Counter[str]
    careless: Careless
    session: int
    generation: Revision = G1
    taken: int = 0
    attempts: int = 0
    batch: int | None = None
    fence: Fence = NEVER_SENT
    sent_before: bool = False
    lost: bool = False
    call: Call | None = None

    def push(self, batch: int) -> None:
        self.attempts += not self.careless.reuses_attempts
        self.batch = batch
        self._begin(self.generation, self.taken + 1)

    def forget(self) -> None:
        """Remember of the topic only that something was forgotten."""
        self.generation, self.taken = G1, UNKNOWN_SEQUENCE - 1
        self.seen["forgotten"] += 1

    def _begin(self, generation: Revision, sequence: int) -> None:
        self.fence = Fence(generation, sequence, self.attempts)
        self.sent_before = False
        self._send_append()

    def _send_append(self) -> None:
        none = self.fence.generation == NO_GENERATION and not self.careless.sends_without_generation
        unknown = self.fence.sequence == UNKNOWN_SEQUENCE
        self._send("begin" if none else "read" if unknown else "append")

    def _send(self, kind: str) -> None:
        assert self.batch is not None
        self.call = Call(kind, self.fence, self.session, self.batch)
        self.network.append(self.call)

    def give_up_waiting(self, choice: float) -> None:
        """The call went unanswered; it may still be carried out."""
        assert self.call is not None
        self.sent_before |= self.call.kind == "append" and not self.careless.forgets_unanswered
        if choice < 0.2:
            self._end("abandoned")
        elif self.lost:
            self._send("read lost")
        else:
            self._send_append() if choice < 0.6 else self._send("read")

    def take(self, answer: Answer) -> None:
        match answer:
            case LostRead():
                self._decide_lost(answer)
            case Observed():
                self._decide(answer)
            case Refused(seen):
                self._decide(seen)
            case "no lease":
                self._lose()
            case _:
                self._commit()

    def _decide(self, seen: Observed) -> None:
        if self.careless.overlooks_lost_sessions:
            seen = Observed(seen.generation, seen.writer, session_alive=True)
        fate = settle(self.fence, seen)
        self.seen[f"settle: {type(fate).__name__}"] += 1
        if (
            self.careless.tells_committed_when_taken
            and seen.writer is not None
            and seen.writer[0] == self.fence.sequence
        ):
            fate = COMMITTED
        match fate:
            case Committed():
                self._commit()
            case Gone():
                self._end("gone")
            case SessionLost():
                self._lose()
            case Retry(generation, sequence):
                self.seen["looked up"] += self.fence.sequence == UNKNOWN_SEQUENCE < sequence - 1
                self.seen["another took the number"] += UNKNOWN_SEQUENCE < self.fence.sequence < sequence
                self.generation, self.taken = generation, sequence - 1
                self.seen["no generation"] += generation == NO_GENERATION
                if (generation, sequence) == (self.fence.generation, self.fence.sequence):
                    self._send_append()
                else:
                    self._must_not_be_applied()
                    self._begin(generation, sequence)

    def _lose(self) -> None:
        self.lost = True
        self._send("read lost")

    def _decide_lost(self, answer: LostRead) -> None:
        sent = self.sent_before and not self.careless.retries_unanswered_after_loss
        fate = settle_lost(self.fence, sent_before=sent, found=answer.found, generation=answer.generation)
        self.seen[f"settle_lost: {type(fate).__name__}"] += 1
        self.session, self.taken, self.lost = self.etcd.grant(), 0, False
        match fate:
            case Committed():
                self._commit()
            case Gone():
                self._end("gone")
            case Unknown():
                self._end("unknown")
            case Retry(generation, sequence):
                self._must_not_be_applied()
                self.generation = generation
                self._begin(generation, sequence)

    def _must_not_be_applied(self) -> None:
        assert self.batch is not None
        assert self.batch not in self.etcd.history, "invariant 3: sent anew although it was applied"

    def _commit(self) -> None:
        assert self.batch is not None
        assert self.etcd.history.get(self.batch) == [self.fence.generation], "invariant 2: not in the log"
        if not self.lost and self.session in self.etcd.leases:
            self.taken = max(self.taken, self.fence.sequence)
        self._end("committed")

    def _end(self, fate: str) -> None:
        assert self.batch is not None
        self.fates[self.batch] = fate
        self.seen[fate] += 1
        if self.lost:  # abandoned while it was asking
            self.session, self.taken, self.lost = self.etcd.grant(), 0, False
        self.batch = self.call = None


def carry_out(etcd: Etcd, call: Call, careless: Careless) -> Answer:
    if call.kind == "append":
        return etcd.append(call.fence, call.session, call.batch)
    if call.kind == "begin":
        etcd.begin_generation()
        return etcd.observe(call.session)
    if call.kind == "read":
        return etcd.observe(call.session)
    own = etcd.tail.get((call.session, call.fence.sequence))
    found = own is not None and (careless.finds_by_key or own == (call.batch, call.fence.generation))
    return LostRead(found, etcd.epoch)


def simulate(seed: int, steps: int, careless: Careless) -> Counter[str]:
    """Run one cluster; return how often what happened. AssertionError if an invariant broke."""
    draw = random.Random(seed)
    etcd, network, fates, seen = Etcd(), list[Call](), dict[int, str](), Counter[str]()
    trouble = draw.choice((0.02, 0.08, 0.2))  # some clusters are calmer than others
    hosts = [Host(etcd, network, fates, seen, careless, etcd.grant()) for _ in range(draw.choice((1, 2, 3)))]
    batches = 0
    for _ in range(steps):
        host = draw.choice(hosts)
        chance = draw.random()
        if chance < trouble:
            what = draw.random()
            if what < 0.3:
                etcd.reset()
            elif what < 0.4:
                etcd.reset_by_deletion()
            elif what < 0.65:
                etcd.sweep()
            elif what < 0.98:
                etcd.revoke(host.session)
            else:
                etcd.delete()
        elif host.call is None and chance > 0.9:
            host.forget()
        elif host.call is None:
            host.push(batches)
            batches += 1
        elif host.call.answer is not None:
            if chance < 0.75:
                host.take(host.call.answer)
            else:  # the answer was lost
                host.give_up_waiting(draw.random())
        elif chance < 0.3:
            host.give_up_waiting(draw.random())
        elif network:  # any request, also one that nobody waits for any more
            call = network.pop(draw.randrange(len(network)))
            if draw.random() < 0.9:
                call.answer = carry_out(etcd, call, careless)
    draw.shuffle(network)
    for call in network:
        carry_out(etcd, call, careless)
    for batch, fate in fates.items():
        applied = etcd.history.get(batch, [])
        told = f"invariants of the design: batch {batch}, {fate}, was applied in generations {applied}"
        assert len(applied) == 1 if fate == "committed" else len(applied) <= 1, told
    seen["abandoned and applied"] = sum(
        fate == "abandoned" and batch in etcd.history for batch, fate in fates.items()
    )
    return seen


def simulate_many(careless: Careless) -> Counter[str]:
    """Run 2,000 clusters for 300,000 steps."""
    seen = Counter[str]()
    for seed in range(2000):
        seen += simulate(seed, 150, careless)
    return seen


def test_every_batch_is_applied_as_its_caller_was_told() -> None:
    """Invariants 1 and 2 of the design, 1 to 5 of append, in 300,000 steps."""
    seen = simulate_many(Careless())
    for event in (
        "committed",
        "abandoned",
        "abandoned and applied",
        "another took the number",
        "no generation",
        "looked up",
        "gone",
        "unknown",
        "settle: Committed",
        "settle: Retry",
        "settle: Gone",
        "settle: SessionLost",
        "settle_lost: Committed",
        "settle_lost: Retry",
        "settle_lost: Gone",
        "settle_lost: Unknown",
    ):
        assert seen[event] >= 50, f"{event!r} came up {seen[event]} times: the simulation proves little of it"


@pytest.mark.parametrize(
    "careless",
    [
        Careless(finds_by_key=True),
        Careless(reuses_attempts=True),
        Careless(overlooks_lost_sessions=True),
        Careless(forgets_unanswered=True),
        Careless(retries_unanswered_after_loss=True),
        Careless(tells_committed_when_taken=True),
        Careless(sends_without_generation=True),
    ],
    ids=lambda careless: next(name for name in Careless.__slots__ if getattr(careless, name)),
)
def test_a_careless_host_is_found_out(careless: Careless) -> None:
    """Each of the fence's rules is needed, and the simulation is sharp enough to show it."""
    with pytest.raises(AssertionError, match="invariant"):
        simulate_many(careless)
