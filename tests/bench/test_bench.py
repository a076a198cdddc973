"""A very short real run: the shape of what comes out and what stays behind, never a timing."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.etcd_process import EtcdProcess
from tests.support.mounts import why_no_mounts

if _reason := why_no_mounts():
    pytest.skip(_reason, allow_module_level=True)

PROGRAM = [sys.executable, "-m", "dnpipefs", "bench"]
SHORT = ["--rounds", "1", "--seconds", "0.05", "--writers", "3", "--hosts", "2"]
SHORT += ["--fill", "30000", "--topics", "100", "--readers", "10", "--format", "json"]


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PROGRAM, *arguments], capture_output=True, text=True, timeout=90, check=False)


def temporary_files() -> list[str]:
    return os.listdir(os.environ["TMPDIR"])


def test_everything_is_measured_and_nothing_left_behind() -> None:
    done = bench(*SHORT)
    assert done.returncode in (0, 1), done.stderr  # how fast this machine is today is no concern of tests
    report = json.loads(done.stdout)
    assert {result["id"] for result in report["results"]} == {f"P{number}" for number in range(1, 9)}
    assert (done.returncode == 0) == report["passed"]
    for result in report["results"]:
        assert result["dnpipefs"]["median"] > 0, result["what"]
        if result["ratio"] is None and result["bar"] is not None:
            assert result["bar"]["of"] == "figure"
        elif result["ratio"] is not None:
            assert result["ratio"]["median"] > 0, result["what"]
    assert report["machine"].keys() >= {"machine", "kernel", "etcd", "storage", "rounds", "others"}
    assert temporary_files() == []


@pytest.fixture
def server(tmp_path: Path, etcd_binary: str) -> Iterator[EtcdProcess]:
    server = EtcdProcess(tmp_path / "etcd", etcd_binary)
    try:
        server.start()
        yield server
    finally:
        server.kill()


def test_keys_in_somebodys_etcd_are_removed_again(server: EtcdProcess) -> None:
    done = bench(*SHORT, "--only", "p1", "--endpoints", server.endpoint, "--prefix", "/team/")
    assert done.returncode in (0, 1), done.stderr
    left = subprocess.run(
        ["etcdctl", "--endpoints", server.endpoint, "get", "--prefix", "", "--keys-only"],
        env={**os.environ, "ETCDCTL_API": "3"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert left.stdout.split() == []


def test_an_interrupted_run_leaves_nothing_behind() -> None:
    process = subprocess.Popen(
        [*PROGRAM, "--seconds", "60"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    assert process.stderr.readline().startswith("P1")  # etcd runs and the first measurement begins
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors) == (130, "", "")
    assert temporary_files() == []


def test_an_unknown_measurement_is_told_in_one_line() -> None:
    done = bench("--only", "P1,P99")
    assert done.returncode == 2
    assert "P99" in done.stderr
    assert done.stderr.count("\n") == 1
