"""etcd's releases: which one a server is of, and which have faults that matter to us.

The faults are said in the log, since nobody reads release notes twice.
"""

from __future__ import annotations

import json
from typing import Final

from dnpipefs.etcd.endpoint import Address
from dnpipefs.etcd.http import HttpFailed, HttpSide

RECOMMENDED: Final = "3.5.33 or 3.6.14 and later"

VERSION_LIMIT_BYTES: Final = 4096
"""More than a server has to say about its version, head included."""


async def ask_release(http: HttpSide, address: Address) -> str:
    """Return the release of the server at `address`, such as ``3.5.30``; empty where it does not tell.

    For those to whom etcd refuses its status, which has it, too.
    """
    try:
        document = await http.get(address, "/version", limit_bytes=VERSION_LIMIT_BYTES)
        return str(json.loads(document)["etcdserver"])
    except (HttpFailed, ValueError, KeyError, TypeError):
        return ""


def known_fault(version: str) -> str | None:
    """Return what is wrong with a release of etcd such as ``3.5.1``; None if nothing is known.

    A version that does not parse is nobody's known release.
    """
    try:
        major, minor, patch = (int(part) for part in version.partition("-")[0].split("."))
    except ValueError:
        return None
    if (major, minor) == (3, 5) and patch <= 2:
        return f"etcd {version} can lose writes when it crashes (data corruption of 3.5.0 to 3.5.2)"
    if (major, minor) == (3, 4) and patch < 42:
        return f"etcd {version} can drop watch events and grow inconsistent in rare cases (3.4 before 3.4.42)"
    if (major, minor) < (3, 4):
        return f"etcd {version} is older than 3.4, the oldest release that is supported"
    return None
