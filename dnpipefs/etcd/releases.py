"""Releases of etcd with faults that matter to us: said in the log, since nobody reads release notes twice."""

from __future__ import annotations

from typing import Final

RECOMMENDED: Final = "3.5.33 or 3.6.14 and later"


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
