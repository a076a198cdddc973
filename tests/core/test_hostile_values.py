"""Whatever stands in etcd, a decoder returns what it means or says that it is corrupt, and soon.

One table of all decoders; a test finds those that are not in it.
"""

import inspect
import json
import struct
import sys
import zlib
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dnpipefs import core
from dnpipefs.core import batch, segment
from dnpipefs.core.append import Fence, decode_writer
from dnpipefs.core.batch import Boundaries, Chunk, Payload
from dnpipefs.core.compression import UNPACKED_LIMIT, ZSTD, pack
from dnpipefs.core.group import Cursor, DeadLetter, Held, Returned, Term
from dnpipefs.core.group_records import (
    decode_cursor,
    decode_dead_letter,
    decode_held,
    decode_returned,
    encode_cursor,
    encode_dead_letter,
    encode_held,
    encode_returned,
)
from dnpipefs.core.intervals import Stretch, Stretches
from dnpipefs.core.keys import Beside, BodyKey, KeySchema
from dnpipefs.core.names import MAX_FILE_ID, FileId, Kind, Offset, Revision, SessionId
from dnpipefs.core.records import (
    Head,
    Index,
    Inode,
    Mark,
    Meta,
    SegmentInfo,
    SessionRecord,
    decode_time,
    encode_session,
    encode_time,
)
from dnpipefs.errors import CorruptData, UnsupportedFormat

KEYS = KeySchema()
KEY = b"/dnp/the-key"
TOPIC = FileId(0xAB)
SEGMENTS = (
    SegmentInfo(10, 99, 2, 5, 7),
    SegmentInfo(1 << 20, 5000, 3, 6, 6, BodyKey(SessionId(0x7F), 3, Beside(9, 5000))),
)
TERM = Term(Revision(5), 1)
STRETCHES = Stretches([Stretch(0, 4, 0), Stretch(7, 9, 2)])

Decoder = Callable[[bytes], object]


def encode(chunk: Chunk, *, compress: bool = False, beside: bool = False) -> bytes:
    payload = Payload.of([chunk], compress=compress)
    return payload.encode(generation=Revision(5), time_ns=6, session=SessionId(7), sequence=8, beside=beside)


def read_batch(raw: bytes) -> object:
    found = batch.decode(raw)
    batch.verify(found)
    return list(found.split())


def read_segment(raw: bytes) -> object:
    found = segment.decode(raw)
    segment.verify(found)
    return list(found.timed())


LINES = encode(Chunk.of_lines(b"one\ntwo\n"))
PACKED = encode(Chunk.of_message(b"ab\n" * 500), compress=True)
VALUES: dict[str, tuple[Decoder, list[bytes]]] = {
    "Meta.decode": (lambda raw: Meta.decode(KEY, raw), [Meta("c1").encode()]),
    "Inode.decode": (
        lambda raw: Inode.decode(KEY, raw),
        [Inode(TOPIC, Kind.TOPIC, 0o644, 1000, 100, 5, 7).encode()],
    ),
    "Head.decode": (
        lambda raw: Head.decode(KEY, raw),
        [Head(Offset(2_000_000), 50, Offset(7), 1, {"7f": 3}, Revision(12), SEGMENTS).encode()],
    ),
    "Index.decode": (
        lambda raw: Index.decode(KEY, raw, Offset(3)),
        [Index(Offset(3), 1, SEGMENTS).encode()],
    ),
    "Mark.decode": (
        lambda raw: Mark.decode(KEY, raw),
        [
            Mark(Mark.RESET, 9).encode(),
            Mark(Mark.SEAL, 9, Offset(3), 1, SEGMENTS).encode(),
            Mark(Mark.TRIM, 9, Offset(3), 1).encode(),
        ],
    ),
    "SessionRecord.decode": (
        lambda raw: SessionRecord.decode(KEY, raw),
        [
            encode_session(host="web1", pid=1, mountpoint="/dnp", version="0"),
            encode_session(host="web1", pid=1, mountpoint=None, version="0", since_ns=5),
        ],
    ),
    "decode_time": (lambda raw: decode_time(KEY, raw), [encode_time(11)]),
    "decode_writer": (lambda raw: decode_writer(KEY, raw), [Fence(Revision(1), 2, 3).encode()]),
    "decode_cursor": (lambda raw: decode_cursor(KEY, raw), [encode_cursor(Cursor(TERM, 4))]),
    "decode_held": (lambda raw: decode_held(KEY, raw), [encode_held(Held(TERM, STRETCHES))]),
    "decode_returned": (
        lambda raw: decode_returned(KEY, raw),
        [encode_returned(Returned(TERM, STRETCHES))],
    ),
    "decode_dead_letter": (
        lambda raw: decode_dead_letter(KEY, raw),
        [encode_dead_letter(DeadLetter(TERM, 3, Offset(4), 5, "why"))],
    ),
    "batch.decode": (read_batch, [LINES, encode(Chunk.of_message(b"a\nb")), PACKED]),
    "batch.decode_reference": (batch.decode_reference, [encode(Chunk.of_lines(b"one\n"), beside=True)]),
    "batch.peek_time_ns": (batch.peek_time_ns, [LINES]),
    "batch.peek_generation": (batch.peek_generation, [LINES]),
    "segment.decode": (
        read_segment,
        [
            segment.merge([batch.decode(one) for one in blocks], offset=Offset(6), compress=compress)
            for blocks, compress in (([LINES, PACKED], True), ([LINES, LINES], False))
        ],
    ),
}
"""Each decoder by its name, with everything that its result is used for, and values that it takes."""

PARSERS: dict[str, tuple[Decoder, bytes]] = {
    "parse_entry": (KEYS.parse_entry, KEYS.entry(TOPIC, b"name")),
    "parse_tail_topic": (KEYS.parse_tail_topic, KEYS.mark(TOPIC)),
    "parse_tail": (
        lambda key: KEYS.parse_tail(TOPIC, key),
        KEYS.batch(TOPIC, SessionId(7), 1, 2, 3, Beside(1, 5)),
    ),
    "parse_segment": (
        lambda key: KEYS.parse_segment(TOPIC, key),
        KEYS.segment(TOPIC, Revision(1), Offset(2), 3),
    ),
    "parse_index_page": (
        lambda key: KEYS.parse_index_page(TOPIC, key),
        KEYS.index_page(TOPIC, Revision(1), Offset(2)),
    ),
    "parse_body_part": (
        lambda key: KEYS.parse_body_part(TOPIC, key),
        KEYS.body_parts(TOPIC, Revision(1), BodyKey(SessionId(1), 2, Beside(3, 4)))[0],
    ),
    "parse_pending": (
        KEYS.parse_pending,
        KEYS.pending(TOPIC, Revision(1), BodyKey(SessionId(1), 2, Beside(3, 4))),
    ),
    "parse_writer": (lambda key: KEYS.parse_writer(TOPIC, key), KEYS.writer(TOPIC, SessionId(1))),
    "parse_group": (lambda key: KEYS.parse_group(TOPIC, key), KEYS.cursor(TOPIC, b"workers")),
    "parse_member": (KEYS.parse_member, KEYS.member(TOPIC, b"workers", SessionId(1))),
    "parse_trash": (KEYS.parse_trash, KEYS.trash(TOPIC)),
    "parse_session": (KEYS.parse_session, KEYS.session(SessionId(1))),
    "parse_topic": (lambda key: KEYS.parse_topic(KEYS.families[0], key), KEYS.epoch(TOPIC)),
}

DEEP = b"[" * 100_000
HUGE = b"9" * 10_000
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
numbers = st.sampled_from([-1, 0, 1, 2**31, 2**32, 2**52, 2**63 - 1, 2**63, -(2**63), 10**30, 10**400])


def survives(decode: Decoder, raw: bytes) -> object:
    """Return what *raw* decodes to, None if it is corrupt; anything else that is raised fails the test."""
    try:
        return decode(raw)
    except (CorruptData, UnsupportedFormat):
        return None


def test_all_decoders_are_here() -> None:
    found = set()
    for path in Path(next(iter(core.__path__))).glob("[!_]*.py"):
        module = import_module(f"dnpipefs.core.{path.stem}")
        for name, one in vars(module).items():
            if getattr(one, "__module__", None) != module.__name__:
                continue
            if inspect.isclass(one) and isinstance(vars(one).get("decode"), classmethod):
                found.add(f"{name}.decode")
            elif inspect.isfunction(one) and name.startswith(("decode", "peek_")):
                found.add(f"{path.stem}.{name}" if path.stem in ("batch", "segment") else name)
    assert found == set(VALUES)
    assert {name for name, _ in inspect.getmembers(KeySchema) if name.startswith("parse_")} == set(PARSERS)


@pytest.mark.parametrize("name", VALUES)
def test_what_is_written_is_read(name: str) -> None:
    decode, values = VALUES[name]
    for raw in values:
        decode(raw)


@pytest.mark.parametrize("name", VALUES)
@given(raw=st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()))
@example(raw=DEEP)
@example(raw=b'{"time":' + HUGE + b"}")
@example(raw=HUGE + b":" + HUGE)
@example(raw=b"")
def test_any_bytes(name: str, raw: bytes) -> None:
    survives(VALUES[name][0], raw)


@pytest.mark.parametrize("name", VALUES)
@given(data=st.data())
def test_damaged_values(name: str, data: st.DataObject) -> None:
    decode, values = VALUES[name]
    raw = bytearray(data.draw(st.sampled_from(values)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at] = data.draw(st.integers(0, 255))
    survives(decode, bytes(raw))
    survives(decode, bytes(raw[: data.draw(st.integers(0, len(raw)))]))
    survives(decode, bytes(raw) + data.draw(st.binary(max_size=20)))


@pytest.mark.parametrize("name", [name for name in VALUES if VALUES[name][1][0][:1] == b"{"])
@given(data=st.data())
def test_objects_with_other_fields(name: str, data: st.DataObject) -> None:
    """Whatever is accepted is a number that the kernel and other programs can take."""
    decode, values = VALUES[name]
    value: dict[str, Any] = json.loads(data.draw(st.sampled_from(values)))
    field = data.draw(st.sampled_from(sorted(value)))
    before = value[field]
    if isinstance(before, list) and before and data.draw(st.booleans()):
        row = data.draw(st.sampled_from(before))
        row[data.draw(st.integers(0, len(row) - 1))] = data.draw(numbers | json_values)
    elif isinstance(before, str) and data.draw(st.booleans()):
        value[field] = f"{data.draw(numbers):x}"
    else:
        value[field] = data.draw(numbers | json_values)
    found = survives(decode, json.dumps(value).encode())
    if isinstance(found, Inode):
        assert 0 < found.id < MAX_FILE_ID
        assert 0 <= found.mode <= 0o7777
        struct.pack("IIqq", found.uid, found.gid, found.mtime_ns, found.ctime_ns)
    elif isinstance(found, Head):
        struct.pack("QQQQ", found.first, found.offset, found.first_message, found.messages)
        assert found.first <= found.offset
        assert found.newest.start >= 0
        assert all(info.body is None or info.body.beside.parts < 5_000 for info in found.segments)
    elif isinstance(found, int):
        struct.pack("q", found)


def sealed(raw: bytes, prefix: int, position: int, number: int) -> bytes:
    """Return a batch or segment with a number of its header changed, and a checksum that fits."""
    changed = bytearray(raw)
    struct.pack_into(">I", changed, position, number)
    struct.pack_into(">I", changed, prefix - 4, zlib.crc32(changed[prefix:]))
    return bytes(changed)


@pytest.mark.parametrize(
    ("name", "positions"), [("batch.decode", range(40, 48, 4)), ("segment.decode", range(40, 60, 4))]
)
@given(data=st.data())
def test_headers_that_lie(name: str, positions: range, data: st.DataObject) -> None:
    """The checksum fits: somebody has taken trouble."""
    decode, values = VALUES[name]
    raw = data.draw(st.sampled_from(values))
    number = data.draw(st.integers(0, 2**32 - 1) | st.integers(0, 5))
    survives(decode, sealed(raw, 8, data.draw(st.sampled_from(positions)), number))


def test_a_few_bytes_do_not_become_gigabytes() -> None:
    _, bomb = pack(b"\0" * (UNPACKED_LIMIT + (1 << 20)), wanted=True)
    assert len(bomb) < UNPACKED_LIMIT / 1000
    for size in (100, 2**32 - 1):
        header = struct.pack(">QQQQII", 5, 6, 7, 8, 1, size)
        check = zlib.crc32(bomb, zlib.crc32(header))
        with pytest.raises(CorruptData, match="does not unpack to"):
            batch.decode(struct.pack(">BBBBI", 1, 0, ZSTD, 0, check) + header + bomb)


def test_a_length_has_an_end() -> None:
    """Its digits are added up one by one: a megabyte of them would take minutes."""
    for digits in (9, 10, 1_000_000):
        header = struct.pack(">QQQQII", 5, 6, 7, 8, 1, 1)
        body = b"\x81" * digits + b"\0"
        check = zlib.crc32(body, zlib.crc32(header))
        with pytest.raises(CorruptData):
            batch.decode(struct.pack(">BBBBI", 1, Boundaries.LENGTHS, 0, 0, check) + header + body)


@pytest.mark.parametrize("name", PARSERS)
@given(data=st.data())
def test_keys(name: str, data: st.DataObject) -> None:
    parse, key = PARSERS[name]
    parse(key)
    survives(parse, data.draw(st.binary(max_size=80)))
    at, end = (data.draw(st.integers(0, len(key))) for _ in range(2))
    survives(parse, key[:at] + data.draw(st.binary(max_size=20)) + key[end:])


def test_the_limit_of_digits_is_on() -> None:
    """Python's own: without it numbers of a megabyte take minutes."""
    assert 0 < sys.get_int_max_str_digits() <= 5_000
