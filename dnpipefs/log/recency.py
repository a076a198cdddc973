"""How many messages of a topic were pushed lately: found in what is stored, not counted all the time."""

from __future__ import annotations

from collections.abc import Sequence

from dnpipefs.core.names import Offset
from dnpipefs.core.view import Entry, TopicView
from dnpipefs.log.reader import Message, Reader


async def messages_since(reader: Reader, since_ns: int) -> int:
    """Return how many messages were pushed at *since_ns* or later (nanoseconds since 1970 UTC).

    By the clocks of the hosts that pushed them: a search that takes their times for ascending. Reads as many
    blocks as the logarithm of the tail's length. Raises TopicGone, TimedOut.
    """
    view = await reader.view()
    generation = view.generation
    entries = _candidates(view, since_ns)
    low, high = 0, len(entries) - 1
    while low < high:  # the last entry that is older: what is wanted begins behind it, or in a segment
        middle = (low + high + 1) // 2
        first = await _first_message(reader, entries[middle].start)
        if first is None or first.time_ns >= since_ns:
            high = middle - 1
        else:
            low = middle
    if not entries:
        return 0
    messages, _ = await reader.messages(entries[low].start, 1)
    number = entries[low].first_message
    for message in messages:
        if message.time_ns >= since_ns:
            break
        number += 1
    view = await reader.view()
    return max(0, view.messages - number) if view.generation == generation else view.messages


def _candidates(view: TopicView, since_ns: int) -> Sequence[Entry]:
    """Return the entries that may hold the first such message."""
    sealed = view.sealed
    first = len(sealed)
    while first and sealed[first - 1].info.newest_ns >= since_ns:
        first -= 1
    return sealed[first : first + 1] if first < len(sealed) else list(view.entries)


async def _first_message(reader: Reader, offset: Offset) -> Message | None:
    messages, _ = await reader.messages(offset, 1)
    return next(messages, None)
