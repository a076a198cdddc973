"""One cluster of hosts under systemd for the tests of this directory; each puts right what it has harmed.

Tests that need it are run by `make test-systemd` only, which sets DNPIPEFS_TEST_SYSTEMD.
"""

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.systemd.image import Missing, why_no_machines
from tests.systemd.nodes import NAMES, Nodes, running_machines

SLOW = {"make_directory", "vagrant"}
"""Fixtures of tests that take long."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if os.environ.get("DNPIPEFS_TEST_SYSTEMD"):
        return
    left_out = [
        item
        for item in items
        if Path(__file__).parent in item.path.parents and SLOW.intersection(getattr(item, "fixturenames", ()))
    ]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="package")
def make_directory(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Give what makes a directory for hosts; skips where there can be none."""
    reason = why_no_machines()
    if reason is not None:
        pytest.skip(reason)
    return partial(tmp_path_factory.mktemp, numbered=False)


@pytest.fixture(scope="package")
def shared_nodes(make_directory: Callable[[str], Path]) -> Iterator[Nodes]:
    try:
        with running_machines(make_directory, NAMES) as machines:
            nodes = Nodes(machines)
            nodes.provision()
            yield nodes
    except Missing as error:
        pytest.skip(f"no hosts under systemd: {error}")


@pytest.fixture
def nodes(shared_nodes: Nodes, request: pytest.FixtureRequest) -> Iterator[Nodes]:
    """The cluster, well before and after the test."""
    shared_nodes.put_right()
    shared_nodes.wait_well()
    try:
        yield shared_nodes
    finally:
        request.node.add_report_section("teardown", "logs", shared_nodes.logs())  # shown if it failed
