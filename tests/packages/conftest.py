"""What is built and how it is installed, away from the checkout.

Tests marked `thorough` install everything as users do, dependencies compiled and all: `make test-packages`
sets DNPIPEFS_TEST_PACKAGES=thorough, without it they are left out.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.etcd.conftest import shared_server
from tests.support.mounts import REPOSITORY
from tests.support.processes import mounts_below

__all__ = ["shared_server"]

THOROUGH = os.environ.get("DNPIPEFS_TEST_PACKAGES") == "thorough"
BUILD_S = 300.0
INSTALL_S = 580.0
"""pyfuse3 is compiled."""
ANSWER_S = 60.0


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = [
        item
        for item in items
        if not THOROUGH and item.get_closest_marker("thorough") and Path(__file__).parent in item.path.parents
    ]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@dataclass(frozen=True)
class Built:
    """The two files that a release consists of."""

    sdist: Path
    wheel: Path


def build(directory: Path) -> Built:
    """Do what `make dist` does."""
    done = run(["scripts/dist.sh", str(directory)], REPOSITORY, within_s=BUILD_S)
    sdist, wheel = map(Path, done.splitlines())
    return Built(sdist, wheel)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build(tmp_path_factory.mktemp("dist"))


def run(
    command: Sequence[str | Path],
    directory: Path,
    *,
    within_s: float = ANSWER_S,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Run a program that succeeds; return what it says."""
    done = subprocess.run(
        command,
        cwd=directory,
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=within_s,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def make_venv(directory: Path, *options: str) -> Path:
    """Make a virtual environment; return its Python."""
    run([sys.executable, "-m", "venv", *options, directory], directory.parent, within_s=INSTALL_S)
    return directory / "bin" / "python"


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """An empty directory, whose mounts are ended."""
    directory = tmp_path / "elsewhere"
    directory.mkdir()
    yield directory
    for left in mounts_below(directory):
        subprocess.run(["fusermount3", "-u", "-z", left], check=False)
