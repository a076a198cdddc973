"""Addresses to listen at, as users write them."""

from __future__ import annotations

from dataclasses import dataclass

from dnpipefs.errors import InvalidArgument


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """Where to listen."""

    host: str
    """Empty: everywhere."""
    port: int

    @classmethod
    def parse(cls, text: str) -> ListenAddress:
        """Take in such as ``127.0.0.1:9469``, ``[::1]:9469`` or ``:9469``. Raises InvalidArgument."""
        host, colon, port = text.rpartition(":")
        bare = host.removeprefix("[").removesuffix("]")
        possible = colon and port.isascii() and port.isdigit() and int(port) < 1 << 16
        if not possible or (":" in bare and bare == host):
            raise InvalidArgument("an address and a port are needed, such as 127.0.0.1:9469 or [::1]:9469")
        return cls(bare, int(port))

    def __str__(self) -> str:
        """Return it as users write it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
