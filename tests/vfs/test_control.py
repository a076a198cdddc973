"""Ids of the control directory: none is one of a topic, an alias of one, a view, or of another file of it."""

from hypothesis import given, settings
from hypothesis import strategies as st

from dnpipefs.core.names import MAX_FILE_ID, ROOT, FileId, SessionId
from dnpipefs.log.session import Host
from dnpipefs.vfs.control import CONTROL, _id, _Kind, is_control, is_control_name
from dnpipefs.vfs.reports import _line
from dnpipefs.vfs.views import View, ViewTable

IDS = st.integers(1, MAX_FILE_ID - 1).map(FileId)


@settings(deadline=None)
@given(st.sampled_from(_Kind), IDS, st.sampled_from(_Kind), IDS)
def test_ids_are_different_and_a_kernel_takes_them(
    kind: _Kind, file: FileId, other: _Kind, than: FileId
) -> None:
    assert (_id(kind, file) == _id(other, than)) == ((kind, file) == (other, than))
    assert is_control(_id(kind, file))
    assert _id(kind, file) < 1 << 63


@settings(deadline=None)
@given(IDS, st.binary(min_size=1))
def test_topics_and_views_are_none_of_it(topic: FileId, group: bytes) -> None:
    assert not is_control(topic)
    assert not is_control(FileId(topic + MAX_FILE_ID)), "an alias"
    assert not is_control(ViewTable().id_of(View(topic, group)))
    assert not is_control(ViewTable().id_of(View(topic, None)))


def test_the_name_is_reserved_in_the_root_only() -> None:
    assert is_control_name(ROOT, b".dnp")
    assert not is_control_name(FileId(2), b".dnp")
    assert not is_control_name(ROOT, b".dnpx")
    assert is_control_name(CONTROL, b"anything")


TEXT = st.text(st.characters(categories=None))


@settings(deadline=None)
@given(TEXT, TEXT)
def test_a_line_of_hosts_has_six_words(host: str, mountpoint: str) -> None:
    """Whatever somebody has put into etcd as a session."""
    line = _line(Host(SessionId(0x1F), host, 7, mountpoint, "0.1", 1795865938048859000))
    words = line.split(b" ")
    assert line.count(b"\n") == 1
    assert len(words) == 6
    assert words[1:2] + words[3:] == [b"7", b"0.1", b"1f", b"2026-11-28T11:38:58.048+00:00\n"]
