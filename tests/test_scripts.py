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


def test_certificates_are_of_one_authority_and_kept(repository: Path, tmp_path: Path) -> None:
    made = tmp_path / "certificates"
    assert run(repository, "scripts/certificates.sh", made, "one=10.0.0.1").returncode == 0
    before = {path: path.read_bytes() for path in made.iterdir() if path.suffix != ".srl"}
    assert run(repository, "scripts/certificates.sh", made, "one=10.0.0.1", "two=two.example").returncode == 0
    assert before == {path: path.read_bytes() for path in before}
    names = {"one": ["-verify_ip", "10.0.0.1"], "two": ["-verify_hostname", "two.example"]}
    for name, checks in names.items():
        for purpose in ("sslserver", "sslclient"):
            options = ["-purpose", purpose, *checks, "-CAfile", str(made / "ca.crt")]
            done = run(repository, "openssl", "verify", *options, made / f"{name}.crt")
            assert done.returncode == 0, done.stdout + done.stderr
    assert {path.stat().st_mode & 0o077 for path in made.iterdir()} == {0}


def test_certificates_of_an_authority_that_is_elsewhere(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "ca.crt").touch()
    done = run(repository, "scripts/certificates.sh", tmp_path, "one=10.0.0.1")
    assert done.returncode == 1
    assert "only where the first certificates were made" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("", "--name, --nodes and --certificates are needed"),
        ("--name one", "--name, --nodes and --certificates are needed"),
        ("--name", "--name needs a value"),
        ("--nam one", "there is no option --nam"),
        ("--name three --nodes one=10.0.0.1,two=10.0.0.2 --certificates .", "three is not among --nodes"),
        ("--name one --nodes one=10.0.0.1 --certificates .", "no ./ca.crt: scripts/certificates.sh makes it"),
    ],
)
def test_provisioning_that_cannot_be(repository: Path, arguments: str, said: str) -> None:
    done = run(repository, "scripts/provision.sh", *arguments.split())
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("provision: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
