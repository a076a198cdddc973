"""The checker finds each planted anomaly, and nothing where nothing is wrong."""

import errno
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.checker import (
    History,
    Kind,
    MessageId,
    Observation,
    Outcome,
    Push,
    Reset,
    message,
    parse,
)

WRITERS = ("a", "b")
EACH = 5
LATER = 10_000


def good() -> History:
    """Two writers take turns; one push failed for sure, one timed out and was applied, one was not."""
    pushes, data = [], b""
    for number in range(EACH):
        for index, writer in enumerate(WRITERS):
            began = 100 * number + 10 * index
            outcome = Outcome.OK
            if (writer, number) == ("a", 2):
                outcome = Outcome.FAILED
            elif (writer, number) in (("a", 3), ("b", 3)):
                outcome = Outcome.UNKNOWN
            pushes.append(Push(MessageId(writer, number), outcome, began, began + 5))
            if (writer, number) not in (("a", 2), ("b", 3)):
                data += message(writer, number, b"body")
    return History(pushes, [], [Observation("x", LATER, data), Observation("y", LATER, data)])


def lines(history: History) -> list[bytes]:
    return history.observations[0].data.splitlines(keepends=True)


def seen(history: History, changed: list[bytes]) -> History:
    """Return the history with both readers seeing `changed`."""
    history.observations = [replace(o, data=b"".join(changed)) for o in history.observations]
    return history


def lose(history: History) -> History:
    return seen(history, lines(history)[:-1])


def double(history: History) -> History:
    return seen(history, [*lines(history), lines(history)[-1]])


def tear(history: History) -> History:
    first, *rest = lines(history)
    return seen(history, [first[:4], *rest])


def mix(history: History) -> History:
    first, second, *rest = lines(history)
    return seen(history, [first[:-3] + second[:-3] + first[-3:] + second[-3:], *rest])


def cut_the_newline(history: History) -> History:
    *rest, last = lines(history)
    return seen(history, [*rest, last[:-1]])


def change_a_byte(history: History) -> History:
    first, *rest = lines(history)
    return seen(history, [first.replace(b"body", b"bodx"), *rest])


def invent(history: History) -> History:
    return seen(history, [*lines(history), message("c", 0)])


def apply_what_failed(history: History) -> History:
    return seen(history, [*lines(history), message("a", 2, b"body")])


def swap_one_writers(history: History) -> History:
    first, second, third, *rest = lines(history)
    return seen(history, [third, second, first, *rest])


def swap_two_writers(history: History) -> History:
    first, second, *rest = lines(history)
    return seen(history, [second, first, *rest])


def differ(history: History) -> History:
    """Pushes that went on at the same time, in an order of each reader's own."""
    history.pushes = [replace(push, began=0, ended=LATER - 1) for push in history.pushes]
    x, y = history.observations
    first, second, *rest = lines(history)
    history.observations = [x, replace(y, data=b"".join([second, first, *rest]))]
    return history


def differ_in_length(history: History) -> History:
    x, y = differ(history).observations
    beginning = b"".join(y.data.splitlines(keepends=True)[:2])
    return replace(history, observations=[x, replace(y, began=0, data=beginning)])


def resurrect(history: History) -> History:
    history.resets = [Reset(Outcome.OK, 1000, 1001)]
    return history


@pytest.mark.parametrize(
    ("plant", "kinds"),
    [
        (lose, {Kind.LOST}),
        (double, {Kind.DOUBLED}),
        (tear, {Kind.TORN, Kind.LOST}),
        (mix, {Kind.TORN, Kind.LOST}),
        (cut_the_newline, {Kind.TORN, Kind.LOST}),
        (change_a_byte, {Kind.TORN, Kind.LOST}),
        (invent, {Kind.PHANTOM}),
        (apply_what_failed, {Kind.PHANTOM}),
        (swap_one_writers, {Kind.REORDERED}),
        (swap_two_writers, {Kind.REORDERED}),
        (differ, {Kind.DIVERGING}),
        (differ_in_length, {Kind.DIVERGING}),
        (resurrect, {Kind.RESURRECTED}),
    ],
)
def test_planted_anomalies_are_found(plant: Callable[[History], History], kinds: set[Kind]) -> None:
    assert good().check() == []
    assert {anomaly.kind for anomaly in plant(good()).check()} == kinds


def test_an_observation_under_way_is_a_beginning() -> None:
    history = good()
    shorter = Observation("z", 110, b"".join(lines(history)[:3]))
    history.observations.append(shorter)
    assert history.check() == []
    history.observations[-1] = replace(shorter, data=b"".join(lines(history)[:1]))
    assert {anomaly.kind for anomaly in history.check()} == {Kind.STALE}


@pytest.mark.parametrize(
    ("reset", "gone", "kinds"),
    [
        (Reset(Outcome.OK, 150, 160), 0, {Kind.RESURRECTED}),
        (Reset(Outcome.OK, 150, 160), 4, set()),
        (Reset(Outcome.OK, 150, 160), 5, {Kind.LOST}),
        (Reset(Outcome.OK, 112, 160), 3, set()),  # during b1: either way
        (Reset(Outcome.OK, 112, 160), 4, set()),
        (Reset(Outcome.UNKNOWN, 150, 160), 0, set()),
        (Reset(Outcome.UNKNOWN, 150, 160), 4, set()),
        (Reset(Outcome.FAILED, 150, 160), 0, set()),
        (Reset(Outcome.FAILED, 150, 160), 4, {Kind.LOST}),
    ],
)
def test_resets(reset: Reset, gone: int, kinds: set[Kind]) -> None:
    history = good()
    history = seen(history, lines(history)[gone:])
    history.resets = [reset]
    assert {anomaly.kind for anomaly in history.check()} == kinds


@pytest.mark.parametrize("number", [errno.ETIMEDOUT, errno.EIO, errno.ENOTCONN, errno.ECONNABORTED])
def test_errors_that_prove_nothing(number: int) -> None:
    assert Outcome.of(OSError(number, "planted")) is Outcome.UNKNOWN


@pytest.mark.parametrize("number", [errno.EMSGSIZE, errno.EINVAL, errno.ENOENT, errno.ENOSPC, errno.ESTALE])
def test_errors_that_prove_that_nothing_was_applied(number: int) -> None:
    assert Outcome.of(OSError(number, "planted")) is Outcome.FAILED


@given(st.binary().filter(lambda body: b"\n" not in body), st.data())
def test_no_part_of_a_message_is_a_message(body: bytes, data: st.DataObject) -> None:
    line = message("w-1", 17, body)
    assert parse(line) == ("w-1", 17)
    start = data.draw(st.integers(0, len(line)))
    end = data.draw(st.integers(start, len(line)))
    if (start, end) != (0, len(line)):
        assert parse(line[start:end]) is None
