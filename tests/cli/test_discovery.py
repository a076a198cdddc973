"""Endpoints by DNS as users have them: names from /etc/resolv.conf, a server at port 53."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from tests.cli.conftest import WITHIN_S, Command
from tests.support.dns_server import DnsServer, dns_server
from tests.support.mounts import why_no_mounts

ADDRESS = f"127.53.{os.getpid() >> 8 & 255}.{os.getpid() & 255}"
"""On loopback, and another one for each run: the port has to be 53."""


def why_no_names() -> str | None:
    """Say why the machine's resolver cannot be another one for a moment; None if it can."""
    if os.geteuid() != 0:
        return "port 53 and a mount namespace with another /etc/resolv.conf are for root only"
    done = subprocess.run(["unshare", "--mount", "true"], capture_output=True, text=True, check=False)
    return f"no mount namespaces: {done.stderr.strip()}" if done.returncode else None


pytestmark = pytest.mark.skipif(why_no_names() is not None, reason=why_no_names() or "")


class Host:
    """Runs scripts that see another /etc/resolv.conf, in which `dnpipefs` is the command."""

    def __init__(self, directory: Path, zone: DnsServer) -> None:
        self.zone = zone
        self.resolv_conf = directory / "resolv.conf"
        self.resolv_conf.write_text(f"nameserver {zone.address}\nsearch test\n")

    def run(self, script: str) -> subprocess.CompletedProcess[str]:
        bind = f"mount --bind {shlex.quote(str(self.resolv_conf))} /etc/resolv.conf"
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return subprocess.run(
            ["unshare", "--mount", "bash", "-euo", "pipefail", "-c", f"{bind}\n{script}"],
            env={**os.environ, "PATH": path},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=2 * WITHIN_S,
            check=False,
        )

    def out(self, script: str) -> str:
        done = self.run(script)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout


@pytest.fixture
def host(dnp: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    port = dnp.options[1].rpartition(":")[2]
    records = f"""
        _etcd-client._tcp.cluster.test. SRV 0 0 {port} etcd1.cluster.test.
        etcd1.cluster.test. A 127.0.0.1
    """
    with dns_server(dedent(records), ADDRESS, 53) as zone:
        monkeypatch.setenv("DNPIPEFS_DISCOVERY_SRV", "cluster.test")
        monkeypatch.setenv("DNPIPEFS_PREFIX", dnp.options[3])
        yield Host(tmp_path, zone)


def test_commands_find_the_cluster(host: Host, dnp: Command) -> None:
    host.out("dnpipefs push t x; dnpipefs push --discovery-srv cluster t y")
    assert dnp.out("pull", "t") == b"x\ny\n"
    said = json.loads(host.run("dnpipefs doctor --format json").stdout)
    port = dnp.options[1].rpartition(":")[2]
    assert f"endpoint http://etcd1.cluster.test:{port}" in [
        finding["subject"] for finding in said["findings"]
    ]


@pytest.mark.skipif(why_no_mounts() is not None, reason=why_no_mounts() or "")
def test_a_mount_finds_the_cluster(host: Host, dnp: Command, tmp_path: Path) -> None:
    script = f"""
        cd {shlex.quote(str(tmp_path))}
        mkdir mnt
        dnpipefs mount mnt --log-file log
        echo x > mnt/t
        dnpipefs status mnt | grep -o 'http://.*'
        dnpipefs umount mnt
    """
    port = dnp.options[1].rpartition(":")[2]
    assert host.out(script) == f"http://etcd1.cluster.test:{port}\n"
    assert dnp.out("pull", "t") == b"x\n"


def test_failures_are_one_line(host: Host) -> None:
    def fails(domain: str) -> str:
        done = host.run(f"dnpipefs ls --discovery-srv {domain}")
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.count("\n") == 1
        return done.stderr

    assert fails("clusters.test") == "dnpipefs: DNS knows no domain clusters.test: check --discovery-srv\n"
    assert "etcd1.cluster.test has no SRV records" in fails("etcd1.cluster.test")
    host.resolv_conf.write_text("")
    assert "DNS does not say where the etcd of cluster.test is" in fails("cluster.test")
