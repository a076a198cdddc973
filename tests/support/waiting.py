"""Waiting for what other processes do: there is no event to wait for, so conditions are looked at again."""

import time
from collections.abc import Callable
from typing import TypeVar

WITHIN_S = 15.0
"""For what should be a matter of milliseconds, on a machine that has other things to do."""

T = TypeVar("T")


def eventually(condition: Callable[[], T], *, within_s: float = WITHIN_S) -> T:
    """Return the first true value of `condition`; an AssertionError with its last value if none comes."""
    deadline = time.monotonic() + within_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_s:g} s; last seen: {value!r}")
        time.sleep(0.01)
