"""Where in a topic to begin reading, as users say it: ``first``, ``last``, an offset, a time."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final, Literal, cast

from dnpipefs.errors import InvalidArgument

Place = Literal["first", "last"] | int | datetime
"""All there is, only what comes, a byte offset, or a time."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def parse_place(text: str) -> Place:
    """Return what users mean by *text*. Raises InvalidArgument."""
    if text in ("first", "last"):
        return cast("Place", text)
    if re.fullmatch(r"[0-9]{1,18}", text):
        return int(text)
    try:
        moment = datetime.fromisoformat(text)
        nanoseconds(moment)
    except (ValueError, OverflowError):  # no time, or one at an end of the calendar, beyond it elsewhere
        raise InvalidArgument(
            f"{text!r} is neither 'first', 'last', an offset in bytes nor a time such as "
            "2026-11-21 or 2026-11-21T08:00:00Z"
        ) from None
    return moment


def nanoseconds(moment: datetime) -> int:
    """Return nanoseconds since 1970 UTC; a naive *moment* is local time."""
    return (moment.astimezone(UTC) - _EPOCH) // timedelta(microseconds=1) * 1000


def timestamp(time_ns: int) -> str:
    """Return a time as RFC 3339 has it, in UTC with nanoseconds: what `parse_place` takes."""
    seconds, fraction = divmod(time_ns, 10**9)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{fraction:09}Z"
