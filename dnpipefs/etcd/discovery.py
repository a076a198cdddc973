"""Endpoints that are not named but looked up: now, and again when none of them answers.

Does not know how they are looked up: `srv.py` does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from dnpipefs.errors import SetupError
from dnpipefs.etcd.endpoint import Endpoint

if TYPE_CHECKING:
    from dns.asyncresolver import Resolver

logger: Final = logging.getLogger(__name__)

AGAIN_S: Final = 10.0
"""Seconds from one lookup to the next, while no endpoint answers."""


@dataclass(frozen=True, slots=True)
class Discovery:
    """Where to look: a domain; with `tls_only` records without TLS are not taken."""

    domain: str
    tls_only: bool = False
    resolver: Resolver | None = None
    """Who is asked; None for what /etc/resolv.conf says each time."""

    async def endpoints(self) -> list[str]:
        """Return the addresses, in the order in which to try them. Raises SetupError if there are none."""
        from dnpipefs.etcd.srv import look_up  # here: see there

        return await look_up(self.domain, tls_only=self.tls_only, resolver=self.resolver)


class Finder:
    """Asks DNS again for the endpoints of a client; keeps a channel to each that it ever named."""

    def __init__(
        self,
        discovery: Discovery,
        first: Sequence[Endpoint],
        opening: Callable[[Sequence[str]], Sequence[Endpoint]],
    ) -> None:
        self._discovery: Final = discovery
        self._opening: Final = opening
        self._opened: Final = {endpoint.name: endpoint for endpoint in first}
        self._found = tuple(first)
        self._next = trio.current_time() + AGAIN_S

    async def look_again(self) -> Sequence[Endpoint]:
        """Return what DNS says now; what it said before, if that is not long ago or it says nothing."""
        if trio.current_time() >= self._next:
            try:
                self._take(await self._discovery.endpoints())
            except SetupError as error:
                logger.warning("%s; going on with what it said before", error)
            self._next = trio.current_time() + AGAIN_S
        return self._found

    def _take(self, names: Sequence[str]) -> None:
        new = [name for name in dict.fromkeys(names) if name not in self._opened]
        if new:
            logger.warning("no endpoint answers; DNS names others: %s", ", ".join(new))
            self._opened.update((endpoint.name, endpoint) for endpoint in self._opening(new))
        self._found = tuple(self._opened[name] for name in dict.fromkeys(names))

    def close(self) -> None:
        """Close the channels, those of former endpoints, too, where calls may still have been under way."""
        for endpoint in self._opened.values():
            endpoint.close()
