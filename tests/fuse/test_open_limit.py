"""What any user may open takes no more of the daemon's memory than is set aside for it."""

import errno
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pyfuse3
import pytest

from dnpipefs.cluster import Cluster
from dnpipefs.fuse import adapter as module
from dnpipefs.fuse.adapter import OPEN_BYTES, Adapter
from dnpipefs.fuse.interrupts import Interrupts
from dnpipefs.vfs import FileSystem

CONTEXT: Any = SimpleNamespace(umask=0o022, uid=0, gid=0, pid=1)
TOP: Any = pyfuse3.ROOT_INODE
OPENS = 4


@pytest.fixture
async def adapter(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Adapter:
    """Leave room for OPENS files, and a little more."""
    monkeypatch.setattr(module, "KEPT_LIMIT", OPENS * OPEN_BYTES + OPEN_BYTES // 2)
    adapter = Adapter(FileSystem(cluster), Interrupts())
    await adapter.mknod(TOP, b"topic", 0o644, 0, CONTEXT)
    return adapter


def file(name: bytes) -> Callable[[Adapter], Awaitable[Any]]:
    async def open_it(adapter: Adapter) -> Any:
        found = await adapter.lookup(TOP, name, CONTEXT)
        return (await adapter.open(found.st_ino, 0, CONTEXT)).fh

    return open_it


async def directory(adapter: Adapter) -> Any:
    return await adapter.opendir(TOP, CONTEXT)


async def open_all(adapter: Adapter, opened: Callable[[Adapter], Awaitable[Any]]) -> list[Any]:
    """Open as many as may be."""
    handles = []
    try:
        while True:
            handles.append(await opened(adapter))
    except pyfuse3.FUSEError as refusal:
        if refusal.errno != errno.ENFILE:
            raise
    return handles


@pytest.mark.parametrize("name", [b"topic", b"topic@", b"topic@group"])
async def test_only_so_many_files_are_open(
    adapter: Adapter, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, name: bytes
) -> None:
    monkeypatch.setattr(pyfuse3, "invalidate_inode", lambda *_, **__: None)
    handles = await open_all(adapter, file(name))
    assert len(handles) == OPENS
    await adapter.release(handles.pop())
    handles.append(await file(name)(adapter))
    for handle in handles:
        await adapter.release(handle)
    assert len(await open_all(adapter, file(name))) == OPENS, "what was refused has left nothing behind"
    assert adapter.requests.open_files == OPENS


async def test_only_so_many_directories_are_open(adapter: Adapter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyfuse3, "readdir_reply", lambda *_: True)
    handles = await open_all(adapter, directory)
    assert len(handles) == OPENS
    token: Any = None
    await adapter.releasedir(handles.pop())
    for _ in range(3):  # from the beginning again, each time
        await adapter.readdir(handles[0], 0, token)
    await directory(adapter)


async def test_a_large_file_counts_as_such(
    adapter: Adapter, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pyfuse3, "invalidate_inode", lambda *_, **__: None)
    control: Any = (await adapter.lookup(TOP, b".dnp", CONTEXT)).st_ino
    metrics: Any = (await adapter.lookup(control, b"metrics", CONTEXT)).st_ino

    async def open_it(adapter: Adapter) -> Any:
        return (await adapter.open(metrics, 0, CONTEXT)).fh

    assert len(await open_all(adapter, open_it)) == 1
