"""Looking at a cluster again and again, while somebody watches.

Tasks: one asks for topics and hosts, one for the health of etcd, so that a member that does not answer
holds up nothing but news of the members. Each begins a look an interval after the last one began, but not
before it has rested as long as that one took. What fails is told and tried again: whoever watches wants to
see it come back.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final

import trio

from dnpipefs.api import Dnp
from dnpipefs.errors import DnpError
from dnpipefs.etcd import Health
from dnpipefs.top.sample import Picture, Sample, picture

SHORTEST_INTERVAL_S: Final = 0.2
"""The shortest time between two looks."""


async def look(dnp: Dnp) -> Sample:
    """Look at topics and hosts once. Raises DnpError."""
    at, time_ns = trio.current_time(), time.time_ns()
    return Sample(at, time_ns, await dnp.overview(), await dnp.hosts())


async def look_twice(dnp: Dnp, interval_s: float) -> Picture:
    """Look once, or twice with so many seconds between, if that is not 0, to tell rates. Raises DnpError."""
    before = None
    if interval_s:
        before = await look(dnp)
        await trio.sleep_until(before.at + interval_s)
    return picture(before, await look(dnp), await dnp.health())


class Watcher:
    """Looks again and again; `changed` is called when there is something new."""

    def __init__(self, dnp: Dnp, interval_s: float, changed: Callable[[], None]) -> None:
        self._dnp: Final = dnp
        self._changed: Final = changed
        self._stirred = trio.Event()
        self.interval_s = interval_s
        self.paused = False
        self.picture: Picture | None = None
        """None until the first look is done."""
        self.health: Health | None = None
        """None until the first look is done; it is in the picture, too."""
        self.failure: DnpError | None = None
        """Why the last look at the topics failed."""
        self._away_since: float | None = None

    @property
    def away_s(self) -> float | None:
        """For how long etcd has not answered, seconds; None if it does."""
        return None if self._away_since is None else trio.current_time() - self._away_since

    def pause(self) -> None:
        """Look no more, or go on."""
        self.paused = not self.paused
        self._stir()

    def set_interval(self, interval_s: float) -> None:
        """Look that often from now on."""
        self.interval_s = interval_s
        self._stir()

    def _stir(self) -> None:
        self._stirred.set()
        self._stirred = trio.Event()
        self._changed()

    async def run(self) -> None:
        """Look until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._repeat, self._look_at_topics)
            nursery.start_soon(self._repeat, self._look_at_etcd)

    async def _repeat(self, action: Callable[[], Awaitable[None]]) -> None:
        while True:
            begun = trio.current_time()
            await action()
            self._changed()
            rested = 2 * trio.current_time() - begun
            while self.paused or trio.current_time() < max(begun + self.interval_s, rested):
                until = math.inf if self.paused else max(begun + self.interval_s, rested)
                with trio.move_on_at(until):
                    await self._stirred.wait()

    async def _look_at_topics(self) -> None:
        try:
            sample = await look(self._dnp)
        except DnpError as error:
            self.failure = error
            return
        self.failure = None
        before = self.picture.sample if self.picture is not None else None
        self.picture = picture(before, sample, self.health)

    async def _look_at_etcd(self) -> None:
        begun = trio.current_time()
        self.health = await self._dnp.health()
        if self.picture is not None:
            self.picture = replace(self.picture, health=self.health)
        if self.health.read_s is not None:
            self._away_since = None
        elif self._away_since is None:
            self._away_since = begun
