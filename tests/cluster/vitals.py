"""Memory and open files of the mounts' daemons, looked at again and again while other things happen."""

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

from tests.cluster.cluster import Cluster, ClusterMount

EVERY_S: Final = 30.0


@dataclass(frozen=True)
class Sample:
    """What one daemon has at one time."""

    at_s: float
    """Since the first look."""
    mount: str
    pid: int
    memory_kib: int
    files: int


@dataclass(frozen=True)
class Spread:
    """The least, the middle and the most of some figures."""

    least: float
    middle: float
    most: float

    @staticmethod
    def of(figures: Sequence[float]) -> "Spread":
        return Spread(min(figures), median(figures), max(figures))

    def __str__(self) -> str:
        return f"{self.least:.0f} / {self.middle:.0f} / {self.most:.0f}"


def thirds(samples: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
    """Return the samples of the first and of the last third of the time."""
    end = samples[-1].at_s
    return [s for s in samples if s.at_s <= end / 3], [s for s in samples if s.at_s >= end * 2 / 3]


class Vitals:
    """The samples of all mounts."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._began = time.monotonic()
        self._over = threading.Event()
        self.samples: list[Sample] = []

    def of(self, mount: str) -> list[Sample]:
        return [sample for sample in self.samples if sample.mount == mount]

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Look at the beginning of the block, every `EVERY_S` seconds, and at its end."""
        thread = threading.Thread(target=self._run)
        self._began = time.monotonic()
        self._look()
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()
            self._look()

    def _run(self) -> None:
        while not self._over.wait(EVERY_S):
            self._look()

    def _look(self) -> None:
        for mount in self._cluster.mounts:
            with suppress(OSError, KeyError):  # it may be gone, or be a zombie, which has no memory
                self.samples.append(self._sample(mount))

    def _sample(self, mount: ClusterMount) -> Sample:
        process = Path(f"/proc/{mount.pid}")
        told = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
        memory = int(told["VmRSS"].split()[0])
        files = len(os.listdir(process / "fd"))
        return Sample(time.monotonic() - self._began, mount.name, mount.pid, memory, files)
