"""Real mounts on a real etcd: two hosts shared by the harmless tests, hosts of their own for the others."""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from dnpipefs.etcd.server import DEFAULT_QUOTA_BYTES
from tests.support.etcd_process import EtcdProcess
from tests.support.mounts import OP_TIMEOUT_S, Mount, Mounts, why_no_mounts
from tests.support.onlooker import Onlooker
from tests.support.programs import Programs

_numbers = itertools.count()
_REASON = why_no_mounts()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if _REASON is not None:
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(pytest.mark.skip(reason=_REASON))


@pytest.fixture(scope="session")
def shared_etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdProcess]:
    """A server nobody harms; each test has a prefix of its own there."""
    server = EtcdProcess(
        tmp_path_factory.mktemp("etcd"),
        os.environ.get("DNPIPEFS_TEST_ETCD", "etcd"),
        arguments=["--quota-backend-bytes", str(DEFAULT_QUOTA_BYTES)],
    )
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture
def own_etcd(tmp_path: Path, etcd_binary: str) -> Iterator[EtcdProcess]:
    """A server of the test's own, to kill, to freeze, to compact."""
    server = EtcdProcess(tmp_path / "etcd", etcd_binary)
    try:
        server.start()
        yield server
    finally:
        server.kill()


class MakeMount(Protocol):
    """Makes another host of this test."""

    def __call__(
        self,
        *,
        endpoint: str | None = None,
        op_timeout: float = OP_TIMEOUT_S,
        session_ttl: int = 10,
        faulty: bool = False,
        traced: bool = False,
        read_stale: bool = False,
        start: bool = True,
    ) -> Mount: ...


@pytest.fixture
def faults_expected() -> list[str]:
    """Append to it what a test provokes among the errors its daemons log."""
    return []


@pytest.fixture
def mount(tmp_path: Path, request: pytest.FixtureRequest, faults_expected: list[str]) -> Iterator[MakeMount]:
    """Give a function that mounts another host, all in one cluster of the test's own."""
    mounts = Mounts(tmp_path)
    prefix = f"/test/{next(_numbers)}/"

    def make(
        *,
        endpoint: str | None = None,
        op_timeout: float = OP_TIMEOUT_S,
        session_ttl: int = 10,
        faulty: bool = False,
        traced: bool = False,
        read_stale: bool = False,
        start: bool = True,
    ) -> Mount:
        if endpoint is None:
            server: EtcdProcess = request.getfixturevalue("shared_etcd")
            endpoint = server.endpoint
        made = mounts.make(
            endpoints=[endpoint],
            prefix=prefix,
            op_timeout=op_timeout,
            session_ttl=session_ttl,
            faulty=faulty,
            traced=traced,
            read_stale=read_stale,
        )
        if start:
            made.start()
        return made

    try:
        with mounts.guarded():
            yield make
    finally:
        mounts.clear()
    complain(mounts, faults_expected)


def complain(mounts: Mounts, expected: list[str]) -> None:
    """Fail the test for what the daemons did not expect either."""
    for host, log in mounts.logs().items():
        bad = [line for line in log.splitlines() if " ERROR " in line or line.startswith("Traceback")]
        bad = [line for line in bad if not any(text in line for text in expected)]
        assert not bad, f"{host} logged:\n{log}"


@pytest.fixture(scope="session")
def shared_mounts(
    shared_etcd: EtcdProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Mounts, Mount, Mount]]:
    mounts = Mounts(tmp_path_factory.mktemp("mounts"))
    pair = [mounts.make(endpoints=[shared_etcd.endpoint], prefix="/shared/") for _ in range(2)]
    try:
        for host in pair:
            host.start()
        yield mounts, pair[0], pair[1]
        assert [host.stop() for host in pair] == [0, 0]
    finally:
        mounts.clear()


class Hosts:
    """One directory of the cluster as two hosts see it."""

    def __init__(self, here: Mount, there: Mount, name: str) -> None:
        self.here = here.path / name
        self.there = there.path / name

    def read_there(self, name: str = "topic") -> bytes:
        return (self.there / name).read_bytes()


@pytest.fixture
def hosts(shared_mounts: tuple[Mounts, Mount, Mount]) -> Iterator[Hosts]:
    """An empty directory of the test's own, on two hosts that all such tests share."""
    mounts, here, there = shared_mounts
    seen = {host: len(log) for host, log in mounts.logs().items()}
    name = f"test{next(_numbers)}"
    with mounts.guarded():
        (here.path / name).mkdir()
        yield Hosts(here, there, name)
    for host, log in mounts.logs().items():
        new = log[seen[host] :]
        assert " ERROR " not in new, f"{host} logged:\n{new}"
        assert "Traceback" not in new, f"{host} logged:\n{new}"


@pytest.fixture
def here(hosts: Hosts) -> Path:
    return hosts.here


@pytest.fixture
def there(hosts: Hosts) -> Path:
    return hosts.there


@pytest.fixture
def topic(here: Path) -> Path:
    """The path of a topic yet to be made."""
    return here / "topic"


@pytest.fixture
def programs(here: Path) -> Iterator[Programs]:
    """Programs that run in the test's directory and end with it."""
    programs = Programs(here)
    try:
        yield programs
    finally:
        programs.clear()


@pytest.fixture(scope="session")
def onlooker(shared_etcd: EtcdProcess) -> Iterator[Onlooker]:
    """Somebody who sees how the groups of `hosts` stand."""
    with Onlooker(shared_etcd.endpoint, "/shared/") as onlooker:
        yield onlooker
