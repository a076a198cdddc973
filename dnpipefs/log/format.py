"""What a prefix holds: made at the first use, checked at every other."""

from __future__ import annotations

import secrets
from typing import Final

from dnpipefs import etcd
from dnpipefs.core.keys import KeySchema
from dnpipefs.core.names import ROOT, Kind
from dnpipefs.core.records import Inode, Meta, encode_time
from dnpipefs.log.clock import Clock

ROOT_MODE: Final = 0o755


async def ensure_format(client: etcd.Client, keys: KeySchema, clock: Clock, *, uid: int, gid: int) -> Meta:
    """Return what the prefix holds; if it is empty, lay down the format and a root owned by uid and gid.

    Raises UnsupportedFormat for data of another format version, CorruptData, or an EtcdError.
    """
    stored = await client.get(keys.meta)
    if stored is None:
        now_ns = clock.now_ns()
        root = Inode(ROOT, Kind.DIRECTORY, ROOT_MODE, uid, gid, now_ns, now_ns)
        # If the answer is lost or another host was first, the read below tells: only one can win.
        await client.transaction(
            [etcd.compare_version(keys.meta) == 0],
            [
                etcd.put(keys.meta, Meta(cluster=secrets.token_hex(8)).encode()),
                etcd.put(keys.root, root.encode()),
                etcd.put(keys.last_namespace, encode_time(now_ns)),
            ],
        )
        stored = await client.get(keys.meta)
        assert stored is not None  # noqa: S101 - nothing deletes it
    return Meta.decode(keys.meta, stored.value)
