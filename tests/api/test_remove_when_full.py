"""Removals from a full etcd whose answers get lost, or that two hosts make at once."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import trio

from dnpipefs import NotFound, etcd
from dnpipefs.core.keys import KeySchema
from dnpipefs.core.names import ROOT, Kind
from dnpipefs.log.barrier import Barrier
from dnpipefs.log.clock import SystemClock
from dnpipefs.log.format import ensure_format
from dnpipefs.namespace import Namespace
from tests.api.conftest import Connect
from tests.support.etcd_process import EtcdProcess

OP_TIMEOUT_S = 20.0


class FullEtcd:
    """A client that refuses puts once it is full, and loses the answers of some deletions."""

    def __init__(self, client: etcd.Client) -> None:
        self._client = client
        self.full = False
        self.answers_to_lose = 0
        self.deletions = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    async def transaction(
        self, compare: Sequence[etcd.Compare], success: Sequence[etcd.Op], **options: Any
    ) -> etcd.TransactionResult:
        if self.full and any(operation.HasField("request_put") for operation in success):
            raise etcd.SpaceExceeded("full")
        result = await self._client.transaction(compare, success, **options)
        if any(operation.HasField("request_delete_range") for operation in success):
            self.deletions += 1
            if self.answers_to_lose:
                self.answers_to_lose -= 1
                raise etcd.Ambiguous("lost")
        return result


class Host:
    def __init__(self, client: etcd.Client, keys: KeySchema) -> None:
        self.client = FullEtcd(client)
        self.barrier = Barrier(client, keys, op_timeout=OP_TIMEOUT_S)
        faked: Any = self.client
        self.namespace = Namespace(faked, keys, SystemClock(), self.barrier, op_timeout=OP_TIMEOUT_S)


@pytest.fixture
async def hosts(connect: Connect, shared_server: EtcdProcess) -> AsyncIterator[list[Host]]:
    """Two hosts, a topic "t" and an empty directory "d", and no room for anything else."""
    keys = KeySchema(connect.keywords["prefix"])  # type: ignore[attr-defined]
    async with etcd.open_client([shared_server.endpoint]) as client, trio.open_nursery() as nursery:
        await ensure_format(client, keys, SystemClock(), uid=0, gid=0)
        hosts = [Host(client, keys) for _ in range(2)]
        for host in hosts:
            nursery.start_soon(host.barrier.run)
            await nursery.start(host.namespace.run)
        for name, kind in ((b"t", Kind.TOPIC), (b"d", Kind.DIRECTORY)):
            await hosts[0].namespace.create(ROOT, name, kind, mode=0o755, uid=0, gid=0)
        for host in hosts:
            await host.namespace.sync()
            host.client.full = True
        yield hosts
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("lost", [0, 1, 2])
async def test_whose_answer_was_lost_is_told_of_its_success(hosts: list[Host], lost: int) -> None:
    host = hosts[0]
    host.client.answers_to_lose = lost
    await host.namespace.unlink(ROOT, b"t")
    assert host.namespace.tree.find(ROOT, b"t") is None, "the host itself sees it at once"
    host.client.answers_to_lose = lost
    await host.namespace.rmdir(ROOT, b"d")
    assert host.namespace.tree.find(ROOT, b"d") is None
    for name in (b"t", b"d"):
        with pytest.raises(NotFound):
            await host.namespace.lookup(ROOT, name)


async def test_two_hosts_remove_at_once(hosts: list[Host]) -> None:
    """The slower one finds nothing, or cannot tell the other's removal from its own."""
    told: list[str] = []

    async def unlink(host: Host) -> None:
        try:
            await host.namespace.unlink(ROOT, b"t")
        except NotFound:
            told.append("nothing there")
        else:
            told.append("done")

    async with trio.open_nursery() as nursery:
        for host in hosts:
            nursery.start_soon(unlink, host)
    assert sorted(told) in (["done", "nothing there"], ["done", "done"])
    assert sum(host.client.deletions for host in hosts) <= 6, "without asking again and again"


async def test_a_rename_finds_no_room(hosts: list[Host]) -> None:
    with pytest.raises(etcd.SpaceExceeded):
        await hosts[0].namespace.rename((ROOT, b"t"), (ROOT, b"u"), replace=True)
    assert hosts[0].client.deletions == 0
