"""Somebody who looks at the consumer groups of a cluster and takes part in none."""

import os
import threading
from pathlib import Path
from types import TracebackType

import trio

from dnpipefs.cluster import Cluster, Settings, open_cluster
from dnpipefs.core.names import FileId
from dnpipefs.groups import GroupFacts
from tests.support.waiting import eventually


class Onlooker:
    """A host without a mount, in a thread."""

    def __init__(self, endpoint: str, prefix: str) -> None:
        self._settings = Settings(endpoints=(endpoint,), prefix=prefix, op_timeout=20)
        self._thread = threading.Thread(target=trio.run, args=[self._run])
        self._ready = threading.Event()
        self._done = trio.Event()
        self._cluster: Cluster | None = None
        self._token: trio.lowlevel.TrioToken | None = None

    def __enter__(self) -> "Onlooker":
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._token is not None:
            self._token.run_sync_soon(self._done.set)
        self._thread.join()

    async def _run(self) -> None:
        try:
            async with open_cluster(self._settings) as cluster:
                self._cluster, self._token = cluster, trio.lowlevel.current_trio_token()
                self._ready.set()
                await self._done.wait()
        finally:
            self._ready.set()

    def group(self, view: Path) -> GroupFacts | None:
        """Return what is known of a group; None if there is none."""
        topic, name = os.fsencode(view).split(b"@")
        file = FileId(int(os.getxattr(topic, "user.dnp.id"), 16))
        assert self._cluster is not None, "it could not join"
        facts = trio.from_thread.run(self._cluster.groups.facts, file, trio_token=self._token)
        return next((group for group in facts if group.name == name), None)

    def lag(self, view: Path) -> int:
        """Return how many messages nobody has acknowledged."""
        group = self.group(view)
        assert group is not None
        return group.lag

    def leftovers(self, view: Path) -> list[str]:
        """Take and return, in order, all that nobody has acknowledged, whoever has it still in hand."""
        descriptor = os.open(view, os.O_RDONLY | os.O_NONBLOCK)
        found: list[str] = []

        def drained() -> bool:
            try:
                while data := os.read(descriptor, 1 << 16):
                    found.append(data.decode().removesuffix("\n"))
            except BlockingIOError:  # what it read before is acknowledged by that
                return self.lag(view) == 0
            raise AssertionError("there is no end of file in a group")

        try:
            eventually(drained)
        finally:
            os.close(descriptor)
        return found
