"""One host's part in a cluster: the client, the session, the log and the namespace, composed.

Everything above (the file semantics, the Python API) gets a `Cluster` and adds no etcd of its own.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Final, NamedTuple

import trio

from dnpipefs import etcd
from dnpipefs.core.config import TopicConfig
from dnpipefs.core.keys import DEFAULT_PREFIX, KeySchema
from dnpipefs.core.sealing import Policy, Retention
from dnpipefs.etcd.releases import RECOMMENDED, known_fault
from dnpipefs.etcd.server import DEFAULT_QUOTA_BYTES, EmbeddedServer, embedded_server, running_endpoint
from dnpipefs.etcd.upkeep import Upkeep
from dnpipefs.groups import Groups
from dnpipefs.groups.dead_letters import DeadLetters
from dnpipefs.log.barrier import Barrier
from dnpipefs.log.clock import SystemClock
from dnpipefs.log.content import CACHE_LIMIT
from dnpipefs.log.failures import DEFAULT_OP_TIMEOUT_S
from dnpipefs.log.format import ensure_format
from dnpipefs.log.log import Log
from dnpipefs.log.session import SESSION_TTL_S, Host, SessionKeeper, read_hosts
from dnpipefs.log.staleness import Staleness
from dnpipefs.namespace import Namespace

logger: Final = logging.getLogger(__name__)

VERSION: Final = version("dnpipefs")


def default_data_dir() -> Path:
    """Return where the embedded etcd keeps its data: below /var/lib for root, else the user's state.

    A user who has no home gets root's, so that commands work that need no data directory.
    """
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    if os.geteuid() == 0 or not os.path.isabs(state):
        return Path("/var/lib/dnpipefs")
    return Path(state, "dnpipefs")


@dataclass(frozen=True, slots=True)
class Settings:
    """How to reach a cluster. Without endpoints an embedded etcd with data under `data_dir` is used."""

    endpoints: tuple[str, ...] = ()
    prefix: str = DEFAULT_PREFIX
    data_dir: Path = field(default_factory=default_data_dir)
    tls: etcd.Tls | None = None
    credentials: etcd.Credentials | None = None
    op_timeout: float = DEFAULT_OP_TIMEOUT_S
    """Seconds an operation waits for etcd before it fails with TimedOut."""
    session_ttl: int = SESSION_TTL_S
    cache_limit: int = CACHE_LIMIT
    """Bytes of memory that batches and segments take which were read, or a watch brought."""
    quota: int = DEFAULT_QUOTA_BYTES
    """Bytes the database of the embedded etcd may take, if this process is the one to start it."""
    read_stale: bool = False
    """Files and directories show what this host has while etcd does not answer; see `log/staleness.py`."""
    discovery_srv: str | None = None
    """The domain whose DNS says the endpoints, instead of `endpoints`."""

    @property
    def embedded(self) -> bool:
        """Whether an etcd of our own is used."""
        return not self.endpoints and self.discovery_srv is None

    @property
    def discovery(self) -> etcd.Discovery | None:
        """Where endpoints are looked for, if they are; without TLS only if no certificate is at hand."""
        if self.discovery_srv is None:
            return None
        return etcd.Discovery(self.discovery_srv, tls_only=self.tls is not None)


@dataclass(frozen=True, slots=True)
class Cluster:
    """The services of one host."""

    settings: Settings
    client: etcd.Client
    log: Log
    namespace: Namespace
    groups: Groups
    barrier: Barrier
    gauge: etcd.HealthGauge

    @property
    def stale(self) -> bool:
        """Whether readers get what this host has, since etcd does not answer."""
        return self.barrier.staleness.since is not None

    async def space(self) -> etcd.Space:
        """Return how full etcd is. Raises EtcdError."""
        return await self.client.space()

    async def health(self) -> etcd.Health:
        """Return how etcd's members are; see `HealthGauge`."""
        return await self.gauge.look()

    async def hosts(self) -> list[Host]:
        """Return who is in the cluster, by name. Raises EtcdError."""
        return await read_hosts(
            self.client, KeySchema(self.settings.prefix), timeout=self.settings.op_timeout
        )


@asynccontextmanager
async def open_cluster(settings: Settings, *, mountpoint: str | None = None) -> AsyncIterator[Cluster]:
    """Join the cluster until the block ends.

    Raises SetupError, UnsupportedFormat, or an EtcdError that says why etcd cannot be used. What the
    block raises comes out as it is, not in the group that the tasks behind the cluster make of it.
    """
    failure: BaseException | None = None
    try:
        async with _join(settings, mountpoint) as cluster:
            try:
                yield cluster
            except BaseException as error:  # noted, to be told from what the tasks raise
                failure = error
                raise
    except BaseExceptionGroup as group:
        leaves = list(_leaves(group))
        if failure is None or leaves != list(_leaves(failure)):
            if len(leaves) != 1:
                raise
            failure = leaves[0]
    else:
        return
    raise failure


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """Yield what a group consists of, cancellations left out."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    elif not isinstance(error, trio.Cancelled):
        yield error


def _policy(config: TopicConfig) -> Policy:
    """Return what a topic's settings mean for its log."""
    keep = Retention(config.retention_bytes, config.retention_age_ns, config.retention_messages)
    return Policy(keep, config.compress)


class Reached(NamedTuple):
    """An etcd that answers."""

    client: etcd.Client
    server: etcd.Server
    embedded: EmbeddedServer | None
    """None if it is not one of our own."""


@asynccontextmanager
async def open_etcd(settings: Settings) -> AsyncIterator[Reached]:
    """Reach the etcd of a cluster without joining the cluster: nothing is written, nobody is told.

    Raises SetupError, or an EtcdError that says why etcd cannot be used.
    """
    async with AsyncExitStack() as stack:
        endpoints, embedded, discovery = settings.endpoints, None, settings.discovery
        if discovery is not None:
            endpoints = tuple(await discovery.endpoints())
        elif settings.embedded:
            embedded = await stack.enter_async_context(
                embedded_server(settings.data_dir, quota_bytes=settings.quota, log=logger)
            )
            endpoints = (embedded.endpoint,)
        client = await stack.enter_async_context(
            etcd.open_client(
                endpoints, tls=settings.tls, credentials=settings.credentials, discovery=discovery
            )
        )
        yield Reached(client, await client.check(), embedded)


@asynccontextmanager
async def look_at_etcd(settings: Settings, *, timeout: float) -> AsyncIterator[etcd.Client | None]:
    """Give a client of a cluster's etcd for a few reads; None if that is one of our own and does not run.

    Nothing is started, nothing is asked before the block does; `timeout` is that of each call, in seconds.
    """
    with ExitStack() as stack:
        endpoints, discovery = settings.endpoints, settings.discovery
        if discovery is not None:
            endpoints = tuple(await discovery.endpoints())
        elif settings.embedded:
            own = stack.enter_context(running_endpoint(settings.data_dir))
            if own is None:
                yield None
                return
            endpoints = (own,)
        async with etcd.open_client(
            endpoints, tls=settings.tls, credentials=settings.credentials, timeout=timeout
        ) as client:
            yield client


@asynccontextmanager
async def _join(settings: Settings, mountpoint: str | None) -> AsyncIterator[Cluster]:
    async with AsyncExitStack() as stack:
        client, server, embedded = await stack.enter_async_context(open_etcd(settings))
        fault = known_fault(server.version)
        # Said where it is read: in a mount's log, not after each push of a shell loop.
        level = logging.WARNING if mountpoint is not None else logging.INFO
        if fault is not None:
            logger.log(level, "%s: upgrade to %s", fault, RECOMMENDED)
        nursery = await stack.enter_async_context(trio.open_nursery())
        stack.callback(nursery.cancel_scope.cancel)
        nursery.start_soon(client.end_if_lost)
        if embedded is not None:
            await nursery.start(Upkeep(client, embedded.endpoint, embedded.data_dir, level=level).run)
        keys, clock, op_timeout = KeySchema(settings.prefix), SystemClock(), settings.op_timeout
        await ensure_format(client, keys, clock, uid=os.geteuid(), gid=os.getegid())
        sessions = SessionKeeper(
            client,
            keys,
            mountpoint=mountpoint,
            version=VERSION,
            ttl=settings.session_ttl,
            since_ns=clock.now_ns(),
        )
        staleness = Staleness(allowed=settings.read_stale)
        barrier = Barrier(client, keys, op_timeout=op_timeout, staleness=staleness)
        namespace = Namespace(client, keys, clock, barrier, op_timeout=op_timeout)
        log = Log(
            client,
            keys,
            clock,
            sessions,
            barrier,
            op_timeout=op_timeout,
            cache_limit=settings.cache_limit,
            policy=lambda topic: _policy(namespace.config_of(topic)),
            retained=namespace.retained,
        )
        groups = Groups(
            client,
            keys,
            log,
            namespace.config_of,
            DeadLetters(namespace, log).put,
            op_timeout=op_timeout,
        )
        # What members of groups give back when all is cancelled is fenced by the session: it ends after them.
        stack.callback((await nursery.start(_shielded, sessions.run)).cancel)
        nursery.start_soon(barrier.run)
        await nursery.start(namespace.run)
        await nursery.start(log.run)
        taking_part = await stack.enter_async_context(trio.open_nursery())
        stack.callback(taking_part.cancel_scope.cancel)
        await taking_part.start(groups.run)
        gauge = etcd.HealthGauge(client, keys.meta)
        yield Cluster(settings, client, log, namespace, groups, barrier, gauge)


async def _shielded(
    service: Callable[[], Awaitable[None]],
    task_status: trio.TaskStatus[trio.CancelScope] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a service until the scope is cancelled that this starts with, and not before."""
    with trio.CancelScope(shield=True) as scope:
        task_status.started(scope)
        await service()
