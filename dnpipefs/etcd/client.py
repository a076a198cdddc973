"""The client: keys, transactions, leases and watches of one etcd cluster, for one trio run.

Owns the shape of requests. Which endpoint they go to and when they are repeated is `pool.py`'s
business, how gRPC is awaited `bridge.py`'s, the watch stream `watch.py`'s.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial

import trio

from dnpipefs.etcd.bridge import Bridge
from dnpipefs.etcd.discovery import Discovery, Finder
from dnpipefs.etcd.endpoint import DELETE, PUT, RANGE, TXN, Endpoint, Tls, open_endpoints
from dnpipefs.etcd.errors import Ambiguous, EtcdError, PermissionDenied, Unreachable
from dnpipefs.etcd.http import HttpSide
from dnpipefs.etcd.lease import LeaseCalls
from dnpipefs.etcd.maintenance import MaintenanceCalls
from dnpipefs.etcd.model import (
    DeleteResult,
    KeyValue,
    RangeResult,
    Server,
    TransactionResult,
    delete_result,
    key_value,
    prefix_end,
    range_result,
)
from dnpipefs.etcd.pool import Credentials, Pool, probe
from dnpipefs.etcd.proto import rpc_pb2 as pb
from dnpipefs.etcd.space import SpaceGauge
from dnpipefs.etcd.transaction import Compare, Op, Transaction
from dnpipefs.etcd.watch import Watch, WatchHub
from dnpipefs.metrics import Calls

DEFAULT_TIMEOUT = 5.0
"""Seconds a call may take, from asking to answer, when the caller does not say."""


class Client(LeaseCalls, MaintenanceCalls):
    """Calls to one etcd cluster; made by `open_client`, used in the trio run that opened it.

    Reads are repeated on other endpoints until their deadline. Writes are sent once: they raise
    `Ambiguous` when they may have been applied and `Definite` when they certainly were not.
    Cancelling a write that is under way leaves its outcome unknown, too.
    """

    def __init__(
        self, pool: Pool, http: HttpSide, opening: Callable[[Sequence[str]], list[Endpoint]]
    ) -> None:
        self._pool = pool
        self._http = http
        self._opening = opening
        self._gauge = SpaceGauge(http)
        self._watches = WatchHub(pool)

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
        """Read `key`, or every key of `[key, range_end)`, ascending; linearizable by default.

        Raises `Compacted` or `FutureRevision` for a `revision` that etcd does not have.
        """
        request = pb.RangeRequest(
            key=key,
            range_end=range_end or b"",
            revision=revision,
            limit=limit,
            keys_only=keys_only,
            count_only=count_only,
            serializable=serializable,
        )
        response = await self._pool.call(RANGE, request, timeout, once=False, linear=not serializable)
        return range_result(response, response.header.revision)

    async def get(
        self,
        key: bytes,
        *,
        revision: int = 0,
        serializable: bool = False,
        timeout: float | None = None,
    ) -> KeyValue | None:
        """Read one key; None when it does not exist."""
        request = pb.RangeRequest(key=key, revision=revision, serializable=serializable)
        response = await self._pool.call(RANGE, request, timeout, once=False, linear=not serializable)
        return key_value(response.kvs[0]) if response.kvs else None

    async def get_prefix(
        self,
        prefix: bytes,
        *,
        revision: int = 0,
        limit: int = 0,
        keys_only: bool = False,
        count_only: bool = False,
        serializable: bool = False,
        timeout: float | None = None,
    ) -> RangeResult:
        """Read every key that begins with `prefix`."""
        return await self.range(
            prefix or b"\x00",
            prefix_end(prefix),
            revision=revision,
            limit=limit,
            keys_only=keys_only,
            count_only=count_only,
            serializable=serializable,
            timeout=timeout,
        )

    async def put(self, key: bytes, value: bytes, *, lease: int = 0, timeout: float | None = None) -> int:
        """Set `key`; return the revision it was set at."""
        request = pb.PutRequest(key=key, value=value, lease=lease)
        response = await self._pool.call(PUT, request, timeout, once=True, linear=True)
        return response.header.revision

    async def delete(
        self,
        key: bytes,
        range_end: bytes | None = None,
        *,
        prev_kv: bool = False,
        timeout: float | None = None,
    ) -> DeleteResult:
        """Delete `key`, or every key of `[key, range_end)`."""
        request = pb.DeleteRangeRequest(key=key, range_end=range_end or b"", prev_kv=prev_kv)
        response = await self._pool.call(DELETE, request, timeout, once=True, linear=True)
        return delete_result(response, response.header.revision)

    async def transaction(
        self,
        compare: Sequence[Compare],
        success: Sequence[Op],
        failure: Sequence[Op] = (),
        *,
        timeout: float | None = None,
    ) -> TransactionResult:
        """If every comparison holds apply `success`, else `failure`, at one revision.

        A transaction without puts and deletes is a read, and is repeated like one.
        """
        request = pb.TxnRequest(compare=compare, success=success, failure=failure)
        once = not all(op.HasField("request_range") for ops in (success, failure) for op in ops)
        linear = bool(success or failure)  # etcd takes one without any operation for serializable
        return TransactionResult(await self._pool.call(TXN, request, timeout, once=once, linear=linear))

    async def commit(self, transaction: Transaction, *, timeout: float | None = None) -> TransactionResult:
        """Send a transaction that was filled in place; a write, whatever it holds."""
        message = transaction.message
        return TransactionResult(await self._pool.call(TXN, message, timeout, once=True, linear=True))

    def watch(self, key: bytes, range_end: bytes | None = None, start_revision: int | None = None) -> Watch:
        """Follow `key`, or `[key, range_end)`, from `start_revision` on (inclusive).

            async with client.watch(key, end, start_revision=result.revision + 1) as watch:
                async for batch in watch: ...

        Without `start_revision` (or with 0), entering waits until etcd watches, and begins with
        whatever is changed after that.
        """
        return Watch(self._watches, key, range_end, start_revision or 0)

    async def check(self) -> Server:
        """Fail fast: ask every endpoint once, log in, and say clearly what is wrong.

        Succeeds for every user whom etcd lets in; what the user may do is not asked. Raises `Unreachable`,
        `TlsFailed` or `AuthenticationFailed`.
        """
        for endpoint in self._pool.endpoints:
            response = await probe(endpoint)
            if not endpoint.healthy:
                continue
            try:
                if self._pool.tokens is not None:  # goes through etcd's log: proves a leader, too
                    await self._pool.tokens.get(endpoint, self._pool.timeout)
                version = response.version if response is not None else await self._release(endpoint)
            except (Unreachable, Ambiguous) as error:
                endpoint.failed(error)
            else:
                return Server(endpoint.name, version)
        raise self._pool.unreachable()

    async def _release(self, endpoint: Endpoint) -> str:
        """Return the release of a server that did not tell it to a stranger; empty if it tells nobody."""
        try:
            return (await self.status(endpoint.name)).version
        except PermissionDenied:  # etcd knows the user, and keeps its status for the root role
            return await self.release(endpoint.name)

    async def end_if_lost(self) -> None:
        """Raise `HistoryLost` once etcd has gone back to an earlier revision."""
        await self._pool.went_back.wait()
        assert self._pool.lost is not None  # noqa: S101 - it says why
        raise self._pool.lost

    @property
    def authenticates(self) -> bool:
        """Whether calls carry the token of a user."""
        return self._pool.tokens is not None

    @property
    def calls(self) -> Calls:
        """What was called so far, and how long it took."""
        return self._pool.calls

    def endpoints(self) -> list[tuple[str, EtcdError | None]]:
        """Return each endpoint as the user wrote it, and why it is not usable if that is known."""
        return [(endpoint.name, endpoint.failure) for endpoint in self._pool.endpoints]

    def add_member(self, endpoint: str) -> None:
        """Let the calls that name an endpoint name one more member of this cluster.

        No other call goes there. Of a client with credentials it will get the token. Raises `SetupError`.
        """
        if all(known.name != endpoint for known in (*self._pool.endpoints, *self._pool.beside)):
            self._pool.beside += self._opening([endpoint])

    async def aclose(self) -> None:
        """End the watches and close the channels."""
        with trio.CancelScope(shield=True):
            await self._watches.aclose()
        for endpoint in (*self._pool.endpoints, *self._pool.beside):
            endpoint.close()


@asynccontextmanager
async def open_client(
    endpoints: Sequence[str],
    *,
    tls: Tls | None = None,
    credentials: Credentials | None = None,
    timeout: float = DEFAULT_TIMEOUT,
    discovery: Discovery | None = None,
) -> AsyncIterator[Client]:
    """Open a client of the cluster at `endpoints`; nothing is sent before the first call.

    With `discovery` other endpoints are looked for when none of them answers.

    `timeout` (seconds) is the default of every call. Make it after daemonizing: gRPC does not
    survive a fork. Raises `SetupError` for addresses or certificate files that cannot be used.
    """
    opening = partial(open_endpoints, tls=tls, bridge=Bridge())
    opened = opening(endpoints)
    finder = Finder(discovery, opened, opening) if discovery is not None else None
    client = Client(Pool(opened, credentials, timeout, finder), HttpSide(tls), opening)
    try:
        yield client
    finally:
        await client.aclose()
        if finder is not None:
            finder.close()
