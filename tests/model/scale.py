"""The log at a ten-thousandth of its size: all its limits, small enough that a scenario meets each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import pytest

IN_THE_TAIL: Final = 300
PART_BYTES: Final = 900
KEPT_WRITERS: Final = 1
CACHE_BYTES: Final = 6_000

_LIMITS: Final = {
    "core.keys.PART_BYTES": PART_BYTES,
    "log.pushes.PART_BYTES": PART_BYTES,
    "log.sealer.PART_BYTES": PART_BYTES,
    "log.pushes.LARGE_BYTES": IN_THE_TAIL,
    "log.appender.BATCH_LIMIT": 800,
    "core.sealing.STEP_BATCHES": 9,
    "core.sealing.STEP_WRITERS": 3,
    "core.sealing.STEP_LARGE": 2,
    "core.sealing.STEP_MERGED": 2,
    "core.sealing.HEAD_SEGMENTS": 6,
    "core.sealing.MIN_SEGMENT_BYTES": 40,
    "log.sealer.SEGMENT_BYTES": 700,
    "log.sealer.TRIM_STEP": 2,
    "log.sealer.KEPT_WRITERS": KEPT_WRITERS,
    "log.schedule.TAIL_BATCHES": 12,
    "core.tails.LOOK_BATCHES": 6,
    "core.tails.LOOK_BYTES": 500,
    "log.sweeper.STEP_KEYS": 7,
    "log.sweeper.STEP_VALUES": 3,
    "log.content.FETCH_LIMIT": 1500,
    "log.content.FETCH_KEYS": 5,
    "log.schedule.PAGE_KEYS": 5,
}


@contextmanager
def small_scale() -> Iterator[pytest.MonkeyPatch]:
    """Scale down until the block ends."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in _LIMITS.items():
            patch.setattr(f"dnpipefs.{name}", value)
        yield patch
