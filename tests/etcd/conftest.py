"""Real servers for the tests of the client: one shared by the harmless, one of their own for the others."""

import itertools
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from dnpipefs.etcd import Client, open_client
from tests.support.etcd_process import EtcdProcess
from tests.support.tcp_proxy import TcpProxy, open_proxy

CALL_TIMEOUT_S = 20.0
"""For calls that should succeed, on a machine that has other things to do."""

_numbers = itertools.count()


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdProcess]:
    """A server nobody harms; keep to keys below `prefix`."""
    binary = os.environ.get("DNPIPEFS_TEST_ETCD", "etcd")
    server = EtcdProcess(tmp_path_factory.mktemp("etcd"), binary)
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture
def server(tmp_path: Path, etcd_binary: str) -> Iterator[EtcdProcess]:
    """A server of the test's own, to kill, to compact, to fill."""
    server = EtcdProcess(tmp_path / "etcd", etcd_binary)
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture
async def cluster(tmp_path: Path, etcd_binary: str) -> AsyncIterator[list[EtcdProcess]]:
    """Three members of a test's own."""
    members = [EtcdProcess(tmp_path / name, etcd_binary, name=name) for name in ("a", "b", "c")]
    try:
        for member in members:
            member.cluster = members
            member.launch()
        for member in members:
            member.wait_ready()
        yield members
    finally:
        for member in members:
            member.kill()


@pytest.fixture
def prefix() -> bytes:
    """A piece of the shared server's keys for one test."""
    return b"/test/%d/" % next(_numbers)


@pytest.fixture
async def client(shared_server: EtcdProcess) -> AsyncIterator[Client]:
    async with open_client([shared_server.endpoint], timeout=CALL_TIMEOUT_S) as client:
        yield client


@pytest.fixture
async def proxy(server: EtcdProcess) -> AsyncIterator[TcpProxy]:
    """A way to `server` that can be broken."""
    async with open_proxy(server.port) as proxy:
        yield proxy
