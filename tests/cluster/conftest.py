"""One cluster on hosts of its own for all tests of this directory; each puts right what it has harmed.

Tests marked `thorough` take minutes: `make test-cluster` sets DNPIPEFS_TEST_CLUSTER=thorough, without it
they are left out.
"""

import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster, running_cluster
from tests.cluster.hosts import why_no_hosts
from tests.support.mounts import why_no_mounts

THOROUGH = os.environ.get("DNPIPEFS_TEST_CLUSTER") == "thorough"
TEST_LIMIT_S = 240.0
"""After that a test's daemons are killed, so that whatever hangs in the kernel for them fails instead."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = [item for item in items if not THOROUGH and item.get_closest_marker("thorough")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="package")
def make_directory(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Give what makes a directory for a cluster; skips where there can be none."""
    reason = why_no_mounts() or why_no_hosts()
    if reason is not None:
        pytest.skip(reason)
    return partial(tmp_path_factory.mktemp, numbered=False)


@pytest.fixture(scope="package")
def shared_cluster(make_directory: Callable[[str], Path]) -> Iterator[Cluster]:
    with running_cluster(make_directory, os.environ.get("DNPIPEFS_TEST_ETCD", "etcd")) as cluster:
        yield cluster


@pytest.fixture
def cluster(shared_cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """The cluster, well before and after the test."""
    shared_cluster.wait_well()
    timer = threading.Timer(TEST_LIMIT_S, shared_cluster.end_daemons)
    timer.start()
    try:
        yield shared_cluster
    finally:
        timer.cancel()
        timer.join()
        request.node.add_report_section("teardown", "logs", shared_cluster.logs())  # shown if it failed
