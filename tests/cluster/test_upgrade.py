"""etcd is upgraded member by member under the mounts."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.cluster import running_cluster
from tests.cluster.recovery import measured

pytestmark = pytest.mark.thorough


def test_invariant_1_when_etcd_is_upgraded_member_by_member(
    repository: Path, make_directory: Callable[[str], Path], etcd_binary: str
) -> None:
    had = subprocess.run(
        ["scripts/etcd_newer.sh"], cwd=repository, capture_output=True, text=True, check=False
    )
    if had.returncode == 3:
        pytest.skip(had.stderr.strip())
    newer = had.stdout.strip()
    with running_cluster(make_directory, etcd_binary) as cluster:
        before = {status.version for status in cluster.operator.status().values()}
        with measured(cluster, "topic") as recovery:
            for member in [*cluster.followers(), cluster.leader()]:
                member.stop()
                member.binary = newer
                cluster.launch(member)
                cluster.wait_well()
                recovery.progress()
            gaps = "  ".join(f"{name} {gap:.1f}" for name, gap in recovery.gaps().items())
        after = {status.version for status in cluster.operator.status().values()}
        print(f"\n{before} to {after}: longest gap without an acknowledged push, s: {gaps}")
        assert len(after) == 1
        assert after != before or etcd_binary == newer
        assert recovery.errors() == set()
