"""Encoding of a sealed segment: the messages of many appends, merged, in the order of the log.

Layout of version 1, all numbers big-endian:

====  =====================================================================
bytes  field
====  =====================================================================
1      version, 0x01
1      boundaries: 0 = lines, 1 = lengths (as in a batch)
1      compression of what follows the header: 0 = none, 1 = zstd
1      reserved, 0
4      CRC-32 (zlib's) of everything after this field
8      generation
8      offset of the first byte
8      time of the first run, nanoseconds since 1970-01-01 UTC
8      time of the last run
4      number of messages
4      bytes of message data, uncompressed
4      number of runs
4      bytes of the run table, uncompressed
4      bytes of the table of lengths, uncompressed
====  =====================================================================

then the *run table*; for boundaries 1 one unsigned LEB128 length per message; the message data; all
of it compressed together.

A run is what was appended together: messages with one time. The table has two unsigned LEB128 numbers
a run: how many messages, and by how much its time differs from the run's before (zigzag: 2n for a
difference n >= 0, -2n - 1 for n < 0, since hosts' clocks differ); 0 in the first one. So segments are merged
without taking their tables apart.

Who wrote a message, and as which append, is of no interest any more: the head remembers up to which
append each writer's messages are sealed.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from dnpipefs.core.batch import (
    Batch,
    Boundaries,
    append_leb128,
    count_numbers,
    read_lengths,
    split,
    split_lines,
)
from dnpipefs.core.compression import pack, unpack
from dnpipefs.core.names import Offset, Revision
from dnpipefs.errors import CorruptData, UnsupportedFormat

VERSION: Final = 1
_PREFIX: Final = struct.Struct(">BBBBI")
_HEADER: Final = struct.Struct(">QQQQIIIII")
HEADER_BYTES: Final = _PREFIX.size + _HEADER.size

Run = tuple[int, int]
"""How many messages, and their time in nanoseconds since 1970 UTC."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A decoded segment. Its tables are read when they are asked for: most readers want bytes only."""

    generation: Revision
    offset: Offset
    messages: int
    data: bytes
    """The messages' bytes in order, nothing between them."""
    boundaries: Boundaries
    first_time_ns: int
    last_time_ns: int
    runs_count: int
    run_table: bytes
    length_table: bytes

    @property
    def runs(self) -> list[Run]:
        """The runs in order. Raises CorruptData."""
        numbers, _ = read_lengths(self.run_table, 2 * self.runs_count)
        runs, time_ns = [], self.first_time_ns
        for messages, zigzag in zip(numbers[::2], numbers[1::2], strict=True):
            time_ns += (zigzag >> 1) ^ -(zigzag & 1)
            runs.append((messages, time_ns))
        return runs

    @property
    def lengths(self) -> tuple[int, ...] | None:
        """Bytes of each message, or None where newlines say it. Raises CorruptData."""
        if self.boundaries == Boundaries.LINES:
            return None
        return read_lengths(self.length_table, self.messages)[0]

    @property
    def held(self) -> int:
        """Bytes that its data and its tables take in memory."""
        return len(self.data) + len(self.run_table) + len(self.length_table)

    def split(self) -> Iterator[bytes]:
        """Yield the messages one by one."""
        return split(self.data, self.lengths)

    def timed(self) -> Iterator[tuple[int, bytes]]:
        """Yield the messages one by one with their time, nanoseconds since 1970 UTC."""
        messages = self.split()
        for count, time_ns in self.runs:
            for _ in range(count):
                yield time_ns, next(messages)


Block = Batch | Segment
"""What the bytes of a log are read from."""


def merge(blocks: Sequence[Block], *, offset: Offset, compress: bool) -> bytes:
    """Encode the messages of *blocks*, which follow on one another, as one segment at *offset*.

    At least one block is needed, all of one generation.
    """
    data = b"".join([block.data for block in blocks])
    runs = _Runs()
    for block in blocks:
        runs.add(block)
    boundaries, lengths = _boundaries(blocks)
    compression, body = pack(b"".join((runs.table, lengths, data)), wanted=compress)
    header = _HEADER.pack(
        *(blocks[0].generation, offset, runs.first_ns, runs.last_ns),
        *(sum([block.messages for block in blocks]), len(data)),
        *(runs.count, len(runs.table), len(lengths)),
    )
    check = zlib.crc32(body, zlib.crc32(header))
    return b"".join((_PREFIX.pack(VERSION, boundaries, compression, 0, check), header, body))


def decode(raw: bytes) -> Segment:
    """Decode a segment.

    Raises UnsupportedFormat for one of a later release, CorruptData when the checksum or the lengths do
    not fit.
    """
    if len(raw) < HEADER_BYTES:
        raise CorruptData(f"a segment of {len(raw)} bytes is shorter than its header")
    version, boundaries, compression, reserved, check = _PREFIX.unpack_from(raw)
    if version != VERSION or reserved != 0 or boundaries > Boundaries.LENGTHS:
        raise UnsupportedFormat(
            f"a segment of version {version}, boundaries {boundaries}, reserved {reserved}; "
            "upgrade dnpipefs on this host"
        )
    if zlib.crc32(memoryview(raw)[_PREFIX.size :]) != check:
        raise CorruptData("the checksum of a segment does not fit: the data in etcd is damaged")
    generation, offset, first_ns, last_ns, messages, size, runs, run_bytes, length_bytes = (
        _HEADER.unpack_from(raw, _PREFIX.size)
    )
    tables = run_bytes + length_bytes
    body = unpack(compression, memoryview(raw)[HEADER_BYTES:], tables + size)
    if len(body) != tables + size:
        raise CorruptData(f"a segment says {tables} + {size} bytes and has {len(body)}")
    # The checksum begins behind the kind of boundaries, but the tables tell.
    lengths = messages if boundaries == Boundaries.LENGTHS else 0
    if count_numbers(body[:run_bytes]) != 2 * runs or count_numbers(body[run_bytes:tables]) != lengths:
        raise CorruptData(f"the tables of a segment do not have {2 * runs} and {lengths} numbers")
    return Segment(
        generation=Revision(generation),
        offset=Offset(offset),
        messages=messages,
        data=bytes(body[tables:]),
        boundaries=Boundaries(boundaries),
        first_time_ns=first_ns,
        last_time_ns=last_ns,
        runs_count=runs,
        run_table=bytes(body[:run_bytes]),
        length_table=bytes(body[run_bytes:tables]),
    )


def verify(segment: Segment) -> None:
    """Raise CorruptData if the tables of a segment do not fit its data."""
    runs = segment.runs
    if sum(count for count, _ in runs) != segment.messages or (runs and runs[-1][1] != segment.last_time_ns):
        raise CorruptData("the runs of a segment do not add up to its messages")
    lengths = segment.lengths
    found = sum(1 for _ in segment.split()) if lengths is None else len(lengths)
    if found != segment.messages or (lengths is not None and sum(lengths) != len(segment.data)):
        raise CorruptData("the messages of a segment do not add up to its data")


class _Runs:
    """The run table of a segment in the making."""

    def __init__(self) -> None:
        self.table: Final = bytearray()
        self.count = 0
        self.first_ns = self.last_ns = 0

    def add(self, block: Block) -> None:
        """Put the runs of *block* behind those that are there."""
        table = self.table
        if isinstance(block, Batch):
            self._begin(block.messages, block.time_ns)
            self.count += 1
            self.last_ns = block.time_ns
            return
        (messages, _), behind = read_lengths(block.run_table, 2)
        self._begin(messages, block.first_time_ns)
        table += memoryview(block.run_table)[behind:]
        self.count += block.runs_count
        self.last_ns = block.last_time_ns

    def _begin(self, messages: int, time_ns: int) -> None:
        if not self.count:
            self.first_ns = self.last_ns = time_ns
        difference = time_ns - self.last_ns
        append_leb128(self.table, messages)
        append_leb128(self.table, 2 * difference if difference >= 0 else -2 * difference - 1)


def _boundaries(blocks: Sequence[Block]) -> tuple[Boundaries, bytes]:
    # As in a batch: an unterminated last line would swallow the first line behind it.
    last = len(blocks) - 1
    if all(
        _in_lines(block) and (index == last or block.data.endswith(b"\n"))
        for index, block in enumerate(blocks)
    ):
        return Boundaries.LINES, b""
    table = bytearray()
    for block in blocks:
        if isinstance(block, Segment) and block.boundaries == Boundaries.LENGTHS:
            table += block.length_table
            continue
        for length in block.lengths or [len(line) for line in split_lines(block.data)]:
            append_leb128(table, length)
    return Boundaries.LENGTHS, bytes(table)


def _in_lines(block: Block) -> bool:
    return block.length_table is None if isinstance(block, Batch) else block.boundaries == Boundaries.LINES
