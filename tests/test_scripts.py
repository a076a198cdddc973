"""The set-up scripts where they have nothing to do or cannot do it: quick, quiet, harmless, clear."""

import os
import subprocess
from pathlib import Path

import pytest


def run(repository: Path, *command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=repository, env=os.environ | environment, capture_output=True, text=True, check=False
    )


def test_set_up_says_nothing_when_there_is_nothing_to_do(repository: Path) -> None:
    if not (repository / ".venv" / "set-up").exists():
        pytest.skip("this .venv was not made by scripts/setup.sh")
    done = run(repository, "scripts/setup.sh")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_stopping_where_nothing_is_mounted_is_harmless(repository: Path, tmp_path: Path) -> None:
    done = run(repository, "scripts/stop.sh", tmp_path)
    assert (done.returncode, done.stdout) == (0, f"dnpipefs is not mounted at {tmp_path}\n")


def test_running_on_an_impossible_mount_point_says_so(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run(repository, "scripts/run.sh", tmp_path / "file" / "below")
    assert done.returncode == 1
    assert "choose another, make run MOUNT=DIR" in done.stderr or "no /dev/fuse" in done.stderr


def test_a_newer_etcd_that_cannot_be_had_is_one_line_and_exit_3(repository: Path) -> None:
    done = run(repository, "scripts/etcd_newer.sh", "unheard-of", DEBIAN_MIRROR="http://127.0.0.1:9/debian")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("etcd_newer: no newer etcd: ")
    assert done.stderr.count("\n") == 1
    assert not (repository / ".cache" / "etcd-unheard-of").exists()


def test_make_alone_lists_its_targets(repository: Path) -> None:
    done = run(repository, "make")
    assert done.returncode == 0
    for target in ("run", "stop", "test", "lint", "bench"):
        assert f"make {target} " in done.stdout
