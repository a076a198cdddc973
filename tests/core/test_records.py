"""The values of the small keys: JSON that explains itself, parsed strictly."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnpipefs.core.config import StoredConfig
from dnpipefs.core.keys import Beside, BodyKey
from dnpipefs.core.names import MAX_FILE_ID, FileId, Kind, Offset, Revision, SessionId
from dnpipefs.core.records import (
    EMPTY_HEAD_VALUE,
    FORMAT_VERSION,
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
    config=st.dictionaries(st.text(), json_values, max_size=3).map(StoredConfig),
)
INODE = Inode(FileId(0xAB), Kind.TOPIC, 0o644, 1000, 100, 5, 7, StoredConfig({"framing": "write"}))
SEGMENTS = (
    SegmentInfo(10, 99, 2, 5, 7),
    SegmentInfo(1 << 20, 5000, 3, 6, 6, BodyKey(SessionId(0x7F), 3, Beside(9, 5000))),
)
HEAD = Head(Offset(2_000_000), 50, Offset(7), 1, {"7f": 3}, Revision(12), SEGMENTS)
OPTIONAL = ("first_message", "forgotten", "segments")
"""Fields of the head that are not written while they are 0 or empty."""


def decode_entry_time(key: bytes, raw: bytes) -> object:
    return decode_time(key, raw)


Decoder = Callable[[bytes, bytes], object]
DECODERS: list[tuple[Decoder, bytes]] = [
    (Meta.decode, Meta("c1").encode()),
    (Inode.decode, INODE.encode()),
    (Head.decode, HEAD.encode()),
    (Mark.decode, Mark(Mark.RESET, 9).encode()),
    (Mark.decode, Mark(Mark.SEAL, 9, Offset(3), 1, SEGMENTS).encode()),
    (Mark.decode, Mark(Mark.TRIM, 9, Offset(3), 1).encode()),
    (lambda key, raw: Index.decode(key, raw, Offset(3)), Index(Offset(3), 1, SEGMENTS).encode()),
    (decode_entry_time, encode_time(11)),
]
FIELDS = [(decode, raw, name) for decode, raw in DECODERS for name in json.loads(raw)]


@given(inodes)
def test_inode_round_trip(inode: Inode) -> None:
    assert Inode.decode(KEY, inode.encode()) == inode


@given(st.dictionaries(st.integers(0, 2**64 - 1).map("{:x}".format), times, max_size=3))
def test_head_round_trip(writers: dict[str, int]) -> None:
    head = Head(writers=writers)
    assert Head.decode(KEY, head.encode()) == head


@pytest.mark.parametrize("name", ["", "zz", "0x1", "7F", "1" * 17])
def test_a_writer_is_named_by_its_session(name: str) -> None:
    with pytest.raises(CorruptData, match="which is no session"):
        Head.decode(KEY, Head(writers={name: 1}).encode())


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
    assert HEAD.encode() == (
        b'{"first":7,"first_message":1,"forgotten":12,"messages":50,"offset":2000000,"segments":'
        b'[[10,99,2,5,7],[1048576,5000,3,6,6,"7f",3,9]],"writers":{"7f":3}}'
    )
    assert Mark(Mark.RESET, 9).encode() == b'{"kind":"reset","time":9}'
    assert Mark(Mark.SEAL, 9, Offset(3), 1, SEGMENTS[:1]).encode() == (
        b'{"first_message":1,"kind":"seal","segments":[[10,99,2,5,7]],"start":3,"time":9}'
    )
    assert Mark(Mark.TRIM, 9, Offset(3), 1).encode() == (
        b'{"first_message":1,"kind":"trim","start":3,"time":9}'
    )
    assert Index(Offset(3), 1, SEGMENTS).encode() == (
        b'{"messages":1,"segments":[[10,99,2,5,7],[1048576,5000,3,6,6,"7f",3,9]]}'
    )
    assert encode_time(11) == b'{"time":11}'
    assert encode_session(host="h", pid=3, mountpoint=None, version="1") == (
        b'{"host":"h","mountpoint":null,"pid":3,"version":"1"}'
    )
    assert encode_session(host="h", pid=3, mountpoint="/dnp", version="1", since_ns=9) == (
        b'{"host":"h","mountpoint":"/dnp","pid":3,"since":9,"version":"1"}'
    )


@pytest.mark.parametrize("since_ns", [None, 9])
@pytest.mark.parametrize("mountpoint", [None, "/dnp"])
def test_sessions_round_trip(mountpoint: str | None, since_ns: int | None) -> None:
    raw = encode_session(host="h", pid=3, mountpoint=mountpoint, version="1", since_ns=since_ns)
    assert SessionRecord.decode(KEY, raw) == SessionRecord("h", 3, mountpoint, "1", since_ns)


@pytest.mark.parametrize("name", ["host", "pid", "mountpoint", "version", "since"])
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


@pytest.mark.parametrize(
    ("decode", "raw", "name"),
    [field for field in FIELDS if field[1] != HEAD.encode() or field[2] not in OPTIONAL],
)
def test_a_missing_field_is_corrupt(decode: Decoder, raw: bytes, name: str) -> None:
    value = json.loads(raw)
    del value[name]
    with pytest.raises(CorruptData, match=r"the-key.*missing"):
        decode(KEY, json.dumps(value).encode())


KINDS = (Mark.RESET, Mark.SEAL, Mark.TRIM)


def fits(raw: bytes, name: str, value: object) -> bool:
    """Whether a value has the right type; numbers and kinds in text must also parse."""
    right = json.loads(raw)[name]
    return type(value) is type(right) and (not isinstance(right, str) or right in ("c1", *KINDS))


@pytest.mark.parametrize(
    ("decode", "raw", "name", "wrong"),
    [
        (*field, wrong)
        for field in FIELDS
        for wrong in (None, True, 1.5, [], [["a", 1]], {"a": None}, "zz", "", 4)
        if field[2] == "writers" or (field[2] == "segments" and wrong) or not fits(field[1], field[2], wrong)
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


def test_unknown_marks_are_of_a_later_release() -> None:
    with pytest.raises(UnsupportedFormat, match=r"the-key.*'fold'; upgrade dnpipefs"):
        Mark.decode(KEY, Mark("fold", 1).encode())


def test_heads_marks_and_pages_come_back_as_they_were() -> None:
    assert Head.decode(KEY, HEAD.encode()) == HEAD
    for mark in (
        Mark(Mark.RESET, 9),
        Mark(Mark.SEAL, 9, Offset(3), 1, SEGMENTS),
        Mark(Mark.TRIM, 9, Offset(3), 1),
    ):
        assert Mark.decode(KEY, mark.encode()) == mark
    page = Index(Offset(3), 1, SEGMENTS)
    assert Index.decode(KEY, page.encode(), Offset(3)) == page
    assert page.end == 3 + 10 + (1 << 20)
    assert HEAD.newest.end == HEAD.offset


@pytest.mark.parametrize(
    "row",
    [
        [],
        [1, 2, 3, 4],
        [1, 2, 3, 4, 5, "7f"],
        [1, 2, 3, 4, True],
        [1, 2, 3, 4, 5, "zz", 1, 1],
        7,
        None,
        "12345",
    ],
)
def test_a_segment_that_does_not_parse_is_corrupt(row: object) -> None:
    raw = json.dumps(json.loads(HEAD.encode()) | {"segments": [row]}).encode()
    with pytest.raises(CorruptData, match=r"the-key.*segments"):
        Head.decode(KEY, raw)
