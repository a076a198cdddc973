"""A request that asks for several things waits once for all of them."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, cast

import pyfuse3
import pytest
import trio

from dnpipefs.core.names import FileId
from dnpipefs.fuse.adapter import Adapter
from dnpipefs.fuse.interrupts import Interrupts
from dnpipefs.log.failures import deadline
from dnpipefs.metrics import Requests
from dnpipefs.vfs import Attributes, FileSystem

OP_TIMEOUT_S = 1.0
ROOT: Any = pyfuse3.ROOT_INODE
CONTEXT: Any = SimpleNamespace(umask=0o022, uid=0, gid=0, pid=1)
TRUNCATE_AND_CHMOD: Any = SimpleNamespace(
    update_size=True, update_mode=True, update_uid=False, update_gid=False, update_mtime=False
)


class SlowFiles:
    """A file system that takes nearly as long for each thing as it may."""

    requests = Requests()

    def in_time(self) -> Any:
        return deadline(OP_TIMEOUT_S)

    async def make_topic(self, *_: Any) -> Attributes:
        await self._slow()
        return Attributes(
            FileId(2), False, 0o644, 0, 0, nlink=1, size=0, blocks=0, mtime_ns=0, ctime_ns=0, exact=False
        )

    async def _slow(self, *_: Any, **__: Any) -> None:
        await trio.sleep(0.9)

    open = attributes = parent = open_directory = truncate = change = _slow


@pytest.mark.parametrize(
    "request_of",
    [
        lambda adapter: adapter.create(ROOT, b"topic", 0o644, 0, CONTEXT),
        lambda adapter: adapter.opendir(ROOT, CONTEXT),
        lambda adapter: adapter.setattr(
            ROOT, SimpleNamespace(st_size=0, st_mode=0o600), TRUNCATE_AND_CHMOD, None, CONTEXT
        ),
    ],
    ids=["create", "opendir", "setattr"],
)
async def test_a_request_of_several_parts_waits_once(
    request_of: Callable[[Adapter], Awaitable[object]], autojump_clock: object
) -> None:
    adapter = Adapter(cast(FileSystem, SlowFiles()), Interrupts())
    began = trio.current_time()
    with pytest.raises(pyfuse3.FUSEError) as failure:
        await request_of(adapter)
    assert failure.value.errno == errno.ETIMEDOUT
    assert trio.current_time() - began == pytest.approx(OP_TIMEOUT_S)
