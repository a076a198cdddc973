"""Asking etcd for the facts: every address by itself, then the cluster, then the prefix.

Writes nothing but keys of its own below `doctor/`, on a lease, and removes them. What is refused or not
served is left out, not a failure: an ordinary user learns less than one with the root role.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from typing import Final

import trio

from dnpipefs import etcd
from dnpipefs.cluster import Settings
from dnpipefs.core.batch import peek_time_ns
from dnpipefs.core.keys import MARK, KeySchema
from dnpipefs.core.records import Meta, SessionRecord, decode_time
from dnpipefs.doctor.facts import Endpoint, Facts, Prefix, Server
from dnpipefs.errors import DnpError
from dnpipefs.etcd.health import read_state, told
from dnpipefs.etcd.metrics import Metrics

logger: Final = logging.getLogger(__name__)

CALL_TIMEOUT_S: Final = 5.0
"""How long one call may take before what it asks for counts as not to be had."""
PROBES: Final = 10
"""Reads and writes whose time is taken."""
PROBE_TTL_S: Final = 60
"""How long the keys of an examination that was killed stay."""
LISTEN_S: Final = 1.0
"""How long pushes of other hosts are listened for, whose times tell of their clocks."""

COMPACTED_METRIC: Final = "etcd_debugging_mvcc_compact_revision"
FSYNC_METRIC: Final = "etcd_disk_wal_fsync_duration_seconds"


def open_endpoints(settings: Settings, names: Sequence[str]) -> AbstractAsyncContextManager[etcd.Client]:
    """Open a client of these addresses as the settings say."""
    timeout = min(CALL_TIMEOUT_S, settings.op_timeout)
    return etcd.open_client(names, tls=settings.tls, credentials=settings.credentials, timeout=timeout)


async def examine(settings: Settings, endpoints: Sequence[str], *, embedded: bool = False) -> Facts:
    """Find out how the cluster at `endpoints` is. Raises SetupError for addresses or files that are none."""
    names = list(dict.fromkeys(endpoints))
    found = [await _endpoint(settings, name, given=True) for name in names]
    user = settings.credentials.user if settings.credentials is not None else None
    usable = [endpoint.name for endpoint in found if endpoint.server is not None]
    if not usable:
        return Facts(tuple(found), embedded, user)
    async with open_endpoints(settings, usable) as client:
        members = await told(client.members)
        alarms = await told(client.alarms)
        found += await _advertised(settings, names, members or (), found)
        prefix = await _prefix(client, KeySchema(settings.prefix))
    return Facts(
        tuple(found),
        embedded,
        user,
        tuple(members) if members is not None else None,
        tuple(alarms) if alarms is not None else None,
        prefix,
    )


async def _advertised(
    settings: Settings, names: Sequence[str], members: Sequence[etcd.Member], found: Sequence[Endpoint]
) -> list[Endpoint]:
    """Look at the members that nobody named, where they say they are; no password goes there in the open."""
    seen = {endpoint.server.member_id for endpoint in found if endpoint.server is not None}
    more = []
    for member in members:
        schemes = ("https://",) if settings.credentials is not None else ("https://", "http://")
        urls = [url for url in member.client_urls if url.startswith(schemes) and url not in names]
        if member.id not in seen and urls:
            endpoint = await _endpoint(settings, urls[0], given=False)
            # Their "localhost" is not ours: somebody else may answer there.
            if endpoint.server is None or endpoint.server.member_id == member.id:
                more.append(endpoint)
    return more


async def _endpoint(settings: Settings, name: str, *, given: bool) -> Endpoint:
    async with open_endpoints(settings, [name]) as client:
        try:
            version = (await client.check()).version
            return Endpoint(name, given, await _server(client, name, version))
        except etcd.EtcdError as error:
            return Endpoint(name, given, failure=str(error))


async def _server(client: etcd.Client, name: str, version: str) -> Server:
    """Put together what status, metrics, command line and clock of a member say. Raises EtcdError."""
    status: etcd.Status | None = None
    with suppress(etcd.PermissionDenied):  # it shows that to the root role only
        status = await client.status(name)
    metrics = await told(lambda: client.metrics(name)) or Metrics(b"")
    command = await told(lambda: client.command_line(name))
    asked = time.time()
    date = await told(lambda: client.date(name))
    state = read_state(version, status, metrics)
    syncs = metrics.told(FSYNC_METRIC + "_count")
    return Server(
        version=version,
        member_id=state.member_id,
        leads=state.leads,
        revision=state.revision,
        size=state.size,
        in_use=state.in_use,
        quota=state.quota,
        compacted=metrics.whole(COMPACTED_METRIC),
        command=command,
        fsync_s=(metrics.told(FSYNC_METRIC + "_sum") or 0.0) / syncs if syncs else None,
        ahead_s=date + 0.5 - (asked + time.time()) / 2 if date is not None else None,
    )


async def _prefix(client: etcd.Client, keys: KeySchema) -> Prefix:
    """Look at what is under the prefix, and whether and how fast it can be read and written."""
    name = keys.prefix.decode()
    try:
        meta = await client.get(keys.meta)
        sessions = (await client.range(keys.sessions.start, keys.sessions.end)).kvs
        orders = (await client.range(keys.all_trash.start, keys.all_trash.end)).kvs
        reads = await _timed(lambda: client.get(keys.meta))
    except etcd.EtcdError as error:
        return Prefix(name, read_failure=str(error), denied=isinstance(error, etcd.PermissionDenied))
    format_failure = None
    records: list[SessionRecord] = []
    ages: list[float] = []
    try:
        if meta is not None:
            Meta.decode(keys.meta, meta.value)
        records = [SessionRecord.decode(kv.key, kv.value) for kv in sessions]
        ages = [time.time() - decode_time(kv.key, kv.value) / 1e9 for kv in orders]
    except DnpError as error:
        format_failure = str(error)
    write_failure, writes = await _write(client, keys)
    return Prefix(
        name,
        format_failure,
        in_use=meta is not None,
        write_failure=str(write_failure) if write_failure is not None else None,
        denied=isinstance(write_failure, etcd.PermissionDenied),
        reads_s=reads,
        writes_s=writes,
        sessions=tuple(records),
        orders_age_s=tuple(ages),
        behind_s=await _listen(client, keys),
    )


async def _timed(call: Callable[[], Awaitable[object]]) -> tuple[float, ...]:
    times = []
    for _ in range(PROBES):
        begun = trio.current_time()
        await call()
        times.append(trio.current_time() - begun)
    return tuple(times)


async def _write(client: etcd.Client, keys: KeySchema) -> tuple[etcd.EtcdError | None, tuple[float, ...]]:
    """Write and remove keys of our own; return why that does not work, or how long each write took."""
    key = keys.probe(secrets.randbits(64))
    try:
        lease = await client.lease_grant(PROBE_TTL_S)
        try:
            times = await _timed(lambda: client.put(key, b"", lease=lease.id))
            await client.delete(key)
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + CALL_TIMEOUT_S):
                await client.lease_revoke(lease.id)
    except etcd.EtcdError as error:
        return error, ()
    return None, times


async def _listen(client: etcd.Client, keys: KeySchema) -> tuple[float, ...]:
    """Return how long ago, by our clock, the pushes that arrive now were made by their hosts' clocks."""
    behind: list[float] = []
    with trio.move_on_after(LISTEN_S):
        try:
            async with client.watch(keys.all_tails.start, keys.all_tails.end) as watch:
                async for batch in watch:
                    now = time.time()
                    behind += [
                        now - peek_time_ns(event.kv.value) / 1e9
                        for event in batch.events
                        if event.kind is etcd.EventKind.PUT and not event.kv.key.endswith(MARK)
                    ]
        except DnpError as error:
            logger.info("no pushes are seen: %s", error)
    return tuple(behind)
