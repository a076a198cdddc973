"""The endpoints of a cluster by DNS, as etcd's own tools find them: SRV records below a domain.

Owns the names and the order of the records, and what is said when there are none. Imported when it is
needed: the resolver takes a tenth of a second to load, and few commands look anything up.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

import dns.asyncresolver
import dns.exception
import dns.rdtypes.IN.SRV
import dns.resolver

from dnpipefs.errors import SetupError

logger: Final = logging.getLogger(__name__)

TLS_SERVICE: Final = "_etcd-client-ssl._tcp"
PLAIN_SERVICE: Final = "_etcd-client._tcp"
LOOKUP_S: Final = 3.0
"""Seconds that DNS has to answer one question, all servers and repetitions together."""


async def look_up(
    domain: str, *, tls_only: bool, resolver: dns.asyncresolver.Resolver | None = None
) -> list[str]:
    """Return the addresses, in the order in which they are to be tried: that of RFC 2782.

    Those with TLS if there are any; those without only if DNS says that there are none with, and not
    `tls_only`. Without `resolver` those are asked whom /etc/resolv.conf names now. Raises SetupError if there
    are none, or if DNS does not say.
    """
    services = {TLS_SERVICE: "https"} if tls_only else {TLS_SERVICE: "https", PLAIN_SERVICE: "http"}
    try:
        resolver = resolver or dns.asyncresolver.Resolver()
        for service, scheme in services.items():
            endpoints = [f"{scheme}://{address}" for address in await _ask(resolver, f"{service}.{domain}")]
            if endpoints:
                logger.info("%s.%s: %s", service, domain, ", ".join(endpoints))
                return endpoints
        # Why there are none: this raises NXDOMAIN if there is no such domain.
        await resolver.resolve(domain, "NS", raise_on_no_answer=False, search=True, lifetime=LOOKUP_S)
    except dns.resolver.NXDOMAIN:
        raise SetupError(f"DNS knows no domain {domain}: check --discovery-srv") from None
    except (dns.exception.DNSException, UnicodeError) as error:
        said = " ".join(str(error).split()).rstrip(".")
        raise SetupError(
            f"DNS does not say where the etcd of {domain} is ({said}): "
            "check /etc/resolv.conf, or name the members with --endpoints"
        ) from error
    needed = "; there is a certificate, so TLS is needed" if tls_only else ""
    raise SetupError(
        f"{domain} has no SRV records {' or '.join(services)}{needed}: add some, or name --endpoints"
    )


async def _ask(resolver: dns.asyncresolver.Resolver, name: str) -> Sequence[str]:
    """Return host:port of each record of a name; none if DNS says that there are none."""
    try:
        answer = await resolver.resolve(name, "SRV", search=True, lifetime=LOOKUP_S)
    except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
        return ()
    found = []
    for record in answer.rrset.processing_order() if answer.rrset is not None else ():
        assert isinstance(record, dns.rdtypes.IN.SRV.SRV)  # noqa: S101 - as asked for
        if record.target != dns.name.root:  # which says: decidedly not available
            found.append(f"{record.target.to_text(omit_final_dot=True)}:{record.port}")
    return found
