"""What one look at a cluster gives, and what two of them give besides: rates. Pure.

Rates count what was pushed, by message numbers and offsets, which do not change when retention removes
messages. A topic that was reset between two looks counts from its new beginning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dnpipefs.core.names import FileId
from dnpipefs.etcd import Health
from dnpipefs.log.log import TopicStat
from dnpipefs.log.session import Host
from dnpipefs.overview import TopicOverview


class Rate(NamedTuple):
    """What is pushed to a topic, a second."""

    messages: float
    bytes: float


@dataclass(frozen=True, slots=True)
class Sample:
    """All topics and hosts at one time."""

    at: float
    """When it was asked for, seconds by a clock that only goes forward."""
    time_ns: int
    """The same by the wall clock, nanoseconds since 1970."""
    topics: Sequence[TopicOverview]
    hosts: Sequence[Host]


@dataclass(frozen=True, slots=True)
class Picture:
    """What is to be shown."""

    sample: Sample
    rates: Mapping[FileId, Rate]
    """Of all topics, or none while there is one look only."""
    measured_s: float | None
    """The time between the two looks that rates were measured by, seconds; None if there is one only."""
    health: Health | None
    """None if etcd has not been looked at yet."""


def picture(before: Sample | None, now: Sample, health: Health | None) -> Picture:
    """Put together what is to be shown of two looks, one after the other."""
    if before is None:
        return Picture(now, {}, None, health)
    return Picture(now, _rates(before, now), now.at - before.at, health)


def _rates(before: Sample, now: Sample) -> dict[FileId, Rate]:
    earlier = {topic.id: topic.stat for topic in before.topics}
    passed = now.at - before.at
    return {
        topic.id: _rate(earlier.get(topic.id), topic.stat, passed)
        for topic in now.topics
        if topic.stat is not None
    }


def _rate(before: TopicStat | None, now: TopicStat, passed_s: float) -> Rate:
    end, messages = int(now.end), now.first_message + now.messages
    if before is not None and before.generation == now.generation:
        end, messages = max(0, end - before.end), max(0, messages - before.first_message - before.messages)
    return Rate(messages / passed_s, end / passed_s)
