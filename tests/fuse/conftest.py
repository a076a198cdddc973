from collections.abc import AsyncIterator, Callable, Iterator
from itertools import count

import pytest

from dnpipefs.cluster import Cluster, Settings, open_cluster
from tests.etcd.conftest import server, shared_server
from tests.support.blocking_mount import BlockingMount
from tests.support.etcd_process import EtcdProcess
from tests.support.mounts import why_no_mounts

__all__ = ["server", "shared_server"]

MountMaker = Callable[..., BlockingMount]
_numbers = count()


@pytest.fixture
async def cluster(shared_server: EtcdProcess) -> AsyncIterator[Cluster]:
    """Join a cluster of the test's own."""
    settings = Settings(endpoints=(shared_server.endpoint,), prefix=f"/fuse/{next(_numbers)}/")
    async with open_cluster(settings) as cluster:
        yield cluster


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
