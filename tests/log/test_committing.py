"""How long a commit takes when its session is lost and no other one comes, on a clock of the test's."""

from typing import cast

import pytest
import trio
import trio.testing

from dnpipefs import etcd
from dnpipefs.core.batch import Chunk
from dnpipefs.core.keys import KeySchema
from dnpipefs.core.names import FileId, Revision, SessionId
from dnpipefs.core.sizes import KnownSizes
from dnpipefs.core.tails import Tails
from dnpipefs.errors import DnpError, TimedOut, UnknownOutcome
from dnpipefs.log.clock import SystemClock
from dnpipefs.log.committing import NOT_REMEMBERED, Committer
from dnpipefs.log.pushes import Push, Writer
from dnpipefs.log.session import SessionKeeper

OP_TIMEOUT = 30.0
KEYS, TOPIC, SESSION = KeySchema(), FileId(7), SessionId(9)


class LosesTheSession:
    async def commit(self, *_: object, **__: object) -> object:
        await trio.sleep(0.8 * OP_TIMEOUT)
        raise etcd.LeaseNotFound("the lease is gone")


class NoSession:
    lost: SessionId | None = None
    began = Revision(1)

    def report_lost(self, session: SessionId) -> None:
        self.lost = session

    async def get(self, *, unless_full: bool) -> SessionId:
        assert unless_full
        await trio.sleep_forever()
        raise AssertionError("unreachable")


def committer(sessions: NoSession, client: object = None) -> Committer:
    return Committer(
        cast("etcd.Client", client or LosesTheSession()),
        KEYS,
        cast("SessionKeeper", sessions),
        SystemClock(),
        KnownSizes(10),
        Tails(10),
        op_timeout=OP_TIMEOUT,
    )


def writer() -> Writer:
    return Writer(TOPIC, Revision(1), KEYS.epoch(TOPIC), KEYS.last(TOPIC))


async def test_a_push_waits_for_another_session_no_longer_than_its_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    sessions = NoSession()
    commits = committer(sessions)
    push = Push(Chunk.of_lines(b"line\n"), trio.current_time() + OP_TIMEOUT)
    began = trio.current_time()
    await commits.commit([commits.batch(writer(), [push], SESSION)])
    assert sessions.lost == SESSION
    assert isinstance(push.error, TimedOut)
    assert trio.current_time() - began < OP_TIMEOUT + 1


class MayNotRead:
    """An etcd whose user has lost the right to read what a commit has to know."""

    async def commit(self, *_: object, **__: object) -> object:
        raise etcd.Ambiguous("no answer in time")

    async def transaction(self, *_: object, **__: object) -> object:
        raise etcd.PermissionDenied("permission denied")


@pytest.mark.parametrize(("sequence", "told"), [(NOT_REMEMBERED, etcd.PermissionDenied), (4, UnknownOutcome)])
async def test_what_may_not_be_looked_up_is_told_as_that(
    sequence: int, told: type[DnpError], autojump_clock: trio.testing.MockClock
) -> None:
    """Unless what went before has no answer; either way it is no fault of ours."""
    commits = committer(NoSession(), MayNotRead())
    push = Push(Chunk.of_lines(b"line\n"), trio.current_time() + OP_TIMEOUT)
    remembered = writer()
    remembered.session, remembered.sequence = SESSION, sequence
    batch = commits.batch(remembered, [push], SESSION)
    batch.sent_unanswered = told is UnknownOutcome
    if batch.sent_unanswered:
        assert await commits._look_and_settle([batch]) == []
    else:
        await commits.commit([batch])
    assert type(push.error) is told


async def test_what_is_cut_short_is_unknown_and_its_number_in_doubt() -> None:
    commits = committer(NoSession())
    push = Push(Chunk.of_lines(b"line\n"), OP_TIMEOUT)
    batch = commits.batch(writer(), [push], SESSION)
    commits.abandon([batch])
    assert isinstance(push.error, UnknownOutcome)
    assert push.settled
    assert batch.writer.abandoned == batch.fence.sequence


async def test_what_is_cut_short_under_another_session_has_its_number_there_in_doubt() -> None:
    commits = committer(NoSession())
    appended_before = writer()
    appended_before.session, appended_before.sequence = SESSION, 4
    batch = commits.batch(appended_before, [Push(Chunk.of_lines(b"line\n"), OP_TIMEOUT)], SESSION)
    anew = commits._anew(batch, SessionId(10))
    commits.abandon([batch])
    assert (batch.fence.sequence, anew.fence.sequence) == (5, 1)
    assert batch.writer.abandoned == 1
