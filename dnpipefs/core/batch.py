"""Encoding of a batch: the messages of one append with what describes them.

Layout of version 1, all numbers big-endian:

====  =====================================================================
bytes  field
====  =====================================================================
1      version, 0x01
1      boundaries: 0 = lines, 1 = lengths (below)
1      compression of what follows the header: 0 = none, 1 = zstd
1      place: 0 = what follows is here, 1 = it lies beside the tail (below)
4      CRC-32 (zlib's) of everything after this field
8      generation the append was fenced on (mod_revision of the epoch key)
8      time of the append, nanoseconds since 1970-01-01 UTC
8      session of the writer
8      sequence number of the append in that session
4      number of messages
4      bytes of message data, uncompressed
====  =====================================================================

then, for boundaries 1, one unsigned LEB128 length per message; then the message data; both compressed
together.

Boundaries 0 say nothing further: every newline ends a message, and what follows the last newline,
if anything, is the last message. Line framing needs no more, so a megabyte of log lines is
encoded without touching a line.

A large batch lies *beside* the tail: whole, as above, in keys of its own (`KeySchema.body_parts`), while
its key in the tail has the header only, with place 1. Whoever watches the tail is not sent megabytes
it may not need, sealing does not have to write them again, and a message may be larger than what etcd
takes in one transaction.
"""

from __future__ import annotations

import enum
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from dnpipefs.core.compression import NONE, pack, unpack
from dnpipefs.core.names import Revision, SessionId
from dnpipefs.errors import CorruptData, UnsupportedFormat

VERSION: Final = 1
_PREFIX: Final = struct.Struct(">BBBBI")
_HEADER: Final = struct.Struct(">QQQQII")
HEADER_BYTES: Final = _PREFIX.size + _HEADER.size
_HERE, _BESIDE = 0, 1
_LENGTH_BYTES: Final = 10
"""A number of 64 bits takes so many bytes at most."""
_CONTINUED: Final = bytes(range(0x80, 0x100))
"""Bytes of a LEB128 number but for its last one."""


class Boundaries(enum.IntEnum):
    """How a batch says where its messages end."""

    LINES = 0
    LENGTHS = 1


@dataclass(frozen=True, slots=True)
class Batch:
    """A decoded batch. Its table is read when it is asked for: as numbers it takes eight times as much."""

    generation: Revision
    time_ns: int
    session: SessionId
    sequence: int
    messages: int
    data: bytes
    """The messages' bytes in order, nothing between them."""
    length_table: bytes | None = None
    """How many bytes each message has, LEB128 numbers; None where newlines say it."""

    @property
    def lengths(self) -> tuple[int, ...] | None:
        """Bytes of each message, or None where newlines say it. Raises CorruptData."""
        if self.length_table is None:
            return None
        lengths, _ = read_lengths(self.length_table, self.messages)
        if sum(lengths) != len(self.data):
            raise CorruptData(f"the messages of a batch have {sum(lengths)} bytes, and it {len(self.data)}")
        return lengths

    @property
    def held(self) -> int:
        """Bytes that its data and its table take in memory."""
        return len(self.data) + len(self.length_table or b"")

    def split(self) -> Iterator[bytes]:
        """Yield the messages one by one."""
        return split(self.data, self.lengths)

    def timed(self) -> Iterator[tuple[int, bytes]]:
        """Yield the messages one by one with their time, nanoseconds since 1970 UTC."""
        return ((self.time_ns, message) for message in self.split())


def split(data: bytes, lengths: Sequence[int] | None) -> Iterator[bytes]:
    """Yield the messages of *data* one by one; without *lengths* newlines end them."""
    if lengths is None:
        yield from split_lines(data)
        return
    position = 0
    for length in lengths:
        yield data[position : position + length]
        position += length


def split_lines(data: bytes) -> Iterator[bytes]:
    """Yield the lines of *data* with their newlines; the last may lack one."""
    position = 0
    while position < len(data):
        end = data.find(b"\n", position) + 1 or len(data)
        yield data[position:end]
        position = end


def count_lines(data: bytes) -> int:
    """Return how many messages `split_lines` would yield."""
    return data.count(b"\n") + (not data.endswith(b"\n") and data != b"")


class Chunk(NamedTuple):
    """Whole messages of one write, in order: what group commit gathers into batches."""

    data: bytes
    messages: int
    lengths: tuple[int, ...] | None = None
    """None: newlines end messages, and only the last may lack one."""

    @property
    def encoded_limit(self) -> int:
        """Bytes it can take in a batch at most, a table of lengths included (LEB128: 1 per 7 bits)."""
        return len(self.data) + self.messages + len(self.data) // 64

    @classmethod
    def of_lines(cls, data: bytes) -> Chunk:
        """Make a chunk of text lines."""
        return cls(data, count_lines(data))

    @classmethod
    def of_message(cls, data: bytes) -> Chunk:
        """Make a chunk of exactly one message, whatever bytes it has."""
        return cls(data, 1, (len(data),))


class Payload(NamedTuple):
    """What a batch holds, encoded but for the header, which depends on the fence."""

    boundaries: Boundaries
    compression: int
    body: bytes
    messages: int
    size: int
    """Bytes of message data, uncompressed."""

    @property
    def stored(self) -> int:
        """Bytes of the encoded batch."""
        return HEADER_BYTES + len(self.body)

    @classmethod
    def of(cls, chunks: Sequence[Chunk], *, compress: bool = False) -> Payload:
        """Join *chunks* in their order."""
        boundaries, table = _boundary_table(chunks)
        if len(chunks) == 1:
            data, messages = chunks[0].data, chunks[0].messages
        else:
            data = b"".join([chunk.data for chunk in chunks])
            messages = sum([chunk.messages for chunk in chunks])
        compression, body = NONE, table + data if table else data
        if compress:
            compression, body = pack(body, wanted=True)
        return cls(boundaries, compression, body, messages, len(data))

    def encode(
        self,
        *,
        generation: Revision,
        time_ns: int,
        session: SessionId,
        sequence: int,
        beside: bool = False,
    ) -> bytes:
        """Return the batch; if it lies *beside* the tail, what stands in the tail for it."""
        header = _HEADER.pack(generation, time_ns, session, sequence, self.messages, self.size)
        if beside:
            return _PREFIX.pack(VERSION, 0, NONE, _BESIDE, zlib.crc32(header)) + header
        check = zlib.crc32(self.body, zlib.crc32(header))
        prefix = _PREFIX.pack(VERSION, self.boundaries, self.compression, _HERE, check)
        return b"".join((prefix, header, self.body))


def encode(
    chunks: Sequence[Chunk],
    *,
    generation: Revision,
    time_ns: int,
    session: SessionId,
    sequence: int,
    compress: bool = False,
) -> bytes:
    """Encode *chunks* as one batch, in their order."""
    payload = Payload.of(chunks, compress=compress)
    return payload.encode(generation=generation, time_ns=time_ns, session=session, sequence=sequence)


def decode(raw: bytes) -> Batch:
    """Decode a batch.

    Raises UnsupportedFormat for a version, boundary kind, compression or place of a later release, and
    CorruptData when the checksum or the lengths do not fit, or when the batch does not lie here.
    """
    if len(raw) < HEADER_BYTES:
        raise CorruptData(f"a batch of {len(raw)} bytes is shorter than its header")
    version, boundaries, compression, place, check = _PREFIX.unpack_from(raw)
    if version != VERSION or place > _BESIDE or boundaries > Boundaries.LENGTHS:
        raise UnsupportedFormat(
            f"a batch of version {version}, boundaries {boundaries}, place {place}; "
            "upgrade dnpipefs on this host"
        )
    if zlib.crc32(memoryview(raw)[_PREFIX.size :]) != check:
        raise CorruptData("the checksum of a batch does not fit: the data in etcd is damaged")
    if place != _HERE:
        raise CorruptData("a batch is where only a reference to one belongs")
    generation, time_ns, session, sequence, messages, size = _HEADER.unpack_from(raw, _PREFIX.size)
    table = None
    if compression == NONE and boundaries == Boundaries.LINES:  # most batches; copied once
        data = raw[HEADER_BYTES:]
    else:
        most = messages * _LENGTH_BYTES if boundaries == Boundaries.LENGTHS else 0
        body = unpack(compression, memoryview(raw)[HEADER_BYTES:], size + most)
        start = 0
        if boundaries == Boundaries.LENGTHS:
            start = max(0, len(body) - size)
            table = bytes(body[:start])
            if count_numbers(table) != messages:
                raise CorruptData(f"the table of a batch does not have {messages} numbers")
        data = bytes(body[start:]) if start or not isinstance(body, bytes) else body
    if len(data) != size:
        raise CorruptData(f"a batch says {size} bytes and has {len(data)}")
    return Batch(Revision(generation), time_ns, SessionId(session), sequence, messages, data, table)


class Reference(NamedTuple):
    """What stands in the tail for a batch that lies beside it."""

    generation: Revision
    time_ns: int
    session: SessionId
    sequence: int
    messages: int
    size: int


def decode_reference(raw: bytes) -> Reference:
    """Decode what stands in the tail for a large batch. Raises CorruptData, UnsupportedFormat."""
    if len(raw) != HEADER_BYTES:
        raise CorruptData(f"{len(raw)} bytes are not a reference to a batch")
    version, _, _, place, check = _PREFIX.unpack_from(raw)
    if version != VERSION:
        raise UnsupportedFormat(f"a reference to a batch, version {version}; upgrade dnpipefs on this host")
    if place != _BESIDE or zlib.crc32(raw[_PREFIX.size :]) != check:
        raise CorruptData("the checksum of a reference to a batch does not fit, or it is none")
    generation, time_ns, session, sequence, messages, size = _HEADER.unpack_from(raw, _PREFIX.size)
    return Reference(Revision(generation), time_ns, SessionId(session), sequence, messages, size)


def verify(batch: Batch) -> None:
    """Raise CorruptData if the messages of a batch are not as many as it says, or do not fit its data."""
    table = batch.length_table
    found = count_lines(batch.data) if table is None else count_numbers(table)
    if found != batch.messages:
        raise CorruptData(f"a batch says {batch.messages} messages and has {found}")
    _ = batch.lengths  # reading them is the check


def peek_time_ns(raw: bytes) -> int:
    """Return the time of an encoded batch without checking or copying its data. Raises CorruptData."""
    return _peek(raw)[1]


def peek_generation(raw: bytes) -> Revision:
    """Return the generation of an encoded batch without checking or copying its data. Raises CorruptData."""
    return Revision(_peek(raw)[0])


def _peek(raw: bytes) -> tuple[int, int]:
    if len(raw) < HEADER_BYTES:
        raise CorruptData(f"a batch of {len(raw)} bytes is shorter than its header")
    generation, time_ns, *_ = _HEADER.unpack_from(raw, _PREFIX.size)
    return generation, time_ns


def _boundary_table(chunks: Sequence[Chunk]) -> tuple[Boundaries, bytes]:
    # An unterminated last line would swallow the first line of the chunk behind it.
    last = len(chunks) - 1
    if not last and chunks[0].lengths is None:  # most pushes
        return Boundaries.LINES, b""
    if all(
        chunk.lengths is None and (index == last or chunk.data.endswith(b"\n"))
        for index, chunk in enumerate(chunks)
    ):
        return Boundaries.LINES, b""
    table = bytearray()
    for chunk in chunks:
        for length in chunk.lengths or [len(line) for line in split_lines(chunk.data)]:
            append_leb128(table, length)
    return Boundaries.LENGTHS, bytes(table)


def append_leb128(table: bytearray, number: int) -> None:
    """Append an unsigned number, seven bits a byte, the lowest first."""
    while number > 0x7F:
        table.append(number & 0x7F | 0x80)
        number >>= 7
    table.append(number)


def count_numbers(table: bytes | memoryview) -> int | None:
    """Return how many LEB128 numbers a table has; None if the last one is cut off."""
    last_bytes = bytes(table).translate(None, _CONTINUED)
    return len(last_bytes) if not table or table[-1] < 0x80 else None


def read_lengths(table: bytes | memoryview, count: int, position: int = 0) -> tuple[tuple[int, ...], int]:
    """Read *count* unsigned LEB128 numbers from *position* on; return them and the position behind.

    Raises CorruptData if there are not so many.
    """
    numbers = []
    for _ in range(count):
        number = shift = 0
        while True:
            if position >= len(table):
                raise CorruptData("the lengths of a batch are cut off")
            byte = table[position]
            position += 1
            number |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
            if shift > 63:  # more digits would make numbers of any length, slowly
                raise CorruptData("a length of a batch is no number of 64 bits")
        numbers.append(number)
    return tuple(numbers), position
