"""The session of this host: a lease in etcd, kept alive, replaced when it is lost.

A lease protects nothing by itself; it only bounds how long a dead host's keys stay. What a session
writes is fenced by transactions that put keys *on* the lease. A session counts as lost only when
etcd says so, never because a local clock thinks it late.

Task: one, `SessionKeeper.run`, owns the lease. It holds nothing across awaits that anybody waits for.
"""

from __future__ import annotations

import logging
import os
import socket
from dataclasses import dataclass
from typing import Final

import trio

from dnpipefs import etcd
from dnpipefs.core.keys import KeySchema
from dnpipefs.core.names import Revision, SessionId
from dnpipefs.core.records import SessionRecord, encode_session
from dnpipefs.errors import CorruptData

logger: Final = logging.getLogger(__name__)

SESSION_TTL_S: Final = 10
"""How long the keys of a dead host stay, seconds."""
_RETRY_S: Final = 0.5
REFUSED_RETRY_S: Final = 5.0
"""How often somebody who may only read tries again: the role can be changed at any time."""
_REFUSALS: Final = (etcd.PermissionDenied, etcd.AuthenticationFailed)
"""Failures that last until somebody does something about them."""


@dataclass(frozen=True, slots=True)
class Host:
    """A mount, command or program of the cluster: each has a session."""

    session: SessionId
    host: str
    """Its machine's name."""
    pid: int
    mountpoint: str | None
    """None for a command or a program."""
    version: str
    """Its release of dnpipefs."""
    since_ns: int | None
    """When it joined the cluster, by its clock, nanoseconds since 1970; None if its release does not say."""


async def read_hosts(client: etcd.Client, keys: KeySchema, *, timeout: float) -> list[Host]:
    """Return who is in the cluster, by name; one that died is there until its lease runs out.

    Raises EtcdError.
    """
    hosts = []
    for kv in (await client.range(keys.sessions.start, keys.sessions.end, timeout=timeout)).kvs:
        try:
            session, record = keys.parse_session(kv.key), SessionRecord.decode(kv.key, kv.value)
        except CorruptData as error:
            logger.warning("a host is left out, run dnpipefs fsck: %s", error)
            continue
        hosts.append(
            Host(session, record.host, record.pid, record.mountpoint, record.version, record.since_ns)
        )
    return sorted(hosts, key=lambda host: (host.host, host.pid, host.session))


class SessionKeeper:
    """Grants, keeps alive and replaces this process's session."""

    def __init__(
        self,
        client: etcd.Client,
        keys: KeySchema,
        *,
        mountpoint: str | None,
        version: str,
        ttl: int = SESSION_TTL_S,
        since_ns: int | None = None,
    ) -> None:
        self._client: Final = client
        self._keys: Final = keys
        self._ttl: Final = ttl
        self._value: Final = encode_session(
            host=socket.gethostname(),
            pid=os.getpid(),
            mountpoint=mountpoint,
            version=version,
            since_ns=since_ns,
        )
        # A command that pushes fails with the same words; one that reads need not say it.
        self._level: Final = logging.WARNING if mountpoint is not None else logging.INFO
        self._session: SessionId | None = None
        self.began = Revision(0)
        """When the newest session began: no earlier revision has anything of it."""
        self.begun = 0
        """How many there were."""
        self._confirmed_at: float = -1e9
        self.failure: etcd.EtcdError | None = None
        """Why there is no session, if that is known."""
        self._changed = trio.Event()
        self._lost = trio.Event()

    @property
    def healthy(self) -> bool:
        """Whether etcd was asked within its time to live, and has confirmed the session: it lives."""
        return self._session is not None and trio.current_time() - self._confirmed_at < self._ttl

    def current(self) -> SessionId | None:
        """Return the session if there is one now."""
        return self._session

    @property
    def refused(self) -> etcd.EtcdError | None:
        """Why there will be no session until somebody gives this host's user another role."""
        return self.failure if self._session is None and isinstance(self.failure, _REFUSALS) else None

    async def get(self, *, unless_full: bool = False) -> SessionId:
        """Wait until there is a session. The caller sets the deadline.

        Raises PermissionDenied, AuthenticationFailed when etcd does not allow one, and with *unless_full*
        SpaceExceeded when it has no room for one.
        """
        while self._session is None:
            if self.refused is not None:
                raise self.refused
            if unless_full and isinstance(self.failure, etcd.SpaceExceeded):
                raise self.failure
            await self._changed.wait()
        return self._session

    async def wait_healthy(self) -> None:
        """Wait until etcd has confirmed the session recently. The caller sets the deadline; as `get`."""
        while not self.healthy:
            if self.refused is not None:
                raise self.refused
            await self._changed.wait()

    def report_lost(self, session: SessionId) -> None:
        """Tell that etcd refused *session*'s lease; a new session is made."""
        if session == self._session:
            self._set(None)
            self._lost.set()

    async def run(self) -> None:
        """Keep a session until cancelled; then give its lease back, if etcd answers soon."""
        try:
            while True:
                session = await self._begin()
                try:
                    await self._keep(session)
                except etcd.LeaseNotFound:
                    logger.warning(
                        "session %x was lost: its lease ran out; beginning a new one",
                        session,
                        extra={"session": session},
                    )
                self.report_lost(session)
        finally:
            await self._end()

    async def _begin(self) -> SessionId:
        while True:
            session = None
            try:
                asked_at = trio.current_time()
                lease = await self._client.lease_grant(self._ttl)
                session = SessionId(lease.id)
                key = self._keys.session(session)
                self.began = Revision(await self._client.put(key, self._value, lease=lease.id))
            except etcd.EtcdError as error:
                # Whatever it is may pass, and reads go on without a session. A grant whose answer was
                # lost leaves a lease that runs out by itself.
                if type(error) is not type(self.failure):
                    logger.log(
                        self._level, "no session yet, so nothing can be pushed; trying again: %s", error
                    )
                self.failure = error
                self._set(None)
                if isinstance(error, _REFUSALS):
                    if session is not None:
                        await self._give_back(session)
                    await trio.sleep(REFUSED_RETRY_S)
                else:
                    await trio.sleep(_RETRY_S)
                continue
            self._lost = trio.Event()
            self.begun += 1
            self.failure = None
            self._set(session, asked_at)
            about = {"session": session, "revision": self.began}
            logger.info("session %x began at revision %d", session, self.began, extra=about)
            return session

    async def _keep(self, session: SessionId) -> None:
        """Confirm the session three times in its time to live, more often once that has failed."""
        wait_s = interval_s = self._ttl / 3
        while True:
            with trio.move_on_after(wait_s):
                await self._lost.wait()
            if self._lost.is_set():
                return
            asked_at = trio.current_time()
            try:
                await self._client.lease_keepalive_once(session, timeout=interval_s)
            except etcd.LeaseNotFound:
                raise
            except etcd.EtcdError as error:
                logger.warning(
                    "the session was not confirmed, trying again: %s", error, extra={"session": session}
                )
                wait_s = _RETRY_S
                continue
            wait_s = interval_s
            self._set(session, asked_at)

    async def _end(self) -> None:
        session, self._session = self._session, None
        if session is None:
            return
        with trio.move_on_after(1, shield=True):
            await self._give_back(session)

    async def _give_back(self, session: SessionId) -> None:
        try:
            await self._client.lease_revoke(session)
        except etcd.EtcdError as error:
            logger.info(
                "the lease of session %x runs out by itself: %s", session, error, extra={"session": session}
            )

    def _set(self, session: SessionId | None, confirmed_at: float = -1e9) -> None:
        self._session = session
        self._confirmed_at = confirmed_at
        self._changed.set()
        self._changed = trio.Event()
