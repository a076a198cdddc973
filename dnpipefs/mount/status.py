"""How the mounts of this host are: served, dead, or of a daemon that does not answer.

A daemon tells of itself by an extended attribute of its root directory.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from dnpipefs.errors import SetupError
from dnpipefs.mount.mountpoint import DEAD, answer, ask, mounts, real

ATTRIBUTE: Final = "user.dnp.status"


class State(enum.StrEnum):
    """What there is at a mount point."""

    SERVED = "served"
    DEAD = "dead"
    SILENT = "silent"
    """Its daemon does not answer: it is frozen, or very busy."""
    CLOSED = "closed"
    """Another user's, who lets nobody in, or of a release that tells nothing."""


@dataclass(frozen=True, slots=True)
class MountStatus:
    """A mount, and what its daemon tells."""

    mountpoint: Path
    state: State
    told: dict[str, Any] | None
    """As `dnpipefs.status.status_of` has it; None unless it is served."""

    @property
    def well(self) -> bool:
        """Whether everything works there."""
        return self.told is not None and bool(
            self.told["etcd"]["answers"] and self.told["session"]["healthy"]
        )


def mount_status(mountpoint: Path) -> MountStatus:
    """Ask about one mount. Raises SetupError if there is none."""
    mountpoint = real(mountpoint)
    if mountpoint not in mounts():
        raise SetupError(f"no dnpipefs is mounted on {mountpoint}")
    return statuses([mountpoint])[0]


def statuses(mountpoints: Sequence[Path] | None = None) -> list[MountStatus]:
    """Ask about some mounts, or all of this host, side by side."""
    asked = [
        (mountpoint, ask(mountpoint, ATTRIBUTE))
        for mountpoint in (mounts() if mountpoints is None else mountpoints)
    ]
    return [_status(mountpoint, answer(child)) for mountpoint, child in asked]


def _status(mountpoint: Path, said: bytes | None) -> MountStatus:
    if said is None:
        return MountStatus(mountpoint, State.SILENT, None)
    if not said.startswith(b"{"):
        return MountStatus(mountpoint, State.DEAD if said in DEAD else State.CLOSED, None)
    return MountStatus(mountpoint, State.SERVED, json.loads(said))
