"""Judges what readers saw of one topic by what writers were told: see `topic_log` for what can be wrong.

A history is what writers were told (`Push`, `Reset`) and what readers saw (`Observation`), each with
when the call began and ended by one monotonic clock of the machine.
"""

from dataclasses import dataclass, field

from tests.support.messages import DEFINITE_ERRNOS, MessageId, Outcome, message, parse
from tests.support.topic_log import NEVER, Anomaly, Kind, Push, Reset, Scan, TopicLog

__all__ = [
    "DEFINITE_ERRNOS",
    "Anomaly",
    "History",
    "Kind",
    "MessageId",
    "Observation",
    "Outcome",
    "Push",
    "Reset",
    "message",
    "parse",
]


@dataclass(frozen=True)
class Observation:
    """What one reader saw from the start of the topic to its end, opened at `began`.

    0 for a reader of whom is required only that what it saw is a beginning.
    """

    reader: str
    began: int
    data: bytes


@dataclass
class History:
    """Everything that was done to one topic and seen of it."""

    pushes: list[Push] = field(default_factory=list)
    resets: list[Reset] = field(default_factory=list)
    observations: list[Observation] = field(default_factory=list)

    def count(self, outcome: Outcome) -> int:
        """Return how many pushes ended like that."""
        return sum(push.outcome is outcome for push in self.pushes)

    def check(self) -> list[Anomaly]:
        """Return what is wrong; empty if nothing is."""
        scans = [
            Scan(seen.reader, seen.began, 0, NEVER, 0, seen.data, end_began=seen.began)
            for seen in self.observations
        ]
        return TopicLog("topic", pushes=self.pushes, resets=self.resets, scans=scans).check()
