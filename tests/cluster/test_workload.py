"""The workload on two real mounts of one real etcd, and what the judge says to its history."""

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cluster.history import (
    Acknowledged,
    Create,
    Delete,
    Failed,
    Hear,
    Killed,
    Listing,
    Read,
    Received,
    Rename,
    Truncate,
    Write,
)
from tests.cluster.judge import Limits, judge
from tests.cluster.workload import Workload
from tests.support.etcd_process import EtcdProcess
from tests.support.mounts import Mounts, why_no_mounts
from tests.support.waiting import eventually

pytestmark = pytest.mark.skipif(why_no_mounts() is not None, reason=str(why_no_mounts()))

OP_TIMEOUT_S = 20.0
LIMITS = Limits(op_timeout=OP_TIMEOUT_S)
WITHIN_S = 60.0
SEED = 7


@contextmanager
def etcd(directory: Path) -> Iterator[EtcdProcess]:
    server = EtcdProcess(directory, os.environ.get("DNPIPEFS_TEST_ETCD", "etcd"))
    try:
        server.start()
        yield server
    finally:
        server.kill()


def test_all_guarantees_hold_when_a_daemon_is_killed(tmp_path: Path) -> None:
    mounts = Mounts(tmp_path)
    with etcd(tmp_path / "etcd") as server:
        hosts = [
            mounts.make(endpoints=[server.endpoint], prefix="/t/", op_timeout=OP_TIMEOUT_S, session_ttl=2)
            for _ in range(2)
        ]
        try:
            for host in hosts:
                host.start()
            paths = [host.path for host in hosts]
            workload = Workload(
                mounts=paths, directory=tmp_path / "history", seed=SEED, op_timeout=OP_TIMEOUT_S
            )
            with mounts.guarded():
                workload.prepare()
                with workload.running():
                    eventually(lambda: workload.acknowledged() > 1500, within_s=WITHIN_S)
                    assert all(host.alive for host in hosts)
                    with workload.nemesis(paths[0], "kill"):
                        hosts[0].kill()
                        hosts[0].start()
                    before = workload.acknowledged()
                    eventually(lambda: workload.acknowledged() > before + 1500, within_s=WITHIN_S)
                assert workload.final_read()
            for host in hosts:
                if not host.alive:
                    workload.died(host.path, host.wait())
        finally:
            mounts.clear()
    history = workload.collect()
    assert judge(history, LIMITS) == []
    done = Counter(type(call) for call in history.calls if call.ok)
    for kind in (Write, Read, Hear, Truncate, Create, Delete, Rename, Listing, Received):
        assert done[kind] > 0, kind
    assert done[Acknowledged] + done[Failed] + done[Killed] > 0
    assert any(read.data for read in history.of(Received))
    assert any(hear.data for hear in history.of(Hear) if hear.waits)
    assert any(hear.data for hear in history.of(Hear) if not hear.waits)
