"""What a cluster leaves when nobody stops it: found by name, and ended.

Everything of a lab carries its name, which begins with pid and start time of the process that owns it:
namespaces, a directory below which all is mounted, control groups. So whatever has the name of a process that
is gone is garbage, also after SIGKILL. Two look for it: a guardian, which waits for the owner's end, and
whoever makes the next lab, should the guardian have been killed, too.

    python -m tests.cluster.leftovers NAME      be lab NAME's guardian: standard input is the owner's pipe
"""

import itertools
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.support.processes import has_exited

NAMESPACES = Path("/run/netns")
CONTROL_GROUPS = Path("/sys/fs/cgroup")
REPOSITORY = Path(__file__).parents[2]
_NAME = re.compile(r"dnptest-(?P<pid>\d+)-(?P<start>\d+)-\d+")
_numbers = itertools.count()


@dataclass(frozen=True)
class Lab:
    """All that carries one name."""

    name: str

    @property
    def abandoned(self) -> bool:
        """Whether the process that it belongs to is gone."""
        named = _NAME.fullmatch(self.name)
        assert named is not None, self.name
        return _start_time(int(named["pid"])) != named["start"]

    def namespaces(self) -> list[str]:
        with suppress(FileNotFoundError):
            return [entry.name for entry in NAMESPACES.iterdir() if entry.name.startswith(f"{self.name}-")]
        return []

    def processes(self) -> list[int]:
        """Return the pids of all processes in its namespaces."""
        found = []
        for namespace in self.namespaces():
            told = subprocess.run(
                ["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False
            )
            found += [int(pid) for pid in told.stdout.split()]
        return found

    def mounts(self) -> list[str]:
        """Return what is mounted below a directory of its name, deepest first."""
        points = [
            line.split()[1].encode().decode("unicode_escape")
            for line in Path("/proc/self/mounts").read_text().splitlines()
        ]
        return sorted((point for point in points if self.name in Path(point).parts), key=len, reverse=True)

    def control_groups(self) -> list[Path]:
        """Return its control groups, deepest first."""
        named = [
            top
            for pattern in (self.name, f"{self.name}-*")
            for top in (*CONTROL_GROUPS.glob(pattern), *CONTROL_GROUPS.glob(f"*/{pattern}"))
        ]
        below = [path for top in named for path in top.rglob("*") if path.is_dir()]
        return sorted({*named, *below}, key=lambda path: len(path.parts), reverse=True)

    def clear(self) -> None:
        """End its processes, mounts, namespaces and control groups, whatever state they are in."""
        processes = self.processes()
        for pid in processes:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        # Who waits for a mount ends when what serves the mount has; so nothing is unmounted before.
        for pid in processes:
            has_exited(pid, within_s=5)
            for file in leftovers_of_faketime(pid):
                file.unlink(missing_ok=True)
        for point in self.mounts():
            subprocess.run(["umount", "--lazy", point], check=False, capture_output=True)
        for namespace in self.namespaces():
            subprocess.run(["ip", "netns", "delete", namespace], check=False, capture_output=True)
        for group in self.control_groups():
            with suppress(OSError):
                group.rmdir()


def leftovers_of_faketime(pid: int) -> list[Path]:
    """Return where a process under libfaketime keeps its offset; only an orderly exit removes it."""
    return [Path(f"/dev/shm/{name}_{pid}") for name in ("faketime_shm", "sem.faketime_sem")]  # noqa: S108


def own_lab() -> Lab:
    """Return another lab of this process."""
    return Lab(f"dnptest-{os.getpid()}-{_start_time(os.getpid())}-{next(_numbers)}")


def clear_abandoned() -> list[str]:
    """End what is left of processes that are gone; return the names of their labs."""
    mounted = Path("/proc/self/mounts").read_text()
    known = [entry.name for entry in NAMESPACES.iterdir()] if NAMESPACES.exists() else []
    grouped = [entry.name for entry in CONTROL_GROUPS.glob("*/dnptest-*")]
    names = {named[0] for text in (mounted, *known, *grouped) for named in _NAME.finditer(text)}
    labs = [Lab(name) for name in sorted(names)]
    found = [lab for lab in labs if lab.abandoned]
    for lab in found:
        lab.clear()
    return [lab.name for lab in found]


@contextmanager
def guarded(lab: Lab) -> Iterator[None]:
    """Clear a lab after the block, also if this process does not live to its end."""
    guardian = subprocess.Popen(
        [sys.executable, "-m", "tests.cluster.leftovers", lab.name],
        stdin=subprocess.PIPE,
        cwd=REPOSITORY,
        start_new_session=True,  # Ctrl-C is not for it
    )
    try:
        yield
    finally:
        lab.clear()
        guardian.communicate()


def _start_time(pid: int) -> str | None:
    """Return when a process began, which tells it from another of its pid."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None


if __name__ == "__main__":
    sys.stdin.buffer.read()
    Lab(sys.argv[1]).clear()
