"""Many topics in little time, put straight into etcd: what creating and pushing them would leave there.

The keys and values are those of the namespace's planner and of the appender, many topics in one
transaction; nobody may use the directory meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import trio

from dnpipefs import etcd
from dnpipefs.core.batch import Chunk, encode
from dnpipefs.core.keys import KeySchema
from dnpipefs.core.names import FileId, Kind, Revision, SessionId
from dnpipefs.core.records import Inode, encode_time
from dnpipefs.core.tree import Mutation, Planner, Tree
from dnpipefs.log.clock import Clock

TOPICS_AT_ONCE: Final = 20
"""Five puts a topic stay below etcd's 128 operations a transaction."""
BATCHES_AT_ONCE: Final = 60
"""Two puts a batch likewise."""
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
    client: etcd.Client,
    keys: KeySchema,
    clock: Clock,
    tree: Tree,
    directory: FileId,
    *,
    count: int,
    contents: Contents = every_second,
) -> dict[FileId, int]:
    """Make *count* topics (`topic000000` …) in an existing directory; return their sizes in bytes.

    Raises AlreadyExists if some of them are there, or an EtcdError.
    """
    filler = _Filler(client, keys, clock, contents)
    numbers = iter(range(0, count, TOPICS_AT_ONCE))

    async def fill() -> None:
        for first in numbers:
            await filler.fill(tree, directory, range(first, min(first + TOPICS_AT_ONCE, count)))

    async with trio.open_nursery() as nursery:
        for _ in range(FILLERS):
            nursery.start_soon(fill)
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
            raise RuntimeError("the directory was changed by somebody else while it was filled")
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
