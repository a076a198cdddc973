"""Many topics in little time, put straight into etcd: what creating and pushing them would leave there.

The keys and values are those of the namespace's planner and of the appender, many topics in one
transaction. As a program it fills a directory of the cluster at an endpoint, for measuring by hand:

    python -m dnpipefs.bench.fill http://127.0.0.1:2379 many 100000
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Final

import trio

from dnpipefs import etcd
from dnpipefs.cluster import Cluster, Settings, open_cluster
from dnpipefs.core.batch import Chunk, encode
from dnpipefs.core.keys import KeySchema
from dnpipefs.core.names import ROOT, FileId, Kind, Revision, SessionId
from dnpipefs.core.records import Inode, encode_time
from dnpipefs.core.tree import Mutation, Planner, Tree
from dnpipefs.errors import AlreadyExists
from dnpipefs.log.clock import Clock, SystemClock

TOPICS_AT_ONCE: Final = 20
"""Five puts a topic stay below etcd's 128 operations a transaction."""
FILLERS: Final = 8
"""Transactions under way at once."""

Contents = Callable[[int], Sequence[bytes]]
"""The batches of the topic of that number: lines, each batch what one push carried."""


def every_second(number: int) -> Sequence[bytes]:
    """Leave every second topic empty; give the others one to three batches of some lines."""
    if number % 2:
        return ()
    return [b"message of topic %d\n" % number * (1 + index) for index in range(1 + number // 2 % 3)]


async def fill_directory(
    cluster: Cluster, name: bytes, *, count: int, contents: Contents = every_second
) -> dict[FileId, int]:
    """Make a directory in the root with *count* topics (`topic000000` …); return their sizes in bytes.

    Nobody may use it meanwhile. Raises AlreadyExists, or another DnpError.
    """
    uid, gid = os.geteuid(), os.getegid()
    directory = await cluster.namespace.create(ROOT, name, Kind.DIRECTORY, mode=0o755, uid=uid, gid=gid)
    tree = cluster.namespace.tree
    filler = _Filler(cluster.client, KeySchema(cluster.settings.prefix), SystemClock(), contents)
    numbers = iter(range(0, count, TOPICS_AT_ONCE))

    async def fill() -> None:
        for first in numbers:
            await filler.fill(tree, directory.id, range(first, min(first + TOPICS_AT_ONCE, count)))

    async with trio.open_nursery() as nursery:
        for _ in range(FILLERS):
            nursery.start_soon(fill)
    await cluster.namespace.sync()
    return filler.sizes


class _Filler:
    def __init__(self, client: etcd.Client, keys: KeySchema, clock: Clock, contents: Contents) -> None:
        self._client: Final = client
        self._keys: Final = keys
        self._clock: Final = clock
        self._contents: Final = contents
        self._session: Final = SessionId(clock.new_file_id())  # of a host that is gone
        self.sizes: Final[dict[FileId, int]] = {}

    async def fill(self, tree: Tree, directory: FileId, numbers: Sequence[int]) -> None:
        planner, plans, topics = Planner(self._keys), list[Mutation](), dict[FileId, Sequence[bytes]]()
        for number in numbers:
            now_ns = self._clock.now_ns()
            inode = Inode(self._clock.new_file_id(), Kind.TOPIC, 0o644, 0, 0, now_ns, now_ns)
            plans.append(planner.create(tree, directory, b"topic%06d" % number, inode))
            topics[inode.id] = self._contents(number)
            self.sizes[inode.id] = sum(map(len, topics[inode.id]))
        guards = {guard.key: guard.revision for plan in plans for guard in plan.guards}
        puts = {key: value for plan in plans for key, value in plan.puts}
        result = await self._client.transaction(
            [etcd.compare_mod_revision(key) == revision for key, revision in guards.items()],
            [etcd.put(key, value) for key, value in puts.items()],
        )
        if not result.succeeded:
            raise AlreadyExists("the directory was changed by somebody else while it was filled")
        await self._append(topics, Revision(result.revision))

    async def _append(self, topics: dict[FileId, Sequence[bytes]], generation: Revision) -> None:
        """Append batch by batch: no transaction puts a topic's `last` key twice."""
        for index in range(max(map(len, topics.values()), default=0)):
            puts = [
                put
                for topic, batches in topics.items()
                if index < len(batches)
                for put in self._puts(topic, generation, index + 1, batches[index])
            ]
            await self._client.transaction((), puts)

    def _puts(self, topic: FileId, generation: Revision, sequence: int, data: bytes) -> list[etcd.Op]:
        time_ns, chunk = self._clock.now_ns(), Chunk.of_lines(data)
        key = self._keys.batch(topic, self._session, sequence, len(data), chunk.messages)
        value = encode(
            [chunk], generation=generation, time_ns=time_ns, session=self._session, sequence=sequence
        )
        return [etcd.put(key, value), etcd.put(self._keys.last(topic), encode_time(time_ns))]


async def _main(*arguments: str) -> None:
    endpoint, name, count = arguments
    async with open_cluster(Settings(endpoints=(endpoint,))) as cluster:
        await fill_directory(cluster, os.fsencode(name), count=int(count))


if __name__ == "__main__":
    trio.run(_main, *sys.argv[1:])
