"""The segment format: merging loses nothing, damage is detected, and golden bytes hold the format still."""

import struct
import zlib
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnpipefs.core.batch import Batch, Boundaries, Chunk
from dnpipefs.core.batch import decode as decode_batch
from dnpipefs.core.batch import encode as encode_batch
from dnpipefs.core.names import Offset, Revision, SessionId
from dnpipefs.core.segment import HEADER_BYTES, Block, Segment, decode, merge, verify
from dnpipefs.errors import CorruptData, UnsupportedFormat

times = st.one_of(st.integers(0, 2**63 - 1), st.integers(10**18, 10**18 + 300))
texts = st.lists(st.sampled_from([b"\n", b"a", b"bc", b"\xff\0"]), max_size=8).map(b"".join)
contents = st.one_of(st.binary(max_size=6), st.integers(120, 140).map(lambda size: b"\n" * size))
chunks = st.one_of(texts.map(Chunk.of_lines), contents.map(Chunk.of_message))
batches = st.builds(
    lambda parts, time_ns: batch(*parts, time_ns=time_ns), st.lists(chunks, min_size=1, max_size=3), times
)


def batch(*parts: Chunk, time_ns: int) -> Batch:
    return decode_batch(
        encode_batch(parts, generation=Revision(5), time_ns=time_ns, session=SessionId(7), sequence=9)
    )


def lines(text: bytes, time_ns: int) -> Batch:
    return batch(Chunk.of_lines(text), time_ns=time_ns)


def message(data: bytes, time_ns: int) -> Batch:
    return batch(Chunk.of_message(data), time_ns=time_ns)


def sealed(blocks: Sequence[Block], *, offset: int = 6, compress: bool = False) -> Segment:
    segment = decode(merge(blocks, offset=Offset(offset), compress=compress))
    verify(segment)
    return segment


NOW = 1_795_299_868_389_572_293
GOLDEN = [lines(b"a\nb\n", NOW), lines(b"c", NOW - 1000)]
LINES = merge(GOLDEN, offset=Offset(6), compress=False)
LENGTHS = merge([*GOLDEN, lines(b"d\n", NOW)], offset=Offset(6), compress=False)
PACKED = merge([lines(b"the same line\n" * 40, NOW), *GOLDEN], offset=Offset(6), compress=True)
NEWLINES_INSIDE = merge([message(b"a\nb\n", NOW), message(b"c\n", NOW)], offset=Offset(6), compress=False)


def test_golden() -> None:
    """A change of these bytes is a new format version."""
    assert (
        bytes.fromhex(
            "01 00 00 00 2ab7a202 0000000000000005 0000000000000006 18ea2fb7e8aa7ec5 18ea2fb7e8aa7add"
            "00000003 00000005 00000002 00000005 00000000"
            "02 00 01 cf0f"
        )
        + b"a\nb\nc"
    ) == LINES
    assert LINES[:4] == b"\1\0\0\0"
    assert LENGTHS[:4] == b"\1\1\0\0"
    assert PACKED[:4] == b"\1\0\1\0"
    assert struct.unpack(">I", LINES[4:8])[0] == zlib.crc32(LINES[8:])


@given(st.lists(batches, min_size=1, max_size=5), st.integers(0, 2**63 - 1), st.booleans())
def test_a_segment_has_the_messages_and_times_of_its_batches(
    blocks: list[Batch], offset: int, compress: bool
) -> None:
    """Invariant 4 of the design, invariant 1 of sealing."""
    segment = sealed(blocks, offset=offset, compress=compress)
    assert list(segment.timed()) == [one for block in blocks for one in block.timed()]
    assert segment.data == b"".join(block.data for block in blocks)
    assert (segment.generation, segment.offset) == (5, offset)
    assert segment.messages == sum(block.messages for block in blocks)
    assert segment.runs == [(block.messages, block.time_ns) for block in blocks]


@given(st.lists(batches, min_size=2, max_size=6), st.data())
def test_merging_what_was_merged_is_merging_all(blocks: list[Batch], data: st.DataObject) -> None:
    cut = data.draw(st.integers(1, len(blocks) - 1))
    first, second = sealed(blocks[:cut], compress=True), sealed(blocks[cut:])
    at_once = merge(blocks, offset=Offset(6), compress=False)
    assert merge([first, second], offset=Offset(6), compress=False) == at_once
    assert merge([first, *blocks[cut:]], offset=Offset(6), compress=False) == at_once
    # One alone says no less than it did before.
    assert merge([decode(at_once)], offset=Offset(6), compress=False) == at_once


def test_lines_need_no_table_of_lengths() -> None:
    assert sealed([lines(b"a\n", 1), lines(b"b\nc\n", 2), lines(b"d", 3)]).lengths is None
    assert sealed([lines(b"a", 1), lines(b"b\n", 2)]).lengths == (1, 2)
    assert sealed([lines(b"a\n", 1), message(b"b\nc", 2)]).lengths == (2, 3)


def outcome_of(raw: bytes) -> list[tuple[int, bytes]] | type[Exception]:
    try:
        segment = decode(raw)
        verify(segment)
        return list(segment.timed())
    except (CorruptData, UnsupportedFormat) as error:
        return type(error)


@pytest.mark.parametrize("raw", [LINES, LENGTHS, PACKED, NEWLINES_INSIDE])
def test_every_flipped_bit_is_detected(raw: bytes) -> None:
    for position in range(len(raw)):
        for bit in range(8):
            damaged = bytearray(raw)
            damaged[position] ^= 1 << bit
            expected = (
                UnsupportedFormat if position in (0, 3) or (position in (1, 2) and bit) else CorruptData
            )
            with pytest.raises(expected):  # already where it is read, not only by fsck
                decode(bytes(damaged))


@pytest.mark.parametrize("raw", [LINES, LENGTHS, PACKED, NEWLINES_INSIDE])
def test_every_truncation_and_extension_is_detected(raw: bytes) -> None:
    for length in range(len(raw)):
        with pytest.raises(CorruptData):
            decode(raw[:length])
    with pytest.raises(CorruptData):
        decode(raw + b"\0")


@pytest.mark.parametrize(
    ("position", "value", "says"),
    [(0, 2, "version 2"), (1, 2, "boundaries 2"), (2, 2, "compressed in way 2"), (3, 1, "reserved 1")],
)
def test_a_later_format_says_what_to_do(position: int, value: int, says: str) -> None:
    raw = bytearray(LINES)
    raw[position] = value
    with pytest.raises(UnsupportedFormat, match=f"{says}.*upgrade dnpipefs on this host"):
        decode(bytes(raw))


def damaged_at_the_source(
    boundaries: int, messages: int, size: int, runs: int, tables: bytes, data: bytes
) -> bytes:
    """Make a segment whose checksum fits and whose tables may not."""
    run_bytes = 2 if boundaries else len(tables)
    counts = (messages, size, runs, run_bytes, len(tables) - run_bytes)
    body = struct.pack(">QQQQIIIII", 5, 6, NOW, NOW, *counts) + tables + data
    return struct.pack(">BBBBI", 1, boundaries, 0, 0, zlib.crc32(body)) + body


@pytest.mark.parametrize(
    ("boundaries", "messages", "size", "runs", "tables"),
    [
        (0, 2, 4, 1, b"\x03\x00"),  # the runs say three messages
        (0, 3, 4, 1, b"\x03\x00"),  # the data has two
        (0, 2, 4, 2, b"\x02\x00"),  # a run is missing
        (0, 2, 4, 1, b"\x02\x00\x01"),  # a number too many
        (0, 2, 4, 1, b"\x02\x80"),  # a number without end
        (0, 2, 5, 1, b"\x02\x00"),  # the data is shorter than it says
        (1, 2, 4, 1, b"\x02\x00\x02"),  # a length is missing
        (1, 2, 4, 1, b"\x02\x00\x02\x03"),  # the lengths' sum is not the size
    ],
)
def test_tables_that_do_not_fit_are_corrupt(
    boundaries: int, messages: int, size: int, runs: int, tables: bytes
) -> None:
    fits = damaged_at_the_source(1, 2, 4, 1, b"\x02\x00\x01\x03", b"a\nb\n")
    assert outcome_of(fits) == [(NOW, b"a"), (NOW, b"\nb\n")]
    assert (
        outcome_of(damaged_at_the_source(boundaries, messages, size, runs, tables, b"a\nb\n")) is CorruptData
    )


def test_a_segment_is_no_longer_than_its_header_and_tables_say() -> None:
    assert len(LINES) == HEADER_BYTES + 5 + 5
    assert LINES[1] == Boundaries.LINES
