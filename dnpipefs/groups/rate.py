"""How fast the readers of a host take messages."""

from __future__ import annotations

from typing import Final

AVERAGE_S: Final = 0.2
"""Over how long a rate is an average."""


class Rate:
    """Counts, and says how many a second there were lately. The caller has the clock."""

    def __init__(self, now: float) -> None:
        self.per_second = 0.0
        """As it was when it was last measured."""
        self._count = 0
        self._measured_at = now

    def count(self) -> None:
        """Count one."""
        self._count += 1

    def forget(self) -> None:
        """Begin anew, at none a second."""
        self.per_second, self._count = 0.0, 0

    def measure(self, now: float) -> float:
        """Return how many a second there were lately."""
        elapsed = now - self._measured_at
        if elapsed >= AVERAGE_S / 10:
            weight = min(1.0, elapsed / AVERAGE_S)
            self.per_second += weight * (self._count / elapsed - self.per_second)
            self._count, self._measured_at = 0, now
        return self.per_second
