"""The values of the small keys: JSON that explains itself, parsed strictly."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnpipefs.core.names import MAX_FILE_ID, FileId, Kind, Offset
from dnpipefs.core.records import (
    EMPTY_HEAD_VALUE,
    FORMAT_VERSION,
    Head,
    Inode,
    Mark,
    Meta,
    SessionRecord,
    decode_time,
    encode_session,
    encode_time,
)
from dnpipefs.errors import CorruptData, UnsupportedFormat

KEY = b"/dnp/the-key"
times = st.integers(0, 2**63 - 1)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)
inodes = st.builds(
    Inode,
    id=st.integers(1, MAX_FILE_ID - 1).map(FileId),
    kind=st.sampled_from(Kind),
    mode=st.integers(0, 0o7777),
    uid=st.integers(0, 2**32 - 1),
    gid=st.integers(0, 2**32 - 1),
    mtime_ns=times,
    ctime_ns=times,
    config=st.dictionaries(st.text(), json_values, max_size=3),
)
INODE = Inode(FileId(0xAB), Kind.TOPIC, 0o644, 1000, 100, 5, 7, {"framing": "write"})
HEAD = Head(Offset(0), 0, Offset(0), {"7f": 3})


def decode_entry_time(key: bytes, raw: bytes) -> object:
    return decode_time(key, raw)


Decoder = Callable[[bytes, bytes], object]
DECODERS: list[tuple[Decoder, bytes]] = [
    (Meta.decode, Meta("c1").encode()),
    (Inode.decode, INODE.encode()),
    (Head.decode, HEAD.encode()),
    (Mark.decode, Mark(Mark.RESET, 9).encode()),
    (decode_entry_time, encode_time(11)),
]
FIELDS = [(decode, raw, name) for decode, raw in DECODERS for name in json.loads(raw)]


@given(inodes)
def test_inode_round_trip(inode: Inode) -> None:
    assert Inode.decode(KEY, inode.encode()) == inode


@given(st.dictionaries(st.text(), st.integers(), max_size=3))
def test_head_round_trip(writers: dict[str, int]) -> None:
    head = Head(writers=writers)
    assert Head.decode(KEY, head.encode()) == head


def test_the_empty_head() -> None:
    head = Head.decode(KEY, EMPTY_HEAD_VALUE)
    assert (head.offset, head.messages, head.first, head.writers) == (0, 0, 0, {})


@given(times, st.text())
def test_meta_mark_and_time_round_trip(time_ns: int, cluster: str) -> None:
    assert Meta.decode(KEY, Meta(cluster).encode()) == Meta(cluster, FORMAT_VERSION)
    assert Mark.decode(KEY, Mark(Mark.RESET, time_ns).encode()) == Mark("reset", time_ns)
    assert decode_time(KEY, encode_time(time_ns)) == time_ns


def test_the_values_are_what_the_format_page_says() -> None:
    """Golden: a change of any value needs a new format version."""
    assert Meta("c1").encode() == b'{"cluster":"c1","format":1}'
    assert INODE.encode() == (
        b'{"config":{"framing":"write"},"ctime":7,"gid":100,"id":"ab","kind":"topic",'
        b'"mode":"0644","mtime":5,"uid":1000}'
    )
    assert EMPTY_HEAD_VALUE == b'{"first":0,"messages":0,"offset":0,"writers":{}}'
    assert Mark(Mark.RESET, 9).encode() == b'{"kind":"reset","time":9}'
    assert encode_time(11) == b'{"time":11}'
    assert encode_session(host="h", pid=3, mountpoint=None, version="1") == (
        b'{"host":"h","mountpoint":null,"pid":3,"version":"1"}'
    )


@pytest.mark.parametrize("mountpoint", [None, "/dnp"])
def test_sessions_round_trip(mountpoint: str | None) -> None:
    raw = encode_session(host="h", pid=3, mountpoint=mountpoint, version="1")
    assert SessionRecord.decode(KEY, raw) == SessionRecord("h", 3, mountpoint, "1")


@pytest.mark.parametrize("name", ["host", "pid", "mountpoint", "version"])
def test_a_mistyped_session_is_corrupt(name: str) -> None:
    value = {"host": "h", "pid": 3, "mountpoint": None, "version": "1", name: ["x"]}
    with pytest.raises(CorruptData, match=f"the-key.*{name}"):
        SessionRecord.decode(KEY, json.dumps(value).encode())


def test_changed_keeps_everything_else() -> None:
    changed = INODE.changed(99, mode=0o600)
    assert (changed.mode, changed.ctime_ns, changed.mtime_ns) == (0o600, 99, 5)
    assert (changed.id, changed.kind, changed.config) == (INODE.id, INODE.kind, INODE.config)
    assert INODE.mode == 0o644


@pytest.mark.parametrize(("decode", "raw"), DECODERS)
def test_unknown_fields_are_ignored(decode: Decoder, raw: bytes) -> None:
    more = json.loads(raw) | {"a_later_field": [1]}
    assert decode(KEY, json.dumps(more).encode()) == decode(KEY, raw)


@pytest.mark.parametrize(("decode", "raw", "name"), FIELDS)
def test_a_missing_field_is_corrupt(decode: Decoder, raw: bytes, name: str) -> None:
    value = json.loads(raw)
    del value[name]
    with pytest.raises(CorruptData, match=r"the-key.*missing"):
        decode(KEY, json.dumps(value).encode())


def fits(raw: bytes, name: str, value: object) -> bool:
    """Whether a value has the right type; numbers and kinds in text must also parse."""
    right = json.loads(raw)[name]
    return type(value) is type(right) and (not isinstance(right, str) or right in ("c1", "reset"))


@pytest.mark.parametrize(
    ("decode", "raw", "name", "wrong"),
    [
        (*field, wrong)
        for field in FIELDS
        for wrong in (None, True, 1.5, [], [["a", 1]], {"a": None}, "zz", "", 4)
        if field[2] == "writers" or not fits(field[1], field[2], wrong)
    ],
)
def test_a_mistyped_field_is_corrupt(decode: Decoder, raw: bytes, name: str, wrong: Any) -> None:
    value = json.loads(raw)
    value[name] = wrong
    with pytest.raises(CorruptData, match="the-key"):
        decode(KEY, json.dumps(value).encode())


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"3", b"null", b'"x"', b"\xff\xfe", b"{}x"])
@pytest.mark.parametrize("decode", [decode for decode, _ in DECODERS])
def test_what_is_no_json_object_is_corrupt(decode: Decoder, raw: bytes) -> None:
    with pytest.raises(CorruptData, match=r"the-key.*does not hold a JSON object"):
        decode(KEY, raw)


@pytest.mark.parametrize("version", [0, 2, 99])
def test_another_format_version_says_what_to_do(version: int) -> None:
    raw = json.dumps({"format": version, "whatever": "that release has"}).encode()
    advice = rf"format version {version}, .*knows 1: use a release of dnpipefs that knows it.*--prefix"
    with pytest.raises(UnsupportedFormat, match=advice):
        Meta.decode(KEY, raw)


def test_sealed_segments_and_unknown_marks_are_of_a_later_release() -> None:
    with pytest.raises(UnsupportedFormat, match=r"the-key.*sealed segments; upgrade dnpipefs"):
        Head.decode(KEY, Head(Offset(1), 1).encode())
    with pytest.raises(UnsupportedFormat, match=r"the-key.*'seal'; upgrade dnpipefs"):
        Mark.decode(KEY, Mark("seal", 1).encode())
