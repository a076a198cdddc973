"""etcd in memory: what the services ask of it, carried out on the very requests they build.

Owns keys, revisions, versions, leases and the history that watches read. Refuses what etcd refuses
(`tests/etcd/test_contract.py` holds it against a real one): more than 128 operations or 1.5 MiB a
transaction, a key put twice or put and deleted in one, a lease that is gone, `touch` of nothing. There
are no old revisions to read, no alarms, and no time: a lease ends when it is revoked.

A watch delivers as late as its reader likes; one that has begun is out of compaction's reach, as in etcd.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Final

import trio

from dnpipefs.etcd import (
    ALL_KEYS_END,
    Client,
    Compacted,
    Compare,
    DeleteResult,
    Event,
    EventKind,
    InvalidRequest,
    KeyValue,
    Lease,
    LeaseExists,
    LeaseNotFound,
    Op,
    RangeResult,
    RequestTooLarge,
    Transaction,
    TransactionResult,
    Watch,
    WatchBatch,
)
from dnpipefs.etcd.model import delete_result, key_value, range_result
from dnpipefs.etcd.proto import kv_pb2
from dnpipefs.etcd.proto import rpc_pb2 as pb

MAX_OPERATIONS: Final = 128
MAX_REQUEST_BYTES: Final = 1_572_864

Observer = Callable[[int, tuple[Event, ...]], None]


class MemoryEtcd:
    """The store."""

    def __init__(self) -> None:
        self.revision = 1
        self._keys: list[bytes] = []
        self._values: dict[bytes, kv_pb2.KeyValue] = {}
        self._leases: dict[int, set[bytes]] = {}
        self._history: list[tuple[int, tuple[Event, ...]]] = []
        self._compacted = 0
        self._events: list[Event] = []
        self._granted = 0
        self.news: Final = trio.lowlevel.ParkingLot()
        self.observers: Final[list[Observer]] = []
        """Told of each revision, with its events."""

    def transaction(self, request: pb.TxnRequest) -> pb.TxnResponse:
        """Carry out a transaction, entirely or not at all."""
        if request.ByteSize() > MAX_REQUEST_BYTES:
            raise RequestTooLarge(f"a request of {request.ByteSize()} bytes")
        for parts in (request.compare, request.success, request.failure):
            if len(parts) > MAX_OPERATIONS:
                raise InvalidRequest(f"too many operations in txn request: {len(parts)}")
        _refuse_double_puts(request.success)
        _refuse_double_puts(request.failure)
        succeeded = all(self._holds(compare) for compare in request.compare)
        operations = request.success if succeeded else request.failure
        for operation in operations:
            if operation.HasField("request_put"):
                self._check_put(operation.request_put)
        response = pb.TxnResponse(succeeded=succeeded)
        for operation in operations:
            self._apply(operation, response.responses.add())
        self._end_revision()
        response.header.revision = self.revision
        return response

    def range(self, request: pb.RangeRequest) -> pb.RangeResponse:
        """Read keys in their order."""
        assert not request.revision, "there are no old revisions here"
        keys = self._between(request.key, request.range_end)
        response = pb.RangeResponse(count=len(keys))
        if request.limit and len(keys) > request.limit:
            keys, response.more = keys[: request.limit], True
        if not request.count_only:
            for key in keys:
                kv = response.kvs.add()
                kv.CopyFrom(self._values[key])
                if request.keys_only:
                    kv.ClearField("value")
        return response

    def grant(self, lease: int = 0) -> int:
        """Grant a lease."""
        if lease in self._leases:
            raise LeaseExists(f"lease {lease:x} exists")
        if not lease:
            self._granted += 1
            lease = 0x700000 + self._granted
        self._leases[lease] = set()
        return lease

    def revoke(self, lease: int) -> None:
        """End a lease and delete its keys, at one revision."""
        if lease not in self._leases:
            raise LeaseNotFound(f"lease {lease:x} is gone")
        for key in sorted(self._leases.pop(lease)):
            self._delete(key)
        self._end_revision()

    def alive(self, lease: int) -> bool:
        """Tell whether a lease has not ended."""
        return lease in self._leases

    def compact(self) -> None:
        """Forget all history up to now."""
        self._compacted = self.revision
        self._history.clear()

    def history(self, start: int) -> Iterable[tuple[int, tuple[Event, ...]]]:
        """Return what has changed from revision *start* on."""
        if start <= self._compacted:
            raise Compacted(f"compacted to {self._compacted}", self._compacted)
        return self._history[bisect_left(self._history, start, key=_revision) :]

    def _holds(self, compare: Compare) -> bool:
        assert not compare.range_end, "comparisons of ranges are not here"
        kv = self._values.get(compare.key)
        if compare.target == Compare.VALUE:
            return kv is not None and _compare(compare.result, kv.value, compare.value)
        if kv is None:
            kv = kv_pb2.KeyValue()
        match compare.target:
            case Compare.VERSION:
                return _compare(compare.result, kv.version, compare.version)
            case Compare.CREATE:
                return _compare(compare.result, kv.create_revision, compare.create_revision)
            case Compare.MOD:
                return _compare(compare.result, kv.mod_revision, compare.mod_revision)
        raise AssertionError(f"comparison of {compare.target} is not here")

    def _check_put(self, request: pb.PutRequest) -> None:
        if request.ignore_value and request.key not in self._values:
            raise InvalidRequest(f"key not found: {request.key!r}")
        if request.lease and request.lease not in self._leases:
            raise LeaseNotFound(f"lease {request.lease:x} is gone")

    def _apply(self, operation: Op, answer: pb.ResponseOp) -> None:
        match operation.WhichOneof("request"):
            case "request_range":
                answer.response_range.CopyFrom(self.range(operation.request_range))
            case "request_put":
                answer.response_put.SetInParent()
                self._put(operation.request_put)
            case "request_delete_range":
                deleted = operation.request_delete_range
                keys = self._between(deleted.key, deleted.range_end)
                for key in keys:
                    if deleted.prev_kv:
                        answer.response_delete_range.prev_kvs.append(self._values[key])
                    self._delete(key)
                answer.response_delete_range.deleted = len(keys)
            case other:
                raise AssertionError(f"{other} is not here")

    def _put(self, request: pb.PutRequest) -> None:
        key, revision = request.key, self.revision + 1
        old = self._values.get(key)
        if old is None:
            insort(self._keys, key)
            old = kv_pb2.KeyValue(create_revision=revision)
        elif old.lease:
            self._leases[old.lease].discard(key)
        kv = kv_pb2.KeyValue(
            key=key,
            value=old.value if request.ignore_value else request.value,
            create_revision=old.create_revision,
            mod_revision=revision,
            version=old.version + 1,
            lease=request.lease,
        )
        self._values[key] = kv
        if kv.lease:
            self._leases[kv.lease].add(key)
        self._events.append(Event(EventKind.PUT, key_value(kv)))

    def _delete(self, key: bytes) -> None:
        kv = self._values.pop(key)
        del self._keys[bisect_left(self._keys, key)]
        if kv.lease in self._leases:
            self._leases[kv.lease].discard(key)
        self._events.append(Event(EventKind.DELETE, KeyValue(key, b"", 0, self.revision + 1, 0, 0)))

    def _end_revision(self) -> None:
        if not self._events:
            return
        self.revision += 1
        events, self._events = tuple(self._events), []
        self._history.append((self.revision, events))
        for observer in self.observers:
            observer(self.revision, events)
        self.news.unpark_all()

    def _between(self, key: bytes, end: bytes) -> list[bytes]:
        if not end:
            return [key] if key in self._values else []
        start = bisect_left(self._keys, key)
        return self._keys[start : None if end == ALL_KEYS_END else bisect_left(self._keys, end)]


def _revision(entry: tuple[int, tuple[Event, ...]]) -> int:
    return entry[0]


def _compare(result: int, left: int | bytes, right: int | bytes) -> bool:
    match result:
        case Compare.EQUAL:
            return left == right
        case Compare.NOT_EQUAL:
            return left != right
        case Compare.GREATER:
            return left > right  # type: ignore[operator]  # both are of one kind
        case _:
            return left < right  # type: ignore[operator]


def _refuse_double_puts(operations: Iterable[Op]) -> None:
    puts: set[bytes] = set()
    deletes: list[tuple[bytes, bytes]] = []
    for operation in operations:
        if operation.HasField("request_put"):
            key = operation.request_put.key
            if key in puts:
                raise InvalidRequest(f"duplicate key given in txn request: {key!r}")
            puts.add(key)
        elif operation.HasField("request_delete_range"):
            deleted = operation.request_delete_range
            deletes.append((deleted.key, deleted.range_end or deleted.key + b"\0"))
    for start, end in deletes:
        if any(start <= key < end for key in puts):
            raise InvalidRequest(f"duplicate key given in txn request: in the deletion from {start!r} on")


class MemoryClient(Client):
    """The client of a store in memory: each call is one moment, after a checkpoint."""

    def __init__(self, store: MemoryEtcd) -> None:
        self.store: Final = store

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
        await trio.lowlevel.checkpoint()
        request = pb.RangeRequest(
            key=key,
            range_end=range_end or b"",
            revision=revision,
            limit=limit,
            keys_only=keys_only,
            count_only=count_only,
        )
        return range_result(self.store.range(request), self.store.revision)

    async def get(
        self, key: bytes, *, revision: int = 0, serializable: bool = False, timeout: float | None = None
    ) -> KeyValue | None:
        kvs = (await self.range(key, revision=revision, serializable=serializable, timeout=timeout)).kvs
        return kvs[0] if kvs else None

    async def put(self, key: bytes, value: bytes, *, lease: int = 0, timeout: float | None = None) -> int:
        request = pb.PutRequest(key=key, value=value, lease=lease)
        return (await self._send([Op(request_put=request)], timeout)).header.revision

    async def delete(
        self,
        key: bytes,
        range_end: bytes | None = None,
        *,
        prev_kv: bool = False,
        timeout: float | None = None,
    ) -> DeleteResult:
        request = pb.DeleteRangeRequest(key=key, range_end=range_end or b"", prev_kv=prev_kv)
        response = await self._send([Op(request_delete_range=request)], timeout)
        return delete_result(response.responses[0].response_delete_range, response.header.revision)

    async def transaction(
        self,
        compare: Sequence[Compare],
        success: Sequence[Op],
        failure: Sequence[Op] = (),
        *,
        timeout: float | None = None,
    ) -> TransactionResult:
        await trio.lowlevel.checkpoint()
        request = pb.TxnRequest(compare=compare, success=success, failure=failure)
        return TransactionResult(self.store.transaction(request))

    async def commit(self, transaction: Transaction, *, timeout: float | None = None) -> TransactionResult:
        await trio.lowlevel.checkpoint()
        return TransactionResult(self.store.transaction(transaction.message))

    async def lease_grant(self, ttl: int, *, lease_id: int = 0, timeout: float | None = None) -> Lease:
        await trio.lowlevel.checkpoint()
        return Lease(self.store.grant(lease_id), ttl)

    async def lease_revoke(self, lease_id: int, *, timeout: float | None = None) -> None:
        await trio.lowlevel.checkpoint()
        self.store.revoke(lease_id)

    async def lease_keepalive_once(self, lease_id: int, *, timeout: float | None = None) -> int:
        await trio.lowlevel.checkpoint()
        if not self.store.alive(lease_id):
            raise LeaseNotFound(f"lease {lease_id:x} is gone")
        return 10

    def watch(self, key: bytes, range_end: bytes | None = None, start_revision: int | None = None) -> Watch:
        return MemoryWatch(self.store, key, range_end, start_revision or 0)

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()

    async def _send(self, operations: Sequence[Op], timeout: float | None) -> pb.TxnResponse:
        await trio.lowlevel.checkpoint()
        return self.store.transaction(pb.TxnRequest(success=operations))


class MemoryWatch(Watch):
    """A watcher of a store in memory."""

    def __init__(self, store: MemoryEtcd, key: bytes, range_end: bytes | None, start: int) -> None:
        self.key, self.range_end = key, range_end
        self._store = store
        self._next = start or store.revision + 1
        self._waiting: list[tuple[int, tuple[Event, ...]]] = []

    async def __aenter__(self) -> MemoryWatch:
        await trio.lowlevel.checkpoint()
        self._waiting = list(self._store.history(self._next)) if self._next <= self._store.revision else []
        self._store.observers.append(self._note)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._store.observers.remove(self._note)

    async def __anext__(self) -> WatchBatch:
        await trio.lowlevel.checkpoint()
        while True:
            events = [event for _, part in self._waiting for event in part if self._covers(event.kv.key)]
            self._waiting.clear()
            if events:
                return WatchBatch(events[-1].kv.mod_revision, tuple(events))
            await self._store.news.park()

    def _note(self, revision: int, events: tuple[Event, ...]) -> None:
        if revision >= self._next:
            self._waiting.append((revision, events))

    def _covers(self, key: bytes) -> bool:
        return key == self.key if self.range_end is None else self.key <= key < self.range_end
