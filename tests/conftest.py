"""What all tests share: the session ends with an error if it leaves processes, mounts or files behind."""

import os
import signal
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from dnpipefs.cli.configuration import CONFIG_VARIABLE, variables
from dnpipefs.cli.options import OPTIONS
from tests.support.processes import MARK, clean_up


def pytest_configure() -> None:
    """Let the tests' programs get signals that a shell makes what it runs in the background ignore.

    And end on SIGTERM as on Ctrl-C: fixtures take down what they set up.
    """
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGQUIT, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep together, where tests run side by side, what shares fixtures: a file's, or the one cluster."""
    top = Path(__file__).parent
    for item in items:
        place = item.path.relative_to(top)
        group = place.parts[0] if place.parts[0] == "cluster" else str(place)
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session", autouse=True)
def leaves_nothing_behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Mark what this session starts and creates, and check at its end that all of it is gone."""
    directory = tmp_path_factory.getbasetemp()
    scratch = tmp_path_factory.mktemp("scratch")
    session = uuid.uuid4().hex
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(MARK, session)
        patch.setenv("TMPDIR", str(scratch))
        for name in variables(OPTIONS):
            patch.delenv(name, raising=False)
        patch.setenv(CONFIG_VARIABLE, os.devnull)  # how this machine is configured is not what is tested
        patch.setattr(tempfile, "tempdir", str(scratch))
        yield
        leaks = clean_up(session, directory) + [f"file {path}" for path in scratch.iterdir()]
    assert not leaks, "left behind by the tests:\n" + "\n".join(leaks)


@pytest.fixture
def etcd_binary() -> str:
    """Name the etcd server to test against; DNPIPEFS_TEST_ETCD chooses another than the distribution's."""
    return os.environ.get("DNPIPEFS_TEST_ETCD", "etcd")


@pytest.fixture
def repository() -> Path:
    """Return the top directory of the checkout."""
    return Path(__file__).parents[1]
