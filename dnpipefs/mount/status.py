"""How the mounts of this host are: served, dead, or of a daemon that does not answer.

A daemon tells of itself by an extended attribute of its root directory. It is asked by another process:
whoever asks a daemon that does not answer hangs in the kernel, even when killed.
"""

from __future__ import annotations

import enum
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from dnpipefs.errors import SetupError
from dnpipefs.mount.mountpoint import DEAD, mounts, real

ATTRIBUTE: Final = "user.dnp.status"
ANSWER_S: Final = 5.0
"""How long a daemon has to answer."""
_ASK: Final = """if True:
    import os, sys
    try:
        sys.stdout.buffer.write(os.getxattr(sys.argv[1], sys.argv[2]))
    except OSError as error:
        sys.stdout.write(str(error.errno))
"""


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
        (mountpoint, _ask(mountpoint)) for mountpoint in (mounts() if mountpoints is None else mountpoints)
    ]
    return [_answer(mountpoint, child) for mountpoint, child in asked]


def _ask(mountpoint: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-I", "-S", "-c", _ASK, str(mountpoint), ATTRIBUTE]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, cwd="/")


def _answer(mountpoint: Path, child: subprocess.Popen[bytes]) -> MountStatus:
    try:
        said, _ = child.communicate(timeout=ANSWER_S)
    except subprocess.TimeoutExpired:
        child.kill()  # takes effect when the daemon answers or ends, so it is not waited for
        child.returncode = 0
        assert child.stdout is not None  # noqa: S101 - it is a pipe
        child.stdout.close()
        return MountStatus(mountpoint, State.SILENT, None)
    if not said.startswith(b"{"):
        dead = said.isdigit() and int(said) in DEAD  # else it could not even ask
        return MountStatus(mountpoint, State.DEAD if dead else State.CLOSED, None)
    return MountStatus(mountpoint, State.SERVED, json.loads(said))
