"""`mount --metrics`: what comes over HTTP, for right and wrong requests."""

import http.client
import json
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open_metrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from dnpipefs.cli import program
from dnpipefs.mount.scrapes import CONNECTIONS
from tests.cli.conftest import Capture, Command
from tests.support.etcd_process import free_port
from tests.support.mounts import why_no_mounts
from tests.support.processes import mounts_below
from tests.support.waiting import eventually

pytestmark = pytest.mark.skipif(why_no_mounts() is not None, reason=why_no_mounts() or "")


@pytest.fixture
def mountpoint(tmp_path: Path, dnp: Command) -> Iterator[Path]:
    directory = tmp_path / "mnt"
    directory.mkdir()
    yield directory
    if mounts_below(directory):
        Command([]).run("umount", directory)


def ask(port: int, method: str, path: str, headers: Mapping[str, str] | None = None) -> tuple[int, str, str]:
    """Return status, content type and body of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request(method, path, headers=dict(headers or {}))
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, answer.getheader("Content-Type") or "", body


def send(port: int, raw: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(raw)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(4096), b""))


def ask_status(mountpoint: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(os.getxattr(mountpoint, "user.dnp.status"))
    return told


def refuses(port: int) -> bool:
    try:
        ask(port, "GET", "/metrics")
    except OSError:
        return True
    return False


def test_scrapes(dnp: Command, mountpoint: Path, tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "log"
    dnp.out("mount", mountpoint, "--metrics", f"127.0.0.1:{port}", "--log-file", log)
    (mountpoint / "topic").write_bytes(b"line\n")

    status, kind, body = ask(port, "GET", "/metrics")
    assert (status, kind) == (200, "text/plain; version=0.0.4; charset=utf-8")
    names = {family.name for family in parse_text(body)}
    assert names == {family.name for family in parse_text((mountpoint / ".dnp" / "metrics").read_text())}
    assert "\ndnpipefs_pushed_messages_total 1.0\n" in body
    wanted = {"Accept": "application/openmetrics-text;version=1.0.0;q=0.5, text/plain;version=0.0.4;q=0.3"}
    status, kind, body = ask(port, "GET", "/metrics?x=y", wanted)
    assert (status, kind) == (200, "application/openmetrics-text; version=1.0.0; charset=utf-8")
    assert "dnpipefs_pushed_messages" in {family.name for family in parse_open_metrics(body)}  # type: ignore[no-untyped-call]

    # What is wrong is said, and harms nobody.
    assert ask(port, "GET", "/metrics", {"Accept": "text/plain;version=none;q=\xff"})[0] == 200
    assert ask(port, "GET", "/")[0] == 404
    assert ask(port, "POST", "/metrics")[0] == 405
    assert ask(port, "HEAD", "/metrics")[::2] == (200, "")
    assert send(port, b"nonsense\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    assert send(port, b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 20_000).startswith(b"HTTP/1.1 431 ")
    assert send(port, b"") == b""
    idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(8)]
    assert ask(port, "GET", "/metrics")[0] == 200, "though others say nothing"
    for connection in idle:
        connection.close()

    other = tmp_path / "other"
    other.mkdir()
    said = dnp.fails(1, "mount", other, "--metrics", f"127.0.0.1:{port}")
    assert f"cannot serve metrics on 127.0.0.1:{port}: Address already in use" in said
    assert mounts_below(other) == []
    assert Command([]).out("umount", mountpoint) == b""
    eventually(lambda: refuses(port))  # the daemon ends after its mount
    assert "ERROR" not in log.read_text()


def test_connections_without_number_take_no_descriptors(dnp: Command, mountpoint: Path) -> None:
    """Which the mount needs for its programs: with 1024 of them, idle connections could use up all."""
    port = free_port()
    dnp.out("mount", mountpoint, "--metrics", f"127.0.0.1:{port}")
    daemon = Path("/proc", str(ask_status(mountpoint)["pid"]), "fd")
    ask(port, "GET", "/metrics")
    before = len(os.listdir(daemon))
    idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(10 * CONNECTIONS)]
    eventually(lambda: len(os.listdir(daemon)) >= before + CONNECTIONS - 1)
    assert ask_status(mountpoint)["etcd"]["answers"]
    assert len(os.listdir(daemon)) <= before + CONNECTIONS + 1
    for connection in idle:
        connection.close()
    assert ask(port, "GET", "/metrics")[0] == 200
    assert Command([]).out("umount", mountpoint) == b""


@pytest.mark.parametrize("value", ["", "9469", "host:", "host:x", ":-1", "host:65536", "::1:9469", "host:٣"])
def test_addresses_that_are_none(tmp_path: Path, capfdbinary: Capture, value: str) -> None:
    assert program.run(["mount", str(tmp_path), "--metrics", value]) == 2
    assert b"an address and a port are needed" in capfdbinary.readouterr().err
