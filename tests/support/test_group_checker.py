"""The checker of groups finds each planted anomaly, and nothing where something explains what happened."""

from dataclasses import replace

import pytest

from tests.support.checker import MessageId, Outcome, Push, message
from tests.support.group_checker import (
    SECOND,
    Ending,
    Fault,
    FaultKind,
    GroupHistory,
    GroupKind,
    Reader,
    Reason,
    Refusal,
    Rewind,
    Taken,
)

COUNT = 6
"""Messages, pushed at 0 s; in the histories below everything else is at whole tens of seconds."""


def push(number: int, outcome: Outcome = Outcome.OK) -> Push:
    return Push(MessageId("w", number), outcome, 0, 1)


def had(number: int, got: float, done: float | None) -> Taken:
    return Taken(message("w", number), int(got * SECOND), None if done is None else int(done * SECOND))


def reader(
    name: str,
    *taken: Taken,
    ending: Ending | None = None,
    ended: float | None = None,
) -> Reader:
    """A reader on the host of the first letter of its name."""
    return Reader(name, name[0], taken, ending, None if ended is None else int(ended * SECOND))


def fault(kind: FaultKind, host: str, began: float, ended: float) -> Fault:
    return Fault(kind, host, int(began * SECOND), int(ended * SECOND), int(ended * SECOND))


def rewind(began: float, outcome: Outcome = Outcome.OK) -> Rewind:
    return Rewind(outcome, int(began * SECOND), int(began * SECOND))


def history(*readers: Reader, count: int = 2) -> GroupHistory:
    return GroupHistory(
        [push(number) for number in range(count)], [MessageId("w", n) for n in range(count)], readers
    )


def good() -> GroupHistory:
    """Two readers on two hosts share six messages; nothing happens to anybody."""
    return history(
        reader("x1", had(0, 10, 20), had(2, 20, 30), had(4, 40, 50)),
        reader("y1", had(1, 10, 30), had(3, 30, 40), had(5, 40, 50), ending=Ending.WELL, ended=50),
        count=COUNT,
    )


def kinds(history: GroupHistory) -> set[GroupKind]:
    return {anomaly.kind for anomaly in history.judge().anomalies}


def test_nothing_is_wrong_where_nothing_happens() -> None:
    verdict = good().judge()
    assert verdict.anomalies == []
    assert (verdict.deliveries, verdict.late, verdict.redelivered.total()) == (COUNT, 0, 0)


# Lost


def test_what_nobody_ever_had_is_found() -> None:
    history = good()
    history.readers = [history.readers[0]]
    assert kinds(history) == {GroupKind.UNDELIVERED}


def test_what_only_failed_readers_had_is_found() -> None:
    for ending in (Ending.FAILED, Ending.KILLED):
        found = history(reader("x1", had(0, 10, 20), had(1, 20, None), ending=ending, ended=30))
        assert kinds(found) == {GroupKind.LOST}


def test_what_a_reader_went_on_from_without_coming_to_its_end_is_found() -> None:
    assert kinds(history(reader("x1", had(0, 10, None), had(1, 20, 30)))) == {GroupKind.LOST}


@pytest.mark.parametrize(
    ("outcome", "in_topic", "found"),
    [
        (Outcome.OK, False, {GroupKind.UNDELIVERED}),
        (Outcome.UNKNOWN, False, set()),
        (Outcome.UNKNOWN, True, {GroupKind.UNDELIVERED}),
        (Outcome.FAILED, False, set()),
    ],
)
def test_what_was_pushed_has_to_be_delivered(
    outcome: Outcome, *, in_topic: bool, found: set[GroupKind]
) -> None:
    history = good()
    history.pushes = [*history.pushes, push(COUNT, outcome)]
    if in_topic:
        history.topic = [*history.topic, MessageId("w", COUNT)]
    assert kinds(history) == found


# Redelivered


FIRST = reader("x1", had(0, 10, 20), had(1, 20, 30))


@pytest.mark.parametrize(
    ("again", "found"),
    [(reader("y1", had(0, 15, 17)), GroupKind.SHARED), (reader("y1", had(0, 40, 50)), GroupKind.REDELIVERED)],
)
def test_a_second_delivery_without_a_reason_is_found(again: Reader, found: GroupKind) -> None:
    assert kinds(history(FIRST, again)) == {found}
    assert kinds(history(FIRST, replace(again, host="x"))) == {found}, "on the same host, too"


def test_what_a_reader_that_lives_has_in_hand_is_nobody_elses() -> None:
    holding = reader("x1", had(0, 10, 20), had(1, 20, None))
    assert kinds(history(holding, reader("y1", had(1, 500, 501)))) == {GroupKind.SHARED}


@pytest.mark.parametrize("ending", [Ending.KILLED, Ending.FAILED])
@pytest.mark.parametrize(
    ("done", "ended", "again", "found"),
    [
        (None, 30, 40, set()),
        (None, 30, 25, {GroupKind.SHARED}),  # before it ended
        (30, 30.5, 40, set()),  # it may not have gone on yet
        (30, 35, 40, {GroupKind.REDELIVERED}),  # it waited for the next one when it ended
        (30, 35, 33, {GroupKind.REDELIVERED}),
    ],
)
def test_the_end_of_a_reader_explains_the_last_message_only(
    ending: Ending, done: float | None, ended: float, again: float, found: set[GroupKind]
) -> None:
    ends = reader("x1", had(0, 10, 20), had(1, 20, done), ending=ending, ended=ended)
    one = history(ends, reader("y1", had(1, again, again + 1)))
    assert kinds(one) == found
    if not found:
        reason = {Ending.KILLED: Reason.WORKER_KILLED, Ending.FAILED: Reason.WORKER_FAILED}[ending]
        assert one.judge().redelivered == {reason: 1}
    earlier = history(ends, reader("y1", had(1, ended + 1, 50)), reader("y2", had(0, 60, 70)))
    assert GroupKind.REDELIVERED in kinds(earlier), "that of 0 is acknowledged by the read of 1"


def test_a_good_end_is_an_acknowledgement() -> None:
    ends = reader("x1", had(0, 10, 20), had(1, 20, 30), ending=Ending.WELL, ended=30)
    assert kinds(history(ends, reader("y1", had(1, 40, 50)))) == {GroupKind.REDELIVERED}


def test_what_came_back_once_is_delivered_once_more_only() -> None:
    failed = reader("x1", had(0, 10, 15), had(1, 20, None), ending=Ending.FAILED, ended=25)
    once, twice = reader("y1", had(1, 30, 40)), reader("y2", had(1, 50, 60))
    assert kinds(history(failed, once)) == set()
    assert kinds(history(failed, once, twice)) == {GroupKind.REDELIVERED}


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (FaultKind.DAEMON_KILLED, Reason.DAEMON_KILLED),
        (FaultKind.DAEMON_STOPPED, Reason.DAEMON_STOPPED),
        (FaultKind.SESSION_LOST, Reason.SESSION_LOST),
        (FaultKind.FROZEN, None),
    ],
)
@pytest.mark.parametrize(
    ("host", "began", "explains"),
    [
        ("x", 15, True),  # while it had it in hand
        ("x", 20.5, True),  # acknowledged, perhaps not in etcd yet
        ("x", 30, False),  # long in etcd
        ("x", 5, False),  # before it had it
        ("x", 45, False),  # after it came again
        ("y", 15, False),  # another host
    ],
)
def test_a_fault_of_a_host_explains_what_it_had_not_put_into_etcd(
    kind: FaultKind, reason: Reason | None, host: str, began: float, *, explains: bool
) -> None:
    one = history(FIRST, reader("y1", had(0, 40, 50)))
    one.faults = [fault(kind, host, began, began + 1)]
    if explains and reason is not None:
        assert one.judge().anomalies == []
        assert one.judge().redelivered == {reason: 1}
    else:
        assert kinds(one) == {GroupKind.REDELIVERED}


@pytest.mark.parametrize(
    ("trouble", "settling_s", "explained"),
    [
        (fault(FaultKind.FROZEN, "x", 10, 18), 5, True),
        (fault(FaultKind.FROZEN, "x", 10, 18), 0, False),
        (fault(FaultKind.FROZEN, "x", 10, 14), 5, False),
        (fault(FaultKind.FROZEN, "y", 10, 18), 5, False),
        (fault(FaultKind.FROZEN, "x", 21, 22), 5, False),
    ],
)
def test_after_a_trouble_acknowledgements_take_longer(
    trouble: Fault, settling_s: int, explained: bool
) -> None:
    story = history(reader("x1", had(0, 15, 20), had(1, 20, 30)), reader("y1", had(0, 60, 70)))
    story.faults = [trouble, fault(FaultKind.DAEMON_KILLED, "x", 23, 40)]
    story.settling_ns = settling_s * SECOND
    assert (GroupKind.REDELIVERED not in kinds(story)) == explained


def test_how_old_an_acknowledgement_was_that_a_fault_undid_is_told() -> None:
    one = history(FIRST, reader("y1", had(0, 40, 50)))
    one.faults = [fault(FaultKind.DAEMON_KILLED, "x", 20.5, 21)]
    assert one.judge().undone_ns == SECOND // 2


def test_a_frozen_host_learns_of_an_acknowledgement_late() -> None:
    ends = reader("x1", had(0, 10, 20), had(1, 20, 30), ending=Ending.KILLED, ended=35)
    one = history(ends, reader("y1", had(1, 50, 60)))
    assert kinds(one) == {GroupKind.REDELIVERED}
    one.faults = [fault(FaultKind.FROZEN, "x", 29, 36)]
    assert kinds(one) == set()


def test_what_a_host_hands_out_that_has_lost_its_session_is_stale() -> None:
    elsewhere, stale = reader("y1", had(0, 30, 40)), reader("x1", had(1, 5, 6), had(0, 50, 60))
    one = history(elsewhere, stale)
    assert kinds(one) == {GroupKind.REDELIVERED}
    one.faults = [fault(FaultKind.SESSION_LOST, "x", 20, 50)]
    assert kinds(one) == set()
    one.faults = [fault(FaultKind.SESSION_LOST, "x", 20, 45)]
    assert kinds(one) == {GroupKind.REDELIVERED}, "it had heard of it"
    one.faults = [fault(FaultKind.SESSION_LOST, "x", 35, 50)]
    assert kinds(one) == {GroupKind.REDELIVERED}, "it was elsewhere before the session was lost"


@pytest.mark.parametrize(
    ("done", "again", "timeout", "found"),
    [
        (30, 25, 15, set()),
        (30, 31, 15, set()),  # acknowledged too late
        (30, 15, 15, {GroupKind.SHARED}),  # too soon
        (12, 40, 15, {GroupKind.REDELIVERED}),  # acknowledged in time
        (30, 25, None, {GroupKind.SHARED}),
    ],
)
def test_a_visibility_timeout_explains_what_was_held_too_long(
    done: float, again: float, timeout: int | None, found: set[GroupKind]
) -> None:
    one = history(reader("x1", had(0, 10, done), had(1, done, 40)), reader("y1", had(0, again, 50)))
    one.visibility_ns = None if timeout is None else timeout * SECOND
    assert kinds(one) == found


@pytest.mark.parametrize("outcome", [Outcome.OK, Outcome.UNKNOWN])
def test_a_rewind_explains_that_everything_comes_again(outcome: Outcome) -> None:
    one = history(FIRST, reader("y1", had(0, 40, 50), had(1, 50, 60)))
    one.rewinds = [rewind(35, outcome)]
    assert one.judge().anomalies == []
    assert one.judge().redelivered == {Reason.REWOUND: 2}
    one.readers = [*one.readers, reader("y2", had(1, 70, 80))]
    assert kinds(one) == {GroupKind.REDELIVERED}


def test_after_a_rewind_everything_has_to_come_again() -> None:
    one = history(FIRST, reader("y1", had(1, 50, 60)))
    one.rewinds = [rewind(35)]
    assert kinds(one) == {GroupKind.UNDELIVERED}
    one.rewinds = [rewind(35, Outcome.UNKNOWN)]
    assert kinds(one) == set()
    one.rewinds = [rewind(35)]
    one.readers = [*one.readers, reader("y2", had(0, 50, None), ending=Ending.FAILED, ended=60)]
    assert kinds(one) == {GroupKind.LOST}


# Torn, phantom, reordered, refused


@pytest.mark.parametrize("cut", [slice(0, 7), slice(3, None), slice(0, -1)])
def test_a_torn_message_is_found(cut: slice) -> None:
    torn = replace(had(1, 20, 30), line=message("w", 1)[cut])
    assert kinds(history(reader("x1", had(0, 10, 20), torn))) == {GroupKind.TORN, GroupKind.UNDELIVERED}


def test_two_messages_at_once_are_torn() -> None:
    both = replace(had(0, 20, 30), line=message("w", 0) + message("w", 1))
    assert GroupKind.TORN in kinds(history(reader("x1", both)))


def test_a_phantom_is_found() -> None:
    one = good()
    one.readers = [*one.readers, reader("x2", had(COUNT, 60, 70))]
    assert kinds(one) == {GroupKind.PHANTOM}
    one.pushes = [*one.pushes, push(COUNT, Outcome.FAILED)]
    assert kinds(one) == {GroupKind.PHANTOM}
    one = history(reader("x1", had(0, -10, 20), had(1, 20, 30)))
    assert GroupKind.PHANTOM in kinds(one), "before it was pushed"
    one = good()
    one.topic = [*one.topic, MessageId("v", 0)]
    assert kinds(one) == {GroupKind.PHANTOM}


def test_an_order_that_nothing_explains_is_found() -> None:
    one = history(reader("x1", had(1, 10, 20), had(0, 20, 30)))
    assert kinds(one) == {GroupKind.REORDERED}
    one.faults = [fault(FaultKind.DAEMON_KILLED, "y", 1, 2)]
    assert kinds(one) == {GroupKind.REORDERED}, "long before"
    one.faults = [fault(FaultKind.DAEMON_KILLED, "y", 8, 9)]
    assert kinds(one) == set(), "it had claimed it, and nobody had seen it"
    assert one.judge().late == 1


def test_what_comes_again_may_come_after_later_messages() -> None:
    failed = reader("y1", had(0, 10, None), ending=Ending.FAILED, ended=100)
    assert kinds(history(failed, reader("x1", had(1, 10, 20), had(0, 110, 120)))) == set()


def test_an_error_that_nothing_explains_is_found() -> None:
    one = good()
    one.refusals = [Refusal("x1", "x", 5, 60 * SECOND)]
    assert kinds(one) == {GroupKind.REFUSED}
    one.faults = [fault(FaultKind.DAEMON_KILLED, "y", 59, 61)]
    assert kinds(one) == {GroupKind.REFUSED}
    one.faults = [fault(FaultKind.DAEMON_KILLED, "x", 59, 61)]
    assert kinds(one) == set()
