"""Compression where it helps, and what is stored says by itself how."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnpipefs.core.compression import NONE, ZSTD, pack, unpack
from dnpipefs.errors import CorruptData, UnsupportedFormat

TEXT = b"".join(b"2026-11-21T08:00:%02d host%d did something\n" % (n % 60, n % 7) for n in range(500))


@given(
    st.one_of(st.binary(max_size=2000), st.binary(min_size=1, max_size=9).map(lambda word: word * 300)),
    st.booleans(),
)
def test_what_is_packed_comes_back(data: bytes, wanted: bool) -> None:
    kind, stored = pack(data, wanted=wanted)
    assert bytes(unpack(kind, stored, len(data))) == data
    assert bytes(unpack(kind, memoryview(stored), len(data))) == data
    assert len(stored) <= len(data)
    assert kind == NONE if not wanted else kind in (NONE, ZSTD)


def test_text_becomes_a_fraction() -> None:
    kind, stored = pack(TEXT, wanted=True)
    assert kind == ZSTD
    assert len(stored) < len(TEXT) / 5


@pytest.mark.parametrize("data", [b"", b"a" * 255, bytes(range(256)) * 1, TEXT[:200]])
def test_what_gains_nothing_stays_as_it_is(data: bytes) -> None:
    assert pack(data, wanted=True) == (NONE, data)


def test_what_gains_a_little_is_not_worth_each_reader_s_time() -> None:
    noise = random.Random(1).randbytes(9500)
    assert pack(noise + b"\0" * 500, wanted=True)[0] == NONE
    assert pack(noise + b"\0" * 5000, wanted=True)[0] == ZSTD


def test_damage_is_corrupt_data() -> None:
    _, stored = pack(TEXT, wanted=True)
    for damaged in (stored[:-1], b"", b"\0" * 20, stored[1:]):
        with pytest.raises(CorruptData):
            unpack(ZSTD, damaged, len(TEXT))


def test_a_later_way_says_what_to_do() -> None:
    with pytest.raises(UnsupportedFormat, match="way 2; upgrade dnpipefs on this host"):
        unpack(2, b"", 0)
