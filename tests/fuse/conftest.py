from collections.abc import Callable, Iterator

import pytest

from tests.support.blocking_mount import BlockingMount
from tests.support.mounts import why_no_mounts

MountMaker = Callable[..., BlockingMount]


@pytest.fixture(scope="module")
def make_blocking_mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountMaker]:
    """Make mounts whose reads block; they end with the module."""
    if reason := why_no_mounts():
        pytest.skip(reason)
    mounts: list[BlockingMount] = []

    def make(*, hints: bool = True, looks: bool = True, uid: int = 0) -> BlockingMount:
        directory = tmp_path_factory.mktemp("blocking")
        directory.chmod(0o755)
        mounts.append(BlockingMount(directory / "mnt", hints=hints, looks=looks, uid=uid))
        return mounts[-1]

    yield make
    for mount in mounts:
        mount.clear()


@pytest.fixture(scope="module")
def blocking(make_blocking_mount: MountMaker) -> BlockingMount:
    """A mount whose reads block, one for a module: each test has file names of its own."""
    return make_blocking_mount()
