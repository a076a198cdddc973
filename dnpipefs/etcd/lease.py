"""Calls about leases. A lease protects nothing by itself: fence what it guards in a transaction."""

from dnpipefs.etcd.endpoint import LEASE_GRANT, LEASE_KEEP_ALIVE, LEASE_REVOKE, LEASE_TIME_TO_LIVE
from dnpipefs.etcd.errors import LeaseNotFound
from dnpipefs.etcd.model import Lease, LeaseTimeToLive
from dnpipefs.etcd.pool import Pool
from dnpipefs.etcd.proto import rpc_pb2 as pb


class LeaseCalls:
    """The lease part of `Client`."""

    _pool: Pool

    async def lease_grant(self, ttl: int, *, lease_id: int = 0, timeout: float | None = None) -> Lease:
        """Grant a lease of `ttl` seconds; etcd chooses the id when `lease_id` is 0.

        Raises `LeaseExists` for an id in use. With a chosen id an `Ambiguous` failure can be
        settled with `lease_time_to_live`.
        """
        request = pb.LeaseGrantRequest(TTL=ttl, ID=lease_id)
        response = await self._pool.call(LEASE_GRANT, request, timeout, once=True)
        return Lease(response.ID, response.TTL)

    async def lease_revoke(self, lease_id: int, *, timeout: float | None = None) -> None:
        """End a lease and delete its keys. Raises `LeaseNotFound` when it is gone already."""
        await self._pool.call(LEASE_REVOKE, pb.LeaseRevokeRequest(ID=lease_id), timeout, once=True)

    async def lease_keepalive_once(self, lease_id: int, *, timeout: float | None = None) -> int:
        """Start the lease's time anew; return the TTL in seconds, or raise `LeaseNotFound`."""
        request = pb.LeaseKeepAliveRequest(ID=lease_id)
        response = await self._pool.call(LEASE_KEEP_ALIVE, request, timeout, once=False)
        if response.TTL <= 0:
            raise LeaseNotFound(f"lease {lease_id:x} is gone: grant a new one")
        return response.TTL

    async def lease_time_to_live(
        self, lease_id: int, *, keys: bool = False, timeout: float | None = None
    ) -> LeaseTimeToLive:
        """Return what is left of a lease, with its keys if wanted; raise `LeaseNotFound`."""
        request = pb.LeaseTimeToLiveRequest(ID=lease_id, keys=keys)
        response = await self._pool.call(LEASE_TIME_TO_LIVE, request, timeout, once=False)
        if response.TTL < 0:
            raise LeaseNotFound(f"lease {lease_id:x} is gone: grant a new one")
        return LeaseTimeToLive(response.ID, response.TTL, response.grantedTTL, list(response.keys))
