"""What the kernel removes or replaces is what it was told of, though another host changes names meanwhile."""

import errno
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pyfuse3
import pytest

from dnpipefs.cluster import Cluster
from dnpipefs.core.names import ROOT, FileId, Kind
from dnpipefs.fuse.adapter import Adapter
from dnpipefs.fuse.dentries import NAMES_LIMIT, REMEMBERED_S, Dentries
from dnpipefs.fuse.interrupts import Interrupts
from dnpipefs.vfs import FileSystem

CONTEXT: Any = SimpleNamespace(umask=0o022, uid=0, gid=0, pid=1)
TOP: Any = pyfuse3.ROOT_INODE
NOT_READ: Any = None
A, B = FileId(2), FileId(3)


@pytest.fixture
def adapter(cluster: Cluster) -> Adapter:
    return Adapter(FileSystem(cluster), Interrupts())


def remove(adapter: Adapter) -> Awaitable[None]:
    return adapter.rmdir(TOP, b"d", CONTEXT)


def replace(adapter: Adapter) -> Awaitable[None]:
    return adapter.rename(TOP, b"other", TOP, b"d", 0, CONTEXT)


@pytest.mark.parametrize("request_of", [remove, replace])
@pytest.mark.parametrize("listed", [False, True])
async def test_a_directory_that_the_kernel_does_not_know_is_neither_removed_nor_replaced(
    adapter: Adapter, cluster: Cluster, request_of: Callable[[Adapter], Awaitable[None]], listed: bool
) -> None:
    for name in (b"d", b"other"):
        await adapter.mkdir(TOP, name, 0o755, CONTEXT)
    if listed:
        fh = await adapter.opendir(TOP, CONTEXT)
    names = cluster.namespace  # another host does not tell this one's kernel either
    await names.rename((ROOT, b"d"), (ROOT, b"elsewhere"), replace=False)
    await names.create(ROOT, b"d", Kind.DIRECTORY, mode=0o755, uid=0, gid=0)
    if listed:  # what the listing shows is older than what a lookup has told
        await adapter.lookup(TOP, b"d", CONTEXT)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pyfuse3, "readdir_reply", lambda *_: True)
            await adapter.readdir(fh, 0, NOT_READ)
    with pytest.raises(pyfuse3.FUSEError) as refusal:
        await request_of(adapter)
    assert refusal.value.errno == errno.ESTALE, "so that the kernel looks it up and comes again"
    await adapter.lookup(TOP, b"d", CONTEXT)
    await request_of(adapter)
    assert (await names.lookup(ROOT, b"elsewhere")).is_directory


async def test_a_place_that_the_kernel_believes_taken_is_not_moved_to(
    adapter: Adapter, cluster: Cluster
) -> None:
    for name in (b"d", b"other"):
        await adapter.mkdir(TOP, name, 0o755, CONTEXT)
    await cluster.namespace.rename((ROOT, b"d"), (ROOT, b"elsewhere"), replace=False)
    with pytest.raises(pyfuse3.FUSEError) as refusal:
        await replace(adapter)
    assert refusal.value.errno == errno.ESTALE
    with pytest.raises(pyfuse3.FUSEError, match="No such file"):
        await adapter.lookup(TOP, b"d", CONTEXT)
    await replace(adapter)


@pytest.mark.parametrize(
    "request_of",
    [
        lambda adapter: adapter.unlink(TOP, b"t", CONTEXT),
        lambda adapter: adapter.rename(TOP, b"t", TOP, b"mine", 0, CONTEXT),
        lambda adapter: adapter.rename(TOP, b"other", TOP, b"t", 0, CONTEXT),
    ],
    ids=["remove", "move", "replace"],
)
async def test_a_topic_that_the_kernel_does_not_know_is_left_alone(
    adapter: Adapter, cluster: Cluster, request_of: Callable[[Adapter], Awaitable[None]]
) -> None:
    """The kernel has looked whether the caller may do that to another one."""
    for name in (b"t", b"other"):
        await adapter.mknod(TOP, name, 0o644, 0, CONTEXT)
    names = cluster.namespace
    await names.rename((ROOT, b"t"), (ROOT, b"elsewhere"), replace=False)
    theirs = await names.create(ROOT, b"t", Kind.TOPIC, mode=0o644, uid=12, gid=0)
    with pytest.raises(pyfuse3.FUSEError) as refusal:
        await request_of(adapter)
    assert refusal.value.errno == errno.ESTALE
    assert (await names.lookup(ROOT, b"t")).id == theirs.id
    await adapter.lookup(TOP, b"t", CONTEXT)
    await request_of(adapter)


async def test_what_the_kernel_moves_and_removes_itself_it_knows(adapter: Adapter) -> None:
    for name in (b"d", b"other"):
        await adapter.mkdir(TOP, name, 0o755, CONTEXT)
    await replace(adapter)
    await remove(adapter)
    await adapter.mkdir(TOP, b"d", 0o755, CONTEXT)
    await remove(adapter)


def test_names_are_remembered_for_a_while() -> None:
    dentries = Dentries()
    for number in range(10):
        dentries.tell(A, b"%d" % number, B, now=number * REMEMBERED_S / 4)
    assert dentries.find(A, b"9") == B
    assert dentries.find(A, b"0") is None
    assert len(dentries) == 5


def test_a_name_that_is_told_again_is_remembered_from_then_on() -> None:
    dentries = Dentries()
    dentries.tell(A, b"kept", B, now=0)
    dentries.tell(A, b"told once", B, now=0)
    dentries.tell(A, b"kept", A, now=1)
    dentries.tell(A, b"new", B, now=REMEMBERED_S + 0.5)
    assert (dentries.find(A, b"kept"), dentries.find(A, b"told once")) == (A, None)


def test_a_move_of_something_else_leaves_no_directory() -> None:
    dentries = Dentries()
    dentries.tell(A, b"replaced", B, now=0)
    dentries.move((A, b"topic"), (A, b"replaced"))
    assert dentries.find(A, b"replaced") is None


def test_only_so_many_names_are_remembered() -> None:
    """Invariant 7: those told of longest ago are forgotten, and then nobody knows."""
    told = Dentries()
    for number in range(NAMES_LIMIT + 10):
        told.tell(A, b"%d" % number, B, 1.0)
    assert len(told) == NAMES_LIMIT
    assert told.find(A, b"9") is None
    assert told.find(A, b"10") == B
