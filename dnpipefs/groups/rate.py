"""How fast the readers of a host take messages, while there are any for them.

Where many hosts share a group, readers wait for their host's next claim most of the time. A rate that counted
this time would make claims small, and so the next wait come sooner: hosts that get little would ask for
little, and all of them for ever more often. So pauses do not count, unless they are long: what comes after
those may be other work.
"""

from __future__ import annotations

from typing import Final

AVERAGE_S: Final = 0.2
"""Over how long a rate is an average."""
PAUSE_S: Final = 0.5
"""A pause so long ends what was known."""
FASTEST_S: Final = 20e-6
"""What one takes at least: clocks and schedulers make less of it, sometimes."""


class Rate:
    """Counts, and says how many a second there were lately. The caller has the clock."""

    def __init__(self, now: float) -> None:
        self.per_second = 0.0
        """As it was when it was last measured."""
        self._count = 0
        self._measured_at = now
        self._paused_s = 0.0
        """How much of the time since was pauses, as far as they are accounted for."""
        self._accounted_at: float | None = None
        """Up to when the present pause is; None: there is none."""
        self._pause_began = now

    def count(self, now: float) -> None:
        """Count one; a pause ends."""
        self._account(now)
        self._accounted_at = None
        self._count += 1

    def pause(self, now: float) -> None:
        """There is nothing to count until the next one comes."""
        if self._accounted_at is None:
            self._accounted_at = self._pause_began = now

    def forget(self) -> None:
        """Begin anew, at none a second."""
        self.per_second, self._count = 0.0, 0

    def measure(self, now: float) -> float:
        """Return how many a second there were lately."""
        self._account(now)
        elapsed = now - self._measured_at
        if elapsed >= AVERAGE_S / 10:
            busy = max(elapsed - self._paused_s, self._count * FASTEST_S)
            if busy > 0:
                weight = min(1.0, elapsed / AVERAGE_S)
                self.per_second += weight * (self._count / busy - self.per_second)
            self._count, self._measured_at, self._paused_s = 0, now, 0.0
        return self.per_second

    def _account(self, now: float) -> None:
        if self._accounted_at is not None:
            self._paused_s += now - self._accounted_at
            self._accounted_at = now
            if now - self._pause_began >= PAUSE_S:
                self.forget()
