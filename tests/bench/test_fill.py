"""The program that fills a directory, as the docs call it."""

import subprocess
import sys
from pathlib import Path

from tests.cli.conftest import Command
from tests.support.etcd_process import EtcdProcess


def test_a_directory_of_many_topics(tmp_path: Path, etcd_binary: str) -> None:
    server = EtcdProcess(tmp_path / "etcd", etcd_binary)
    try:
        server.start()
        command = [sys.executable, "-m", "dnpipefs.bench.fill", server.endpoint, "many", "50"]
        done = subprocess.run(command, capture_output=True, check=True)
        assert (done.stdout, done.stderr) == (b"", b"")
        dnp = Command(["--endpoints", server.endpoint])
        names = dnp.out("ls", "many").split()
        assert len(names) == 50
        first, second = (dnp.out("pull", f"many/{name.decode()}") for name in names[:2])
        assert first.endswith(b"\n")
        assert second == b"", "every second one is empty"
    finally:
        server.kill()
