"""A network under the tests' control between hosts and etcd, whether that is real or in memory.

Every request waits until the test says what becomes of it, and so does every delivery of a watch; a
request that a host does not wait for any more may still arrive later. So a test decides the order of
everything, and stops any task at any of its requests.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Sequence
from itertools import groupby
from types import TracebackType
from typing import Any, Final, TypeVar

import trio
from trio.testing import wait_all_tasks_blocked

from dnpipefs.etcd import (
    Ambiguous,
    Client,
    Compare,
    DeleteResult,
    Event,
    KeyValue,
    Lease,
    Op,
    RangeResult,
    SpaceExceeded,
    Transaction,
    TransactionResult,
    Unreachable,
    Watch,
    WatchBatch,
)
from dnpipefs.etcd.errors import EtcdError

T = TypeVar("T")

ENDLESS: Final = 20_000
"""Requests between two steps of a test."""


class Fate(enum.Enum):
    """What becomes of a request."""

    DELIVER = "delivered"
    LOSE_ANSWER = "answer lost"
    LOSE_REQUEST = "request delayed, nobody waits for it"
    REFUSE = "not sent"
    FULL = "etcd is full"
    CROSS_QUOTA = "etcd became full by it"


class Gate:
    """A place where a task waits for leave to go on."""

    def __init__(self, host: str, what: str) -> None:
        self.host: Final = host
        self.what: Final = what
        self.fate = Fate.DELIVER
        self._leave: Final = trio.Event()

    def open(self, fate: Fate = Fate.DELIVER) -> None:
        """Give leave."""
        self.fate = fate
        self._leave.set()

    async def wait(self) -> None:
        """Wait for leave."""
        await self._leave.wait()


class Request(Gate):
    """A request that a host waits for."""

    def __init__(
        self, host: str, what: str, send: Callable[[], Awaitable[object]], *, writes: bool, puts: bool
    ) -> None:
        super().__init__(host, what)
        self.send: Final = send
        self.writes: Final = writes
        self.puts: Final = puts


class Network:
    """What is under way between hosts and etcd."""

    def __init__(self) -> None:
        self.waiting: Final[list[Gate]] = []
        self.late: Final[list[Request]] = []
        """Writes that nobody waits for any more and that may still arrive."""
        self.open = False
        """Everything is let through at once."""
        self.failures: Final[list[EtcdError]] = []
        """What etcd answered that was no fault of the network."""
        self.endless = ""
        """A host that asked so often between two steps of the test that it would never stop."""
        self._delivered = 0
        self._under_way = 0
        self._answered: Final = trio.lowlevel.ParkingLot()

    async def pass_gate(self, gate: Gate) -> None:
        """Wait at *gate*; return when the test gives leave."""
        if self.open:
            return
        self.waiting.append(gate)
        try:
            await gate.wait()
        except trio.Cancelled:
            if isinstance(gate, Request) and gate.writes:
                self.late.append(gate)
            raise
        finally:
            self.waiting.remove(gate)

    def cut_off(self, host: str) -> None:
        """A host is dead: its tasks wait no longer, what it had sent may still arrive."""
        for gate in [gate for gate in self.waiting if gate.host == host]:
            if isinstance(gate, Request) and gate.writes:
                self.late.append(gate)
            gate.open(Fate.REFUSE)

    async def deliver(self, request: Request) -> object:
        """Carry a request out, and note an answer that blames it."""
        self._delivered += 1
        if self._delivered > ENDLESS:
            self.endless = request.host
            await trio.sleep(3600)
        self._under_way += 1
        try:
            return await request.send()
        except EtcdError as error:
            self.failures.append(error)
            raise
        finally:
            self._under_way -= 1
            self._answered.unpark_all()

    async def settle(self) -> None:
        """Wait until etcd has answered all, and every task waits for the test, for events or for time."""
        self._delivered = 0
        while True:
            await wait_all_tasks_blocked()
            if not self._under_way:
                return
            await self._answered.park()


class GatedClient(Client):
    """One host's way to etcd."""

    def __init__(self, inner: Client, network: Network, host: str, *, gated: bool = True) -> None:
        self.inner: Final = inner
        self.network: Final = network
        self.host: Final = host
        self._gated: Final = gated
        self.dead = False
        """The host is gone: nothing of it is sent any more."""

    async def _call(
        self, what: str, send: Callable[[], Awaitable[T]], *, writes: bool = False, puts: bool = False
    ) -> T:
        request = Request(self.host, what, send, writes=writes, puts=puts)
        if self._gated and not self.dead:
            await self.network.pass_gate(request)
        return await self._fulfil(request)  # type: ignore[return-value]

    async def _fulfil(self, request: Request) -> object:
        if self.dead:
            raise Unreachable("this host is dead")
        match request.fate:
            case Fate.DELIVER:
                return await self.network.deliver(request)
            case Fate.LOSE_ANSWER:
                await self.network.deliver(request)
                raise Ambiguous("the answer was lost")
            case Fate.LOSE_REQUEST:
                if request.writes:
                    self.network.late.append(request)
                raise Ambiguous("no answer in time")
            case Fate.REFUSE:
                raise Unreachable("no way to etcd")
            case Fate.CROSS_QUOTA:
                await self.network.deliver(request)
        raise SpaceExceeded("database space exceeded")

    async def range(
        self,
        key: bytes,
        range_end: bytes | None = None,
        *,
        revision: int = 0,
        limit: int = 0,
        keys_only: bool = False,
        count_only: bool = False,
        serializable: bool = False,
        timeout: float | None = None,
    ) -> RangeResult:
        options: dict[str, Any] = {
            "revision": revision,
            "limit": limit,
            "keys_only": keys_only,
            "count_only": count_only,
            "serializable": serializable,
            "timeout": timeout,
        }
        return await self._call("range", lambda: self.inner.range(key, range_end, **options))

    async def get(
        self, key: bytes, *, revision: int = 0, serializable: bool = False, timeout: float | None = None
    ) -> KeyValue | None:
        return await self._call(
            "get",
            lambda: self.inner.get(key, revision=revision, serializable=serializable, timeout=timeout),
        )

    async def put(self, key: bytes, value: bytes, *, lease: int = 0, timeout: float | None = None) -> int:
        return await self._call(
            "put", lambda: self.inner.put(key, value, lease=lease, timeout=timeout), writes=True, puts=True
        )

    async def delete(
        self,
        key: bytes,
        range_end: bytes | None = None,
        *,
        prev_kv: bool = False,
        timeout: float | None = None,
    ) -> DeleteResult:
        return await self._call(
            "delete",
            lambda: self.inner.delete(key, range_end, prev_kv=prev_kv, timeout=timeout),
            writes=True,
        )

    async def transaction(
        self,
        compare: Sequence[Compare],
        success: Sequence[Op],
        failure: Sequence[Op] = (),
        *,
        timeout: float | None = None,
    ) -> TransactionResult:
        operations = (*success, *failure)
        puts = any(op.HasField("request_put") for op in operations)
        writes = puts or any(op.HasField("request_delete_range") for op in operations)
        return await self._call(
            "transaction" if writes else "read",
            lambda: self.inner.transaction(compare, success, failure, timeout=timeout),
            writes=writes,
            puts=puts,
        )

    async def commit(self, transaction: Transaction, *, timeout: float | None = None) -> TransactionResult:
        return await self._call(
            "commit", lambda: self.inner.commit(transaction, timeout=timeout), writes=True, puts=True
        )

    async def lease_grant(self, ttl: int, *, lease_id: int = 0, timeout: float | None = None) -> Lease:
        return await self._call(
            "lease", lambda: self.inner.lease_grant(ttl, lease_id=lease_id, timeout=timeout)
        )

    async def lease_revoke(self, lease_id: int, *, timeout: float | None = None) -> None:
        await self._call("lease", lambda: self.inner.lease_revoke(lease_id, timeout=timeout))

    async def lease_keepalive_once(self, lease_id: int, *, timeout: float | None = None) -> int:
        return await self._call("lease", lambda: self.inner.lease_keepalive_once(lease_id, timeout=timeout))

    def watch(self, key: bytes, range_end: bytes | None = None, start_revision: int | None = None) -> Watch:
        return GatedWatch(self, self.inner.watch(key, range_end, start_revision))


class WatchGate(Gate):
    """Events that a host is to be told of; `revisions` of them at most."""

    def __init__(self, host: str, watch: GatedWatch) -> None:
        super().__init__(host, "watch")
        self.watch: Final = watch
        self.revisions = 1_000_000
        self.broken: EtcdError | None = None


class GatedWatch(Watch):
    """A watch that delivers when the test says so."""

    def __init__(self, client: GatedClient, inner: Watch) -> None:
        self._client: Final = client
        self._inner: Final = inner
        self._held: list[tuple[Event, ...]] = []
        """Whole revisions that have come and were not delivered."""

    async def __aenter__(self) -> GatedWatch:
        await self._inner.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._inner.__aexit__(kind, error, traceback)

    async def __anext__(self) -> WatchBatch:
        if not self._held:
            batch = await self._inner.__anext__()
            grouped = groupby(batch.events, key=lambda event: event.kv.mod_revision)
            self._held = [tuple(events) for _, events in grouped]
        gate = WatchGate(self._client.host, self)
        await self._client.network.pass_gate(gate)
        if gate.broken is not None:
            raise gate.broken
        given, self._held = self._held[: gate.revisions], self._held[gate.revisions :]
        events = tuple(event for revision in given for event in revision)
        return WatchBatch(events[-1].kv.mod_revision, events)
