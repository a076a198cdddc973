"""Doing the same for many things, some of them side by side."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

import trio

Item = TypeVar("Item")


async def for_each(items: Iterable[Item], do: Callable[[Item], Awaitable[None]], *, at_once: int) -> None:
    """Await *do* for each item, *at_once* at a time; the first exception ends it, and comes out alone."""
    waiting = iter(items)

    async def work() -> None:
        for item in waiting:
            await do(item)

    try:
        async with trio.open_nursery() as nursery:
            for _ in range(at_once):
                nursery.start_soon(work)
    except BaseExceptionGroup as group:  # raised below: here it would become its own context's member
        failure = group.exceptions[0]
    else:
        return
    raise failure
