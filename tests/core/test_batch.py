"""The batch format: round trips, damage is detected, and golden bytes hold the format still."""

import struct
import zlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnpipefs.core.batch import (
    HEADER_BYTES,
    Batch,
    Boundaries,
    Chunk,
    Payload,
    count_lines,
    decode,
    decode_reference,
    encode,
    peek_generation,
    peek_time_ns,
    split_lines,
    verify,
)
from dnpipefs.core.names import Revision, SessionId
from dnpipefs.errors import CorruptData, UnsupportedFormat

big = st.integers(0, 2**63 - 1)
texts = st.lists(st.sampled_from([b"\n", b"a", b"bc", b"\xff\0"]), max_size=8).map(b"".join)
messages = st.one_of(st.binary(max_size=6), st.integers(120, 140).map(lambda size: b"\n" * size))
chunks = st.one_of(texts.map(Chunk.of_lines), messages.map(Chunk.of_message))


def lines_of(data: bytes) -> list[bytes]:
    """Split by a way of its own: regular bytes methods, no search positions."""
    parts = [part + b"\n" for part in data.split(b"\n")]
    last = parts.pop()[:-1]
    return [*parts, last] if last else parts


def messages_of(chunk: Chunk, *, text: bool) -> list[bytes]:
    return lines_of(chunk.data) if text else [chunk.data]


def encoded(*parts: Chunk) -> bytes:
    return encode(parts, generation=Revision(3), time_ns=5, session=SessionId(7), sequence=9)


LINES = encoded(Chunk.of_lines(b"hello\nworld\n"), Chunk.of_lines(b"end"))
LENGTHS = encoded(Chunk.of_message(b"a\nb"), Chunk.of_lines(b"c"), Chunk.of_message(b"x" * 200))


def test_golden_lines() -> None:
    """A change of these bytes is a new format version."""
    assert (
        bytes.fromhex(
            "01 00 00 00 6f7e5618"
            "0000000000000003 0000000000000005 0000000000000007 0000000000000009 00000003 0000000f"
        )
        + b"hello\nworld\nend"
        == LINES
    )


def test_golden_lengths() -> None:
    """A change of these bytes is a new format version."""
    assert (
        bytes.fromhex(
            "01 01 00 00 b9c9aa9e"
            "0000000000000003 0000000000000005 0000000000000007 0000000000000009 00000003 000000cc"
            "03 01 c801"
        )
        + b"a\nbc"
        + b"x" * 200
    ) == LENGTHS


@given(st.data(), big, big, big, big)
def test_round_trip(data: st.DataObject, generation: int, time_ns: int, session: int, sequence: int) -> None:
    """Any mix of chunks comes back as exactly its messages, with what describes them."""
    kinds = data.draw(st.lists(st.booleans(), min_size=1, max_size=5))
    parts = [
        data.draw(texts.map(Chunk.of_lines) if text else messages.map(Chunk.of_message)) for text in kinds
    ]
    expected = [
        message for part, text in zip(parts, kinds, strict=True) for message in messages_of(part, text=text)
    ]
    raw = encode(
        parts,
        generation=Revision(generation),
        time_ns=time_ns,
        session=SessionId(session),
        sequence=sequence,
    )
    batch = decode(raw)
    assert list(batch.split()) == expected
    assert batch == Batch(
        Revision(generation),
        time_ns,
        SessionId(session),
        sequence,
        len(expected),
        b"".join(part.data for part in parts),
        batch.length_table,
    )
    assert peek_time_ns(raw) == time_ns
    assert peek_generation(raw) == generation


@given(st.lists(texts, min_size=1, max_size=4))
def test_terminated_lines_need_no_table(parts: list[bytes]) -> None:
    terminated = [part + b"\n" for part in parts[:-1]] + [parts[-1]]
    raw = encoded(*map(Chunk.of_lines, terminated))
    assert raw[1] == Boundaries.LINES
    assert raw[HEADER_BYTES:] == b"".join(terminated)
    assert decode(raw).lengths is None


def test_an_unterminated_line_does_not_swallow_the_next_chunk() -> None:
    batch = decode(encoded(Chunk.of_lines(b"a\nb"), Chunk.of_lines(b"c\n")))
    assert list(batch.split()) == [b"a\n", b"b", b"c\n"]
    assert batch.lengths == (2, 1, 2)


@given(texts)
def test_split_and_count_lines_agree_with_a_reference(data: bytes) -> None:
    assert list(split_lines(data)) == lines_of(data)
    assert count_lines(data) == len(lines_of(data)) == Chunk.of_lines(data).messages


@given(chunks)
def test_a_chunk_knows_its_messages(chunk: Chunk) -> None:
    assert len(list(decode(encoded(chunk)).split())) == chunk.messages


def outcome_of(raw: bytes) -> list[bytes] | type[Exception]:
    """Return the messages of a batch or what decoding it raises."""
    try:
        return list(decode(raw).split())
    except (CorruptData, UnsupportedFormat) as error:
        return type(error)


EMPTY_BATCHES = [encoded(Chunk.of_message(b"")), encoded(Chunk.of_lines(b""))]


@pytest.mark.parametrize("raw", [LINES, LENGTHS, *EMPTY_BATCHES])
def test_every_flipped_bit_is_detected(raw: bytes) -> None:
    harmless = []
    for position in range(len(raw)):
        for bit in range(8):
            damaged = bytearray(raw)
            damaged[position] ^= 1 << bit
            outcome = outcome_of(bytes(damaged))
            if outcome == outcome_of(raw):
                harmless.append((position, bit))
            elif position == 0 or (position in (1, 2, 3) and bit > 0):
                assert outcome is UnsupportedFormat, (position, bit)
            else:
                assert outcome is CorruptData, (position, bit)
    # Where there is no message, both kinds of boundaries say the same.
    assert harmless == ([(1, 0)] if decode(raw).messages == 0 else [])


@pytest.mark.parametrize("raw", [LINES, LENGTHS])
def test_every_truncation_and_extension_is_detected(raw: bytes) -> None:
    for length in range(len(raw)):
        with pytest.raises(CorruptData):
            decode(raw[:length])
    with pytest.raises(CorruptData):
        decode(raw + b"\0")


@pytest.mark.parametrize(
    ("position", "value", "says"),
    [
        (0, 2, "version 2"),
        (1, 2, "boundaries 2"),
        (2, 2, "compressed in way 2"),
        (3, 2, "place 2"),
    ],
)
def test_a_later_format_says_what_to_do(position: int, value: int, says: str) -> None:
    raw = bytearray(LINES)
    raw[position] = value
    with pytest.raises(UnsupportedFormat, match=f"{says}.*upgrade dnpipefs on this host"):
        decode(bytes(raw))


def damaged_at_the_source(size: int, count: int, rest: bytes) -> bytes:
    """Make a batch whose checksum fits and whose lengths do not."""
    body = struct.pack(">QQQQII", 3, 5, 7, 9, count, size) + rest
    return struct.pack(">BBBBI", 1, 1, 0, 0, zlib.crc32(body)) + body


@pytest.mark.parametrize(
    ("size", "count", "rest"),
    [
        (3, 2, b"\x03abc"),  # one length, two messages
        (3, 1, b"\x02abc"),  # the lengths' sum is not the size
        (4, 1, b"\x04abc"),  # the data is shorter than it says
        (2, 1, b"\x02abc"),  # and longer
        (1, 1, b"\x80\x80"),  # a length without end
        (1, 2, b""),
    ],
)
def test_lengths_that_do_not_fit_are_corrupt(size: int, count: int, rest: bytes) -> None:
    assert list(decode(damaged_at_the_source(3, 2, b"\x01\x02abc")).split()) == [b"a", b"bc"]
    with pytest.raises(CorruptData):
        decode(damaged_at_the_source(size, count, rest)).split()
    with pytest.raises(CorruptData):
        verify(decode(damaged_at_the_source(size, count, rest)))


def test_a_reference_to_a_large_batch_round_trips() -> None:
    payload = Payload.of([Chunk.of_lines(b"a\nb\n")])
    raw = payload.encode(generation=Revision(3), time_ns=4, session=SessionId(5), sequence=6, beside=True)
    assert decode_reference(raw) == (3, 4, 5, 6, 2, 4)
    here = payload.encode(generation=Revision(3), time_ns=4, session=SessionId(5), sequence=6)
    for wrong in (here, here[: len(raw)], raw + b"x", raw[:-1], raw[:-1] + b"\xff"):
        with pytest.raises(CorruptData):
            decode_reference(wrong)
    with pytest.raises(UnsupportedFormat):
        decode_reference(b"\x02" + raw[1:])


def test_messages_are_as_many_as_a_batch_says() -> None:
    for chunks in ([Chunk.of_lines(b"a\nb")], [Chunk.of_message(b"a\nb\n"), Chunk.of_lines(b"c\n")]):
        good = decode(encode(chunks, generation=Revision(1), time_ns=0, session=SessionId(1), sequence=1))
        verify(good)
        with pytest.raises(CorruptData, match="messages"):
            verify(replace(good, messages=good.messages + 1))
