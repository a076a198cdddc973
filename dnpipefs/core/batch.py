"""Encoding of a batch: the messages of one append (or of one sealed block) with what describes them.

Layout of version 1, all numbers big-endian:

====  =====================================================================
bytes  field
====  =====================================================================
1      version, 0x01
1      boundaries: 0 = lines, 1 = lengths (below)
1      compression: 0 = none (others are for later releases)
1      reserved, 0
4      CRC-32 (zlib's) of everything after this field
8      generation the append was fenced on (mod_revision of the epoch key)
8      time of the append, nanoseconds since 1970-01-01 UTC
8      session of the writer
8      sequence number of the append in that session
4      number of messages
4      bytes of message data, uncompressed
====  =====================================================================

then, for boundaries 1, one unsigned LEB128 length per message; then the message data.

Boundaries 0 say nothing further: every newline ends a message, and what follows the last newline,
if anything, is the last message. Line framing needs no more, so a megabyte of log lines is
encoded without touching a line.
"""

from __future__ import annotations

import enum
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from dnpipefs.core.names import Revision, SessionId
from dnpipefs.errors import CorruptData, UnsupportedFormat

VERSION: Final = 1
_PREFIX: Final = struct.Struct(">BBBBI")
_HEADER: Final = struct.Struct(">QQQQII")
HEADER_BYTES: Final = _PREFIX.size + _HEADER.size


class Boundaries(enum.IntEnum):
    """How a batch says where its messages end."""

    LINES = 0
    LENGTHS = 1


@dataclass(frozen=True, slots=True)
class Batch:
    """A decoded batch."""

    generation: Revision
    time_ns: int
    session: SessionId
    sequence: int
    messages: int
    data: bytes
    """The messages' bytes in order, nothing between them."""
    lengths: tuple[int, ...] | None = None
    """Bytes of each message, or None where newlines say it."""

    def split(self) -> Iterator[bytes]:
        """Yield the messages one by one."""
        if self.lengths is None:
            yield from split_lines(self.data)
            return
        position = 0
        for length in self.lengths:
            yield self.data[position : position + length]
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


def encode(
    chunks: Sequence[Chunk], *, generation: Revision, time_ns: int, session: SessionId, sequence: int
) -> bytes:
    """Encode *chunks* as one batch, in their order."""
    if len(chunks) == 1:
        data, messages, lengths = chunks[0]
        boundaries, table = Boundaries.LINES, b""
        if lengths is not None:
            boundaries, table = _boundary_table(chunks)
    else:
        data = b"".join([chunk.data for chunk in chunks])
        messages = sum([chunk.messages for chunk in chunks])
        boundaries, table = _boundary_table(chunks)
    body = _HEADER.pack(generation, time_ns, session, sequence, messages, len(data)) + table
    check = zlib.crc32(data, zlib.crc32(body))
    return b"".join((_PREFIX.pack(VERSION, boundaries, 0, 0, check), body, data))


def decode(raw: bytes) -> Batch:
    """Decode a batch.

    Raises UnsupportedFormat for a version, boundary kind, compression or flag of a later release, and
    CorruptData when the checksum or the lengths do not fit.
    """
    if len(raw) < HEADER_BYTES:
        raise CorruptData(f"a batch of {len(raw)} bytes is shorter than its header")
    version, boundaries, compression, reserved, check = _PREFIX.unpack_from(raw)
    if version != VERSION or compression != 0 or reserved != 0 or boundaries > Boundaries.LENGTHS:
        raise UnsupportedFormat(
            f"a batch of version {version}, boundaries {boundaries}, compression {compression}, "
            f"reserved {reserved}; "
            "upgrade dnpipefs on this host"
        )
    if zlib.crc32(memoryview(raw)[_PREFIX.size :]) != check:
        raise CorruptData("the checksum of a batch does not fit: the data in etcd is damaged")
    generation, time_ns, session, sequence, messages, size = _HEADER.unpack_from(raw, _PREFIX.size)
    lengths, start = None, HEADER_BYTES
    if boundaries == Boundaries.LENGTHS:
        lengths, start = _decode_lengths(raw, messages)
    data = raw[start:]
    if len(data) != size or (lengths is not None and sum(lengths) != size):
        raise CorruptData(f"a batch says {size} bytes and has {len(data)}")
    return Batch(Revision(generation), time_ns, SessionId(session), sequence, messages, data, lengths)


def peek_time_ns(raw: bytes) -> int:
    """Return the time of an encoded batch without checking or copying its data."""
    time_ns: int = _HEADER.unpack_from(raw, _PREFIX.size)[1]
    return time_ns


def peek_generation(raw: bytes) -> Revision:
    """Return the generation of an encoded batch without checking or copying its data."""
    return Revision(_HEADER.unpack_from(raw, _PREFIX.size)[0])


def _boundary_table(chunks: Sequence[Chunk]) -> tuple[Boundaries, bytes]:
    # An unterminated last line would swallow the first line of the chunk behind it.
    last = len(chunks) - 1
    if all(
        chunk.lengths is None and (index == last or chunk.data.endswith(b"\n"))
        for index, chunk in enumerate(chunks)
    ):
        return Boundaries.LINES, b""
    table = bytearray()
    for chunk in chunks:
        for length in chunk.lengths or [len(line) for line in split_lines(chunk.data)]:
            _append_leb128(table, length)
    return Boundaries.LENGTHS, bytes(table)


def _append_leb128(table: bytearray, number: int) -> None:
    while number > 0x7F:
        table.append(number & 0x7F | 0x80)
        number >>= 7
    table.append(number)


def _decode_lengths(raw: bytes, messages: int) -> tuple[tuple[int, ...], int]:
    lengths, position = [], HEADER_BYTES
    for _ in range(messages):
        number = shift = 0
        while True:
            if position >= len(raw):
                raise CorruptData("the lengths of a batch are cut off")
            byte = raw[position]
            position += 1
            number |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        lengths.append(number)
    return tuple(lengths), position
