"""Where data lies if nobody says so."""

import os
import pwd
from pathlib import Path

import pytest

from dnpipefs.cluster import default_data_dir

OF_ROOT = Path("/var/lib/dnpipefs")


def nobody(_uid: int) -> pwd.struct_passwd:
    raise KeyError


@pytest.mark.parametrize(
    ("uid", "environment", "expected"),
    [
        (0, {"HOME": "/root"}, OF_ROOT),
        (1000, {"HOME": "/home/me"}, Path("/home/me/.local/state/dnpipefs")),
        (1000, {"HOME": "/home/me", "XDG_STATE_HOME": "/state"}, Path("/state/dnpipefs")),
        (1000, {}, OF_ROOT),
    ],
    ids=["root", "a home", "a state", "no home at all"],
)
def test_the_default(
    uid: int, environment: dict[str, str], expected: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    assert default_data_dir() == expected
