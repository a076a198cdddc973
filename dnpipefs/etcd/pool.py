"""Which endpoint a call goes to, how often it is sent, and with which token.

Owns failover and authentication. The rule that everything above relies on:

* a *read* is repeated, on whichever endpoint answers, until its deadline;
* a *write* is sent once. It may wait for an endpoint and move between endpoints as long as nothing
  of it has left this process; from then on a failure that is not a clear no is `Ambiguous`;
* of answers that are *linearizable* none is older than one that had come before its question. If one is,
  etcd has lost what it had answered, and no further call is made: `HistoryLost`.

An endpoint whose last call failed is probed (the `Status` method) before it gets the next one, so a
write does not find out about a dead server; the probe's error says why it is dead.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast

import trio

from dnpipefs.errors import SetupError
from dnpipefs.etcd.bridge import Metadata
from dnpipefs.etcd.discovery import Finder
from dnpipefs.etcd.endpoint import AUTHENTICATE, STATUS, Endpoint, Method, Request, Response
from dnpipefs.etcd.errors import (
    Ambiguous,
    AuthenticationFailed,
    Definite,
    EtcdError,
    HistoryLost,
    InvalidRequest,
    SpaceExceeded,
    TokenRejected,
    Unreachable,
)
from dnpipefs.etcd.proto import rpc_pb2 as pb
from dnpipefs.metrics import Calls

PROBE_TIMEOUT = 1.0
"""Seconds an endpoint has to answer `Status` before the next one is tried."""
PROBE_PAUSE = 0.1
"""Seconds between two rounds over endpoints that are all down."""
RETRY_PAUSE = 0.05
"""Seconds before a failed attempt is repeated, so that a server that fails fast is not hammered."""
MIN_ATTEMPT = 0.5
"""Seconds a read gets at an endpoint, at least, before it is tried at another one."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """An etcd user and its password, which no message and no log line ever shows."""

    user: str
    password: str = field(repr=False)


class Tokens:
    """The session token: asked for when first needed, shared by all calls, renewed when rejected."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._metadata: Metadata | None = None
        self._renewing = trio.Lock()

    async def get(self, endpoint: Endpoint, timeout: float) -> Metadata:
        """Return the metadata that authenticates a call; empty when the cluster has no users.

        Raises `AuthenticationFailed` for a wrong password, and what the call raises otherwise.
        """
        if self._metadata is None:
            async with self._renewing:
                if self._metadata is None:
                    self._metadata = await self._authenticate(endpoint, timeout)
        return self._metadata

    def reject(self, metadata: Metadata | None) -> None:
        """Forget a token that etcd did not accept (unless it has been renewed meanwhile)."""
        if self._metadata is metadata:
            self._metadata = None

    async def _authenticate(self, endpoint: Endpoint, timeout: float) -> Metadata:
        request = pb.AuthenticateRequest(name=self._credentials.user, password=self._credentials.password)
        try:
            response = await endpoint.call(AUTHENTICATE, request, timeout)
        except AuthenticationFailed:
            raise AuthenticationFailed(
                f"etcd at {endpoint.name} refuses user {self._credentials.user!r}: check user and password"
            ) from None
        except InvalidRequest as error:
            if "authentication is not enabled" in str(error):
                return ()
            raise
        return (("token", response.token),)


class Pool:
    """The endpoints of one cluster; sticks to one as long as it works."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        credentials: Credentials | None,
        timeout: float,
        finder: Finder | None = None,
    ) -> None:
        self.endpoints = tuple(endpoints)
        self.beside: list[Endpoint] = []
        """Those that get only calls that name them."""
        self.timeout = timeout
        self.tokens = Tokens(credentials) if credentials is not None else None
        self.calls: Final = Calls()
        self.newest = 0
        """The newest revision that an answer was of."""
        self.lost: HistoryLost | None = None
        """Why there are no more calls, if etcd has gone back."""
        self.went_back: Final = trio.Event()
        self._finder = finder
        self._current = 0
        self._selecting = trio.Lock()
        self._moved = trio.lowlevel.ParkingLot()

    def named(self, name: str) -> Endpoint:
        """Return the endpoint the user wrote as `name`, or the one beside them."""
        for endpoint in (*self.endpoints, *self.beside):
            if endpoint.name == name:
                if endpoint.failure is not None:
                    endpoint.renew()
                return endpoint
        raise SetupError(f"{name!r} is not one of this client's endpoints")

    def deadline(self, timeout: float | None) -> float:
        """Return the time (trio's clock) at which a call of `timeout` seconds must be over."""
        return trio.current_time() + (self.timeout if timeout is None else timeout)

    async def ready(self, deadline: float) -> Endpoint:
        """Return an endpoint that worked when last used or just now; wait for one until `deadline`.

        Raises `Unreachable` (or `TlsFailed`) with the reason of the last probe.
        """
        endpoint = self.endpoints[self._current]
        if endpoint.healthy:
            return endpoint
        with trio.move_on_at(deadline):
            async with self._selecting:
                while not self.endpoints[self._current].healthy:
                    if not await self.probe_round():
                        await self._look_again()
                        await trio.sleep(PROBE_PAUSE)
                return self.endpoints[self._current]
        raise self.unreachable()

    async def probe_round(self) -> bool:
        """Ask every endpoint once, beginning after the one in use; True when one of them works."""
        count = len(self.endpoints)
        first = self._current + (self.endpoints[self._current].failure is not None)
        for index in (position % count for position in range(first, first + count)):
            endpoint = self.endpoints[index]
            await probe(endpoint)
            if endpoint.healthy:
                if index != self._current:
                    self._current = index
                    self._moved.unpark_all()
                return True
        return False

    async def left(self, endpoint: Endpoint) -> None:
        """Wait until calls have failed at an endpoint and go to another one."""
        while endpoint.healthy or self.endpoints[self._current] is endpoint:
            await self._moved.park()

    async def _look_again(self) -> None:
        """Take other endpoints, if there is somebody to ask for them and they are others now."""
        found = tuple(await self._finder.look_again()) if self._finder is not None else self.endpoints
        if found != self.endpoints:
            self.endpoints, self._current = found, 0
            self._moved.unpark_all()

    def unreachable(self) -> Unreachable:
        """Say why no endpoint works, in the words of the one that said most."""
        failures = [endpoint.failure for endpoint in self.endpoints if endpoint.failure is not None]
        for failure in failures:
            if isinstance(failure, Unreachable):
                return type(failure)(str(failure))
        said = str(failures[0]) if failures else "no answer in time"
        names = ", ".join(endpoint.name for endpoint in self.endpoints)
        return Unreachable(f"no etcd endpoint is usable ({names}), nothing was sent: {said}")

    async def call(
        self,
        method: Method[Request, Response],
        request: Request,
        timeout: float | None,
        *,
        once: bool,
        endpoint: Endpoint | None = None,
        linear: bool = False,
    ) -> Response:
        """Make a call by the rule at the top of this module; `once` says it is a write.

        `timeout` is in seconds and covers everything, including the wait for an endpoint. With
        `endpoint` the call goes there and nowhere else. `linear`: the answer is linearizable, and its header
        has the store's revision.
        """
        if self.lost is not None:
            raise HistoryLost(str(self.lost))
        began, newest = trio.current_time(), self.newest
        try:
            deadline = began + (self.timeout if timeout is None else timeout)
            response = await self._call(method, request, deadline, once=once, endpoint=endpoint)
        except EtcdError as error:
            self.calls.failed[type(error).__name__] += 1
            raise
        finally:
            self.calls.took[method.name].observe(trio.current_time() - began)
        if linear:
            self._see(cast(Any, response).header.revision, newest, once=once)
        return response

    def _see(self, revision: int, newest: int, *, once: bool) -> None:
        """Take in the revision of an answer, to a call that was made when *newest* was the newest."""
        if revision >= newest:
            self.newest = max(self.newest, revision)
            return
        self.lost = HistoryLost(
            f"etcd was at revision {newest} and is at {revision} now, as if restored from a backup: "
            "what this host knows of it is void; start again what uses it (mounts, programs)"
        )
        self.went_back.set()
        if not once:  # a write is in what etcd is now
            raise HistoryLost(str(self.lost))

    async def _call(
        self,
        method: Method[Request, Response],
        request: Request,
        deadline: float,
        *,
        once: bool,
        endpoint: Endpoint | None,
    ) -> Response:
        renewed = False
        while True:
            target = endpoint or await self.ready(deadline)
            metadata: Metadata | None = None
            try:
                if self.tokens is not None:
                    metadata = await self.tokens.get(target, max(0.0, deadline - trio.current_time()))
            except Ambiguous as error:  # of the authentication: nothing of the request was sent
                target.failed(error)
                if endpoint is not None:
                    raise Unreachable(str(error)) from error
                await trio.sleep(RETRY_PAUSE)
                continue
            try:
                return await target.call(method, request, self._share(deadline, once), metadata)
            except TokenRejected as error:
                if self.tokens is None or renewed:
                    raise AuthenticationFailed(str(error)) from error
                renewed = True
                self.tokens.reject(metadata)
            except (Unreachable, Ambiguous) as error:
                if isinstance(error, SpaceExceeded):
                    raise
                target.failed(error)
                sent = isinstance(error, Ambiguous)
                if (once and sent) or endpoint is not None or trio.current_time() >= deadline:
                    raise
                if sent:
                    await trio.sleep(RETRY_PAUSE)

    def _share(self, deadline: float, once: bool) -> float:
        """Return how long one attempt may take: a write all that is left, a read half of it.

        With one endpoint there is nobody else to ask, and a read gets everything, too.
        """
        left = max(0.0, deadline - trio.current_time())
        if once or len(self.endpoints) == 1:
            return left
        return min(left, max(MIN_ATTEMPT, left / 2))

    async def wait_ready(self) -> Endpoint:
        """Wait for an endpoint as long as it takes."""
        return await self.ready(math.inf)


async def probe(endpoint: Endpoint, timeout: float = PROBE_TIMEOUT) -> pb.StatusResponse | None:
    """Ask for the status of a member, and note on the endpoint whether it can be used."""
    endpoint.renew()
    try:
        status = await endpoint.call(STATUS, pb.StatusRequest(), timeout)
    except (Unreachable, Ambiguous) as error:
        endpoint.failed(error)
        return None
    except Definite:  # an answer, if not to this question: somebody is there
        endpoint.works()
        return None
    if status.leader == 0:
        endpoint.failed(EtcdError(f"etcd at {endpoint.name} has no leader: is a majority of the members up?"))
    elif status.isLearner:
        endpoint.failed(
            EtcdError(f"etcd at {endpoint.name} is a learner: name the voting members as endpoints")
        )
    else:
        endpoint.works()
    return status
