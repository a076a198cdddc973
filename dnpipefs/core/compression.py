"""Compression of message data as it is stored: zstd, and only where it helps. Pure.

Sizes and offsets everywhere are those of the uncompressed bytes. What is stored says by itself how it
was compressed, so data written with and without it is read alike.
"""

from __future__ import annotations

import sys
from typing import Final

from dnpipefs.errors import CorruptData, UnsupportedFormat

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

NONE: Final = 0
ZSTD: Final = 1

UNPACKED_LIMIT: Final = 64 << 20
"""Bytes that one batch or segment can unpack to at most; the largest that is ever made has some 17 MiB."""
_LEVEL: Final = 1
"""A megabyte of log lines takes 0.6 ms and becomes a twentieth; level 3 takes five times as long where the
text is hard to compress, and gains next to nothing."""
_LEAST_BYTES: Final = 256
_WORTH: Final = 0.9
"""What does not get smaller than this part of itself is stored as it is: each read would pay for it."""


def pack(data: bytes, *, wanted: bool) -> tuple[int, bytes]:
    """Return how *data* is best stored, and those bytes."""
    if wanted and len(data) >= _LEAST_BYTES:
        packed = zstd.compress(data, _LEVEL)
        if len(packed) < _WORTH * len(data):
            return ZSTD, packed
    return NONE, data


def unpack(kind: int, stored: bytes | memoryview, size: int) -> bytes | memoryview:
    """Return what `pack` was given, of which at most *size* bytes are expected.

    Raises CorruptData, also for more than that, without unpacking it: a few bytes can become gigabytes.
    UnsupportedFormat for a kind of a later release.
    """
    if kind == NONE:
        return stored
    if kind != ZSTD:
        raise UnsupportedFormat(f"data compressed in way {kind}; upgrade dnpipefs on this host")
    size = min(size, UNPACKED_LIMIT)
    unpacking = zstd.ZstdDecompressor()
    try:
        data = unpacking.decompress(stored, max_length=size + 1)  # a full buffer would not see the end
    except zstd.ZstdError as error:
        raise CorruptData(f"compressed data does not unpack: {error}") from None
    if len(data) > size or not unpacking.eof or unpacking.unused_data:
        raise CorruptData(f"compressed data does not unpack to {size} bytes at most")
    return data
