"""The border where raw bytes become names."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnpipefs.core.names import check_component, check_new_name, parse_path
from dnpipefs.errors import InvalidName, NameTooLong

components = st.binary(min_size=1, max_size=255).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
)


@given(components)
def test_any_other_bytes_are_a_component(name: bytes) -> None:
    assert check_component(name) == name
    if b"@" not in name and name != b".dnp":
        assert check_new_name(name) == name


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"/", b"a\0", b"\0"])
def test_what_no_path_component_can_be(name: bytes) -> None:
    for check in (check_component, check_new_name):
        with pytest.raises(InvalidName):
            check(name)


def test_the_limit_is_255_bytes() -> None:
    assert check_new_name(b"x" * 255) == b"x" * 255
    for check in (check_component, check_new_name):
        with pytest.raises(NameTooLong, match="256 bytes; at most 255"):
            check(b"x" * 256)


@pytest.mark.parametrize("name", [b"@", b"jobs@", b"jobs@workers", b"@x"])
def test_views_can_be_looked_up_and_not_created(name: bytes) -> None:
    assert check_component(name) == name
    with pytest.raises(InvalidName, match="'@' is reserved for views"):
        check_new_name(name)


def test_the_control_directory_can_be_looked_up_and_not_created() -> None:
    assert check_component(b".dnp") == b".dnp"
    with pytest.raises(InvalidName, match="control directory"):
        check_new_name(b".dnp")
    assert check_new_name(b".dnpx") == b".dnpx"


@given(st.lists(components, max_size=5))
def test_paths_round_trip(parts: list[bytes]) -> None:
    joined = b"/".join(parts)
    for path in (joined, b"/" + joined, joined + b"/", b"/./" + joined.replace(b"/", b"//./")):
        assert parse_path(path) == tuple(parts)
        assert parse_path(path.decode("utf-8", "surrogateescape")) == tuple(parts)


@pytest.mark.parametrize("path", ["", "/", "//", ".", "/./"])
def test_the_root_has_no_components(path: str) -> None:
    assert parse_path(path) == ()


@pytest.mark.parametrize("path", ["..", "a/../b", "/..", "a\0b"])
def test_paths_do_not_climb(path: str) -> None:
    with pytest.raises(InvalidName):
        parse_path(path)
