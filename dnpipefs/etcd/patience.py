"""How long the start of a server is waited for: for as long as it works.

A database of gigabytes is read and indexed before the server answers, on a slow disk for minutes. A server
that was ended after a fixed time would never come up; one that does nothing is given up.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

WORK_S: Final = 3.0
"""Work within the time to wait that lets the wait begin anew: an idle server does a tenth of that."""
READ_BYTES_PER_S: Final = 20 * 1024**2
"""What is read from the disk counts as work, too: so much like a second of CPU, for disks that are slow."""
WORD_AFTER_S: Final = 10.0
"""After that a user is told what is waited for, and again after twice that time, and so on."""


class Patience:
    """With one process that starts. Times are those of trio's clock."""

    def __init__(self, pid: int, timeout_s: float, now: float) -> None:
        self._pid: Final = pid
        self._timeout_s: Final = timeout_s
        self._begun: Final = now
        self._deadline = now + timeout_s
        self._work = work_of(pid)
        self._word_after_s = WORD_AFTER_S

    def ends(self, now: float) -> bool:
        """Tell whether the process has done nothing that counts for the time to wait."""
        work = work_of(self._pid)
        if work >= self._work + WORK_S:
            self._work, self._deadline = work, now + self._timeout_s
        return now >= self._deadline

    def waited_s(self, now: float) -> float:
        """Return how long it has lasted."""
        return now - self._begun

    def is_word_due(self, now: float) -> bool:
        """Tell whether it is time to say that this lasts."""
        if self.waited_s(now) < self._word_after_s:
            return False
        self._word_after_s *= 2
        return True


def work_of(pid: int) -> float:
    """Return what a process has done so far, in seconds of CPU and what counts like them; 0 if it is gone."""
    work = 0.0
    with suppress(OSError):
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        work += sum(map(int, after_name[14 - 3 : 16 - 3])) / os.sysconf("SC_CLK_TCK")
        counted = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
        work += int(counted["read_bytes"]) / READ_BYTES_PER_S
    return work
