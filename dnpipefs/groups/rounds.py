"""A member's looks at its group: who waits for one, and what those learn who wait for a message.

`Member` looks, and says how each look ended; this module counts them. It knows nothing of records.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from dnpipefs import etcd


class Rounds:
    """The looks of one member."""

    def __init__(self, check: Callable[[], None], stir: Callable[[], None]) -> None:
        """Call *check* before each wait: it raises if no look is to come. And *stir*, which asks for one."""
        self._check: Final = check
        self._stir: Final = stir
        self.asked = 0
        """How many callers want to know for certain whether there is something."""
        self.hurried = 0
        """How many callers wait until what was acknowledged is so in etcd."""
        self.looks = 0
        """How often everything was looked at, and what was found to be put was."""
        self._empty = 0
        """How often there was nothing to claim."""
        self.left = False
        """There was a message that no reader had, at the last look."""
        self.refused: etcd.SpaceExceeded | None = None
        """With what the last change was refused, if it was."""
        self._parked: Final = trio.lowlevel.ParkingLot()

    @property
    def claim_refused(self) -> etcd.SpaceExceeded | None:
        """Why no reader gets a message that is there."""
        return self.refused if self.left else None

    def end(self, *, empty: bool) -> None:
        """Everything was looked at; *empty*: there was nothing to claim."""
        self.looks += 1
        self._empty += empty
        self.refused = None
        self.tell()

    def refuse(self, error: etcd.SpaceExceeded) -> None:
        """Take in that etcd has no room for a change."""
        self._empty += not self.left
        self.refused = error
        self.tell()

    def tell(self) -> None:
        """Let all who wait look again at what they wait for."""
        self._parked.unpark_all()

    def check_room(self, before: etcd.SpaceExceeded | None) -> None:
        """Raise what a claim was refused with, unless that was *before*."""
        if self.left:
            self._check_refused(before)

    async def until_empty(self, unless: Callable[[], bool]) -> None:
        """Wait until there certainly is nothing to claim, *unless* something shows. Raises OutOfSpace."""
        wanted, before = self._empty + 2, self.refused  # the look under way may have begun too early
        self.asked += 1
        try:
            while self._empty < wanted and not unless():
                self._check()
                self.check_room(before)
                self._stir()
                await self._parked.park()
        finally:
            self.asked -= 1

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until changes have made *condition* true. Raises OutOfSpace when etcd has no room for one."""
        before = self.refused
        while not condition():
            self._check()
            self._check_refused(before)
            self.hurried += 1
            self._stir()
            try:
                await self._parked.park()
            finally:
                self.hurried -= 1

    async def until_over(self, over: trio.Event) -> None:
        """Wait for the last one. Raises OutOfSpace when etcd has no room for what is to be put."""
        before = self.refused
        while not over.is_set():
            self._check_refused(before)
            await self._parked.park()

    def _check_refused(self, before: etcd.SpaceExceeded | None) -> None:
        if self.refused is not None and self.refused is not before:
            raise self.refused
