"""A DNS server on loopback with a zone of the test's own."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import dns.asyncresolver
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import dns.zonefile


class DnsServer:
    """Made by `dns_server`. Answers by UDP from `zone`, which the test may replace at any time."""

    def __init__(self, zone: str, address: str, port: int) -> None:
        self.zone = zone
        """Lines of a zone file, with names that end with a dot; what is below a name of it exists, too."""
        self.failing: set[str] = set()
        """The names asked for that get SERVFAIL, `*` for all."""
        self.silent = False
        self.asked: list[str] = []
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((address, port))
        self.address, self.port = self._socket.getsockname()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    @property
    def resolver(self) -> dns.asyncresolver.Resolver:
        """A resolver that asks here and nowhere else."""
        resolver = dns.asyncresolver.Resolver(configure=False)
        resolver.nameservers = [self.address]
        resolver.port = self.port
        return resolver

    def _serve(self) -> None:
        while True:
            wire, sender = self._socket.recvfrom(4096)
            if not wire:
                return
            if not self.silent:
                self._socket.sendto(self._answer(dns.message.from_wire(wire)).to_wire(), sender)

    def _answer(self, query: dns.message.Message) -> dns.message.Message:
        (question,) = query.question
        self.asked.append(f"{question.name} {dns.rdatatype.to_text(question.rdtype)}")
        answer = dns.message.make_response(query)
        answer.flags |= dns.flags.RA
        if {"*", question.name.to_text()} & self.failing:
            answer.set_rcode(dns.rcode.SERVFAIL)
            return answer
        sets = dns.zonefile.read_rrsets(self.zone, default_ttl=1)
        answer.answer = [
            found for found in sets if (found.name, found.rdtype) == (question.name, question.rdtype)
        ]
        if not any(found.name.is_subdomain(question.name) for found in sets):
            answer.set_rcode(dns.rcode.NXDOMAIN)
        return answer

    def close(self) -> None:
        self._socket.sendto(b"", (self.address, self.port))  # what ends the thread
        self._thread.join()
        self._socket.close()


@contextmanager
def dns_server(zone: str = "", address: str = "127.0.0.1", port: int = 0) -> Iterator[DnsServer]:
    server = DnsServer(zone, address, port)
    try:
        yield server
    finally:
        server.close()
