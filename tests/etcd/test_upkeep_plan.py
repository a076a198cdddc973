"""The decisions of the upkeep, on the looks of a server that exists as numbers only."""

from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnpipefs.etcd import upkeep_plan as plan
from dnpipefs.etcd.upkeep_plan import (
    CHEAP_BYTES,
    DEFRAGMENT_EVERY_S,
    DISARM_PAUSE_LIMIT_S,
    DISARM_PAUSE_S,
    HISTORY_BYTES,
    KEPT_REVISIONS,
    KEPT_S,
    MIB,
    PAUSE_S,
    Command,
    Compact,
    Defragment,
    Disarm,
    Look,
    Rest,
    Seen,
    Settle,
    State,
    decide,
    target_size,
)

GIB = 1024 * MIB
QUOTA = 8 * GIB
CALM = Look(now=1000.0, size=GIB, in_use=GIB, quota=QUOTA, revision=1_000_000, full=False)
FULL = replace(CALM, size=QUOTA, in_use=QUOTA, full=True)


def after(*looks: Look) -> tuple[State, Command]:
    """Return state and command after these looks, each command carried out."""
    state = State()
    command: Command = Rest(0)
    for look in looks:
        state, command = decide(state, look)
    return state, command


def later(look: Look, seconds: float, **changes: float) -> Look:
    return replace(look, now=look.now + seconds, **changes)  # type: ignore[arg-type]


# In normal use


def test_a_calm_server_is_left_alone() -> None:
    _, command = after(*(later(CALM, PAUSE_S * n, revision=CALM.revision + n) for n in range(1000)))
    assert command == Rest(PAUSE_S)


def test_history_is_compacted_when_the_data_has_grown() -> None:
    """Invariant 3: what was the newest KEPT_S ago stays."""
    grown = later(CALM, KEPT_S, in_use=CALM.in_use + HISTORY_BYTES, revision=CALM.revision + 5000)
    short = replace(grown, in_use=grown.in_use - 1)
    assert after(CALM, short)[1] == Rest(PAUSE_S)
    state, command = after(CALM, grown)
    assert command == Compact(CALM.revision)
    assert decide(state, later(grown, 0.1))[1] == Rest(PAUSE_S), "all of it is live"


def test_history_within_the_last_seconds_stays() -> None:
    """Invariant 3."""
    soon = later(CALM, KEPT_S - 1, in_use=CALM.in_use + HISTORY_BYTES, revision=CALM.revision + 5000)
    assert after(CALM, soon)[1] == Rest(PAUSE_S)
    assert after(soon)[1] == Rest(PAUSE_S), "nothing older was seen"


def test_near_the_quota_only_the_newest_revisions_stay() -> None:
    near = replace(CALM, size=QUOTA // 4 * 3 + 1)
    grown = later(near, 1, in_use=near.in_use + HISTORY_BYTES // 4, revision=near.revision + 5000)
    assert after(near, grown)[1] == Compact(grown.revision - KEPT_REVISIONS)
    few = replace(grown, revision=KEPT_REVISIONS)
    assert after(replace(near, revision=1), few)[1] == Rest(PAUSE_S)


def test_a_small_quota_is_watched_closer() -> None:
    small = replace(CALM, quota=64 * MIB, size=30 * MIB, in_use=30 * MIB)
    grown = later(small, KEPT_S, in_use=32 * MIB, revision=small.revision + 5000)
    assert isinstance(after(small, grown)[1], Compact)


def test_what_is_remembered_is_from_the_last_process() -> None:
    """Short commands, an hour between them: none of them sees growth by itself."""
    state, _ = after(CALM)
    again = later(CALM, 3600, in_use=CALM.in_use + HISTORY_BYTES, revision=CALM.revision + 5000)
    assert decide(State.decode(state.encode()), again)[1] == Compact(CALM.revision)
    assert decide(State(), again)[1] == Rest(PAUSE_S)


def test_a_failed_compaction_is_tried_again() -> None:
    grown = later(CALM, KEPT_S, in_use=CALM.in_use + HISTORY_BYTES, revision=CALM.revision + 5000)
    state, _ = after(CALM)
    assert isinstance(decide(state, grown)[1], Compact)
    assert isinstance(decide(state, later(grown, 10))[1], Compact)


def test_less_in_use_is_the_new_base() -> None:
    """etcd compacts by itself, too."""
    shrunk = later(CALM, 60, in_use=CALM.in_use - HISTORY_BYTES)
    assert after(CALM, shrunk, later(CALM, 120))[1] == Compact(CALM.revision - KEPT_REVISIONS)


@pytest.mark.parametrize(
    ("size", "in_use", "expected"),
    [
        (GIB + 50 * MIB, 50 * MIB, True),  # cheap, and a lot to give back
        (GIB - 1, 50 * MIB, False),  # little to give back
        (3 * GIB, CHEAP_BYTES + 1, False),  # a stall for nothing but disk space
        (QUOTA, 6 * GIB, True),  # needed
        (QUOTA, 6 * GIB + 1, False),  # little to win by a long stall
        (target_size(QUOTA), 5 * GIB, False),  # not needed yet
    ],
)
def test_when_a_stall_is_worth_it(size: int, in_use: int, *, expected: bool) -> None:
    """Invariant 4."""
    _, command = after(replace(CALM, size=size, in_use=in_use))
    assert (command == Defragment()) == expected


def test_stalls_are_rare() -> None:
    """Invariant 4: however much is freed."""
    wasteful = replace(CALM, size=4 * GIB, in_use=MIB)
    state, command = after(wasteful)
    assert command == Defragment()
    for seconds in (1.0, DEFRAGMENT_EVERY_S - 1):
        assert decide(state, later(wasteful, seconds))[1] == Rest(PAUSE_S)
    assert decide(state, later(wasteful, DEFRAGMENT_EVERY_S))[1] == Defragment()


# While it is full


def run(state: State, look: Look, *, limit: int = 20) -> tuple[list[Command], State, Look]:
    """Carry out what is decided, on a server whose data in use is as it is, until it rests."""
    commands: list[Command] = []
    for _ in range(limit):
        state, command = decide(state, look)
        commands.append(command)
        match command:
            case Defragment():
                look = replace(look, size=look.in_use)
            case Disarm():
                look = replace(look, full=False)
            case Rest():
                return commands, state, look
    raise AssertionError(f"no end of it: {commands}")


def test_a_full_server_that_was_emptied_is_brought_back() -> None:
    emptied = replace(FULL, in_use=MIB)
    commands, _, look = run(State(), emptied)
    assert commands == [Compact(FULL.revision), Defragment(), Disarm(), Rest(PAUSE_S)]
    assert look.size == MIB


def test_what_was_freed_shows_after_it_is_settled() -> None:
    """etcd 3.4 at its quota: in use until somebody makes it commit."""
    state, command = after(FULL, FULL)
    assert command == Settle()
    commands, _, _ = run(state, replace(FULL, in_use=MIB))
    assert commands == [Defragment(), Disarm(), Rest(PAUSE_S)]


def test_nothing_is_done_twice_before_something_is_removed() -> None:
    """Invariants 1 and 2."""
    commands, state, _ = run(State(), FULL)
    assert commands == [Compact(FULL.revision), Settle(), Rest(plan.FULL_PAUSE_S)]
    for _ in range(100):
        state, command = decide(state, later(FULL, 1))
        assert command == Rest(plan.FULL_PAUSE_S)
    removed = replace(FULL, revision=FULL.revision + 1)
    assert run(state, removed)[0] == [Compact(removed.revision), Settle(), Rest(plan.FULL_PAUSE_S)]


def test_little_room_is_none() -> None:
    """Invariant 1: a sixteenth of the quota."""
    commands, _, _ = run(State(), replace(FULL, in_use=target_size(QUOTA) + 1))
    assert Disarm() not in commands
    assert Defragment() not in commands
    commands, _, _ = run(State(), replace(FULL, in_use=target_size(QUOTA)))
    assert commands[-2] == Disarm()


def test_a_defragmentation_that_won_nothing_is_not_repeated() -> None:
    """Invariant 2, whatever `in_use` says."""
    state, wrong = State(), replace(FULL, in_use=MIB)
    seen = []
    for second in range(100):
        state, command = decide(state, later(wrong, second))
        seen.append(command)
    assert seen.count(Defragment()) == 1
    assert Disarm() not in seen


def test_an_alarm_that_is_left_is_disarmed() -> None:
    """Somebody defragmented, and died before the next step."""
    assert run(State(), replace(FULL, size=GIB, in_use=GIB))[0] == [Disarm(), Rest(PAUSE_S)]


def test_an_alarm_that_comes_back_is_disarmed_ever_more_rarely() -> None:
    state, look, times = State(), replace(FULL, size=GIB, in_use=GIB), []
    for _ in range(5000):
        state, command = decide(state, look)
        match command:
            case Disarm():
                times.append(look.now)
            case Rest(seconds):
                look = later(look, seconds)
    pauses = [after - before for before, after in pairwise(times)]
    assert pauses[:3] == [DISARM_PAUSE_S, 2 * DISARM_PAUSE_S, 4 * DISARM_PAUSE_S]
    assert pauses[-1] == DISARM_PAUSE_LIMIT_S
    calm = later(replace(look, full=False), DISARM_PAUSE_LIMIT_S)
    assert decide(state, calm)[0].disarm_pause == DISARM_PAUSE_S


def test_an_alarm_that_comes_back_from_much_that_was_pushed_is_no_reason_to_wait() -> None:
    _, state, look = run(State(), replace(FULL, in_use=MIB))
    again = later(look, 0.1, size=QUOTA, revision=look.revision + 1, full=True)
    assert run(state, again)[0] == [Compact(again.revision), Defragment(), Disarm(), Rest(PAUSE_S)]


# What is remembered


def test_the_looks_that_are_remembered_are_few() -> None:
    state, _ = after(*(later(CALM, 0.01 * n, revision=CALM.revision + n) for n in range(10_000)))
    assert len(state.seen) <= KEPT_S / (PAUSE_S / 2) + 2


def test_another_database_in_the_same_place_is_looked_at_afresh() -> None:
    state, _ = after(FULL, replace(FULL, full=False))
    assert state.compacted == FULL.revision
    new = replace(CALM, revision=1, in_use=20_000, size=20_000)
    assert decide(state, new)[0] == decide(State(), new)[0]


def test_a_clock_that_was_set_back() -> None:
    state, _ = after(CALM)
    earlier = later(CALM, -3600, in_use=CALM.in_use + HISTORY_BYTES)
    state, command = decide(state, earlier)
    assert command == Rest(PAUSE_S)
    assert [each.time for each in state.seen] == [earlier.now]


def test_pauses_end_though_the_clock_was_set_back() -> None:
    state, _ = after(replace(CALM, size=4 * GIB, in_use=MIB))
    state, _ = decide(state, replace(FULL, size=GIB, in_use=GIB))
    long_ago = later(CALM, -1e6)
    state, _ = decide(state, long_ago)
    assert state.defragment_after <= long_ago.now + DEFRAGMENT_EVERY_S
    assert state.disarm_after <= long_ago.now + DISARM_PAUSE_LIMIT_S


numbers = st.integers(0, 1 << 40)
times = st.floats(0, 1e10)
states = st.builds(
    State,
    base=st.none() | numbers,
    seen=st.lists(st.builds(Seen, times, numbers), max_size=5).map(tuple),
    compacted=numbers,
    settled=numbers,
    defragmented=numbers,
    defragment_after=times,
    disarm_after=times,
    disarm_pause=times,
)


@given(states)
def test_a_state_survives_the_file(state: State) -> None:
    assert State.decode(state.encode()) == state


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "null", '{"seen":[]}', '{"seen":[],"base":"x"}', '{"seen":[1],"base":1}',
     '{"seen":[],"base":1,"unknown":2}', '{"seen":[],"base":1,"compacted":null}'],
)  # fmt: skip
def test_a_file_that_is_no_state(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - whatever it says
        State.decode(text)


@dataclass
class Server:
    """etcd as numbers: what is live, what is history, what is free."""

    live: int = 0
    history: int = 0
    size: int = 0
    revision: int = 1
    full: bool = False
    counted: bool = True

    def look(self, now: float) -> Look:
        in_use = self.live + self.history
        return Look(now, self.size, in_use if self.counted else self.size, QUOTA, self.revision, self.full)

    def put(self, size: int) -> None:
        if self.full or self.size + size >= QUOTA:
            self.full = True
            return
        self.counted = True
        self.revision += 1
        self.live += size
        self.size = max(self.size, self.live + self.history)

    def remove(self, size: int) -> None:
        size = min(size, self.live)
        self.revision += 1
        self.live -= size
        self.history += size

    def carry_out(self, command: Command) -> None:
        match command:
            case Compact():
                self.history = 0
                self.counted = False
            case Settle():
                self.counted = True
            case Defragment():
                self.size = self.live + self.history
            case Disarm():
                assert self.size <= target_size(QUOTA), "invariant 1"
                self.full = False


steps = st.lists(st.tuples(st.sampled_from(["put", "remove", "wait"]), st.integers(1, 3 * GIB)), max_size=60)


@given(steps)
def test_whatever_happens_pushes_work_soon_after_there_is_room(steps: list[tuple[str, int]]) -> None:
    server, state, now = Server(), State(), 0.0
    for what, size in steps:
        now += 1.0
        if what == "put":
            server.put(size)
        elif what == "remove":
            server.remove(size)
        else:
            now += size / MIB
        for _ in range(10):
            state, command = decide(state, server.look(now))
            server.carry_out(command)
            if isinstance(command, Rest):
                break
        else:
            raise AssertionError("it does not come to rest")
        if server.full and server.live <= target_size(QUOTA):
            assert now < state.disarm_after, "only the pause after an alarm that came back"
