"""The values of a group's keys: JSON objects, as in `records.py`."""

from __future__ import annotations

from typing import Any, Final

from dnpipefs.core.group import Cursor, DeadLetter, Held, Returned, Term
from dnpipefs.core.intervals import Stretch, Stretches
from dnpipefs.core.names import Offset, Revision
from dnpipefs.core.records import dump, integer, load
from dnpipefs.errors import CorruptData

_TERM: Final = ("generation", "rewinds")


def encode_cursor(cursor: Cursor) -> bytes:
    """Return the value of a group's ``cursor`` key."""
    return dump({**_term(cursor.term), "message": cursor.message})


def decode_cursor(key: bytes, raw: bytes) -> Cursor:
    """Parse the value of a ``cursor`` key. Raises CorruptData."""
    value = load(key, raw)
    return Cursor(_decode_term(key, value), _count(key, value, "message"))


def encode_held(held: Held) -> bytes:
    """Return the value of a ``member`` key."""
    return dump({**_term(held.term), **_stretches(held.stretches)})


def decode_held(key: bytes, raw: bytes) -> Held:
    """Parse the value of a ``member`` key. Raises CorruptData."""
    value = load(key, raw)
    return Held(_decode_term(key, value), _decode_stretches(key, value))


def encode_returned(returned: Returned) -> bytes:
    """Return the value of a ``returned`` key."""
    return dump(
        {
            **_term(returned.term),
            **_stretches(returned.stretches),
            "redeliveries": returned.redeliveries,
        }
    )


def decode_returned(key: bytes, raw: bytes) -> Returned:
    """Parse the value of a ``returned`` key. Raises CorruptData."""
    value = load(key, raw)
    return Returned(
        _decode_term(key, value), _decode_stretches(key, value), _count(key, value, "redeliveries")
    )


def encode_dead_letter(letter: DeadLetter) -> bytes:
    """Return the value of a ``dead`` key."""
    return dump(
        {
            **_term(letter.term),
            "message": letter.message,
            "offset": letter.offset,
            "deliveries": letter.deliveries,
            "reason": letter.reason,
        }
    )


def decode_dead_letter(key: bytes, raw: bytes) -> DeadLetter:
    """Parse the value of a ``dead`` key. Raises CorruptData."""
    value = load(key, raw)
    return DeadLetter(
        _decode_term(key, value),
        _count(key, value, "message"),
        Offset(_count(key, value, "offset")),
        _count(key, value, "deliveries"),
        str(value.get("reason", "")),
    )


def _term(term: Term) -> dict[str, object]:
    return {"generation": f"{term.generation:x}", "rewinds": term.rewinds}


def _decode_term(key: bytes, value: dict[str, Any]) -> Term:
    try:
        generation = Revision(int(value["generation"], 16))
    except (KeyError, TypeError, ValueError):
        raise CorruptData(f"{key!r}: field 'generation' is missing or not a hexadecimal number") from None
    if generation < 0:
        raise CorruptData(f"{key!r}: field 'generation' is below zero")
    return Term(generation, _count(key, value, "rewinds"))


def _count(key: bytes, value: dict[str, Any], name: str) -> int:
    """Return a field that is a whole number and not below zero. Raises CorruptData."""
    number = integer(key, value, name)
    if number < 0:
        raise CorruptData(f"{key!r}: field {name!r} is below zero")
    return number


def _stretches(stretches: Stretches) -> dict[str, object]:
    return {"stretches": [list(stretch) for stretch in stretches]}


def _decode_stretches(key: bytes, value: dict[str, Any]) -> Stretches:
    found = value.get("stretches")
    if not isinstance(found, list) or not all(_is_counts(item) for item in found):
        raise CorruptData(f"{key!r}: field 'stretches' is missing or not a list of lists of numbers")
    try:
        return Stretches(Stretch(start, end, deliveries) for start, end, deliveries in found)
    except (TypeError, ValueError) as error:
        raise CorruptData(f"{key!r}: field 'stretches' does not parse: {error}") from None


def _is_counts(item: object) -> bool:
    return isinstance(item, list) and all(type(number) is int and number >= 0 for number in item)
