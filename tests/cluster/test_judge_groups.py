"""A workload's history of groups is judged by what its calls say: planted anomalies are found, no others."""

from dataclasses import dataclass, field
from typing import Any

from tests.cluster.history import (
    Acknowledged,
    Call,
    Create,
    Failed,
    Final,
    GroupOpen,
    History,
    Killed,
    Nemesis,
    Read,
    Received,
    Write,
)
from tests.cluster.judge_groups import SESSION_LOST, judge_groups
from tests.support.group_checker import SECOND, GroupKind, Reason
from tests.support.messages import Outcome, message
from tests.support.topic_log import NEVER

TOPIC = "kept0"
INO = 5
SESSION_S = 4


@dataclass
class Story:
    """Calls one after another, three seconds apart, so that none is excused by what is next to it."""

    calls: list[Call] = field(default_factory=list)
    now: int = 0
    pushed: int = 0

    def __post_init__(self) -> None:
        self.calls.append(Create(name=TOPIC, ino=INO, **self.at("a", "one")))

    def at(self, client: str, mount: str) -> dict[str, Any]:
        self.now += 3 * SECOND
        return {"client": client, "mount": mount, "began": self.now, "ended": self.now + 1}

    def push(self) -> bytes:
        self.calls.append(Write(ino=INO, writer="a", first=self.pushed, count=1, **self.at("a", "one")))
        self.pushed += 1
        return message("a", self.pushed - 1)

    def open(self, worker: str, mount: str = "one") -> None:
        self.calls.append(GroupOpen(name=TOPIC, group="g", handle=1, **self.at(worker, mount)))

    def take(self, worker: str, data: bytes = b"", mount: str = "one", errno: int = 0) -> None:
        outcome = Outcome.UNKNOWN if errno else Outcome.OK
        self.calls.append(
            Received(
                name=TOPIC,
                group="g",
                handle=1,
                data=data,
                errno=errno,
                outcome=outcome,
                **self.at(worker, mount),
            )
        )

    def end(self, worker: str, how: type[Acknowledged | Failed | Killed], mount: str = "one") -> None:
        self.calls.append(how(name=TOPIC, group="g", handle=1, **self.at(worker, mount)))

    def trouble(self, what: str, mount: str) -> None:
        self.calls.append(Nemesis(what=what, **self.at("parent", mount)))

    def judged(self) -> tuple[list[GroupKind], dict[Reason, int]]:
        """Read the topic to its end, and judge the group."""
        data = b"".join(message("a", number) for number in range(self.pushed))
        read = Read(handle=9, ino=INO, name=TOPIC, offset=0, data=data, round=1, **self.at("final", "one"))
        final = Final(mounts=("one",), names=(TOPIC,), round=1, **self.at("parent", ""))
        verdict = judge_groups(History([*self.calls, read, final]), [TOPIC], SESSION_S)
        return [anomaly.kind for anomaly in verdict.anomalies], dict(verdict.redelivered)


def test_each_message_once_is_right() -> None:
    story = Story()
    one, other = story.push(), story.push()
    story.open("w")
    story.take("w", one)
    story.take("w", other)
    story.end("w", Acknowledged)
    assert story.judged() == ([], {})


def test_a_message_that_nobody_had_is_undelivered() -> None:
    story = Story()
    one, _ = story.push(), story.push()
    story.open("w")
    story.take("w", one)
    story.end("w", Acknowledged)
    assert story.judged()[0] == [GroupKind.UNDELIVERED]


def test_what_a_worker_had_that_failed_comes_again_or_is_lost() -> None:
    for how, reason in ((Failed, Reason.WORKER_FAILED), (Killed, Reason.WORKER_KILLED)):
        story = Story()
        one = story.push()
        story.take("w", one)
        story.end("w", how)
        assert story.judged()[0] == [GroupKind.LOST]
        story.take("v", one)
        story.end("v", Acknowledged)
        assert story.judged() == ([], {reason: 1})


def test_what_was_acknowledged_comes_again_only_if_the_host_had_trouble() -> None:
    for what, reason in (
        (None, None),
        ("pause", None),
        ("kill", Reason.DAEMON_KILLED),
        (SESSION_LOST, Reason.SESSION_LOST),
    ):
        story = Story()
        one = story.push()
        story.take("w", one)
        story.end("w", Acknowledged)
        if what is not None:
            story.now -= 2 * SECOND
            story.trouble(what, "one")
        story.take("v", one, "two")
        story.end("v", Acknowledged, "two")
        expected = ([GroupKind.REDELIVERED], {}) if reason is None else ([], {reason: 1})
        assert story.judged() == expected, what


def test_a_worker_whose_call_failed_or_never_ended_has_not_ended_well() -> None:
    story = Story()
    one, other = story.push(), story.push()
    story.trouble("leader killed", "")
    story.now -= 2 * SECOND
    story.take("w", one)
    story.take("w", errno=110)
    story.calls[-1].ended = story.calls[-1].began + 1
    story.take("u", other)
    story.take("u")
    story.calls[-1].ended, story.calls[-1].outcome = NEVER, Outcome.UNKNOWN
    story.take("v", one, "two")
    story.take("v", other, "two")
    story.end("v", Acknowledged, "two")
    kinds, redelivered = story.judged()
    assert set(redelivered) == {Reason.WORKER_FAILED, Reason.WORKER_KILLED}
    assert kinds == [GroupKind.REFUSED]


def test_a_call_may_fail_that_began_in_trouble_and_ended_after_it() -> None:
    story = Story()
    story.open("w")
    story.trouble("leader killed", "")
    story.take("w", errno=110)
    story.calls[-1].began = story.calls[-2].ended - 1
    assert story.judged() == ([], {})


def test_a_call_that_fails_though_nothing_happened_is_refused() -> None:
    story = Story()
    story.open("w")
    story.take("w", errno=5)
    assert story.judged()[0] == [GroupKind.REFUSED]
