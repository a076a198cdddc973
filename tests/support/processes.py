"""Finding what a test session leaves behind: its processes, its mounts, its temporary files.

A daemon is reparented and a server detaches, so children alone would miss them; the environment is inherited
by all. `MARK` is set once a session, and whatever carries its value was started by that session.
"""

import os
import select
import signal
import subprocess
from pathlib import Path

MARK = "DNPIPEFS_TEST_SESSION"

EXIT_GRACE_S = 5.0
"""How long a process that is about to end may take after the last test."""


def marked_processes(value: str) -> dict[int, str]:
    """Return pid and command line of every living process of the session `value`, this one excluded."""
    wanted = f"{MARK}={value}".encode()
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        try:
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                found[int(entry.name)] = describe(int(entry.name))
        except OSError:  # gone meanwhile, or another user's
            continue
    return found


def describe(pid: int) -> str:
    """Return the command line of `pid`."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()


def has_exited(pid: int, within_s: float) -> bool:
    """Wait until process `pid`, of whatever parent, has ended; False when it has not in time."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        return bool(poll.poll(within_s * 1000))
    finally:
        os.close(pidfd)


def processes_at_home(directory: Path) -> list[int]:
    """Return the pids of the processes that work in `directory`, as its server does."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and os.path.samefile(entry / "cwd", directory):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def mounts_below(directory: Path) -> list[str]:
    """Return the mount points at or below `directory`, deepest first."""
    points = []
    for line in Path("/proc/self/mounts").read_text().splitlines():
        point = line.split()[1].encode().decode("unicode_escape")
        if Path(point).is_relative_to(directory):
            points.append(point)
    return sorted(points, key=len, reverse=True)


def clean_up(value: str, directory: Path) -> list[str]:
    """End the mounts below `directory` and the processes of session `value`; say what there was to end."""
    leaks = []
    for point in mounts_below(directory):
        leaks.append(f"mount {point}")
        subprocess.run(["fusermount3", "-u", "-z", point], check=False)
    for pid, command in marked_processes(value).items():
        if not has_exited(pid, EXIT_GRACE_S):
            leaks.append(f"process {pid}: {command}")
            os.kill(pid, signal.SIGKILL)
    return leaks
