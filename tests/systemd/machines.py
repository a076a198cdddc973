"""Hosts that systemd has booted: containers of systemd-nspawn, each in the network namespace of a `Host`.

A machine's files are those of the image, with what it changes laid over them. All that it leaves when nobody
stops it is found by its lab's name (`tests/cluster/leftovers.py`): its processes are in the lab's network
namespaces, its files and mounts below a directory of that name, its control groups are named after it.
"""

import os
import pty
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

from tests.cluster.hosts import CommandFailed, Host, output_of
from tests.cluster.leftovers import CONTROL_GROUPS, NAMESPACES, Lab
from tests.support.waiting import eventually

BOOT_S = 90.0
"""For what takes ten seconds on a machine that has nothing else to do."""
COMMAND_S = 400.0
"""For any command; the longest, provisioning, takes ten seconds of a core."""
CONSOLE_SHOWN = 3000
_REBOOTS = 133
"""With this nspawn ends when its host is to boot again, and leaves that to whoever runs it (--keep-unit)."""
DEVICES = [f"--bind={device}" for device in ("/dev/fuse", "/dev/autofs") if Path(device).exists()]

_IN_GROUPS = """
group=$1; shift
for hierarchy in $HIERARCHIES; do
    mkdir -p "$hierarchy/$group"
    for file in cpuset.cpus cpuset.mems; do
        [ ! -e "$hierarchy/$group/$file" ] || cat "$hierarchy/$file" >"$hierarchy/$group/$file"
    done
    echo $$ >"$hierarchy/$group/cgroup.procs"
done
exec setpriv --pdeathsig KILL "$@"
"""


def hierarchies() -> list[Path]:
    """Return the roots of this machine's control groups: one for all, or one for each controller."""
    if (CONTROL_GROUPS / "cgroup.controllers").exists():
        return [CONTROL_GROUPS]
    return [path for path in sorted(CONTROL_GROUPS.iterdir()) if (path / "cgroup.procs").exists()]


def unified_hierarchy() -> Path | None:
    """Return the root of the one of version 2, which can freeze; None if there is none."""
    return next((root for root in hierarchies() if (root / "cgroup.controllers").exists()), None)


class Machine:
    """A host under systemd, reached as by somebody at its console."""

    def __init__(self, lab: Lab, host: Host, image: Path, directory: Path, *, immutable: bool = True) -> None:
        """Its files are below *directory*. Not *immutable*: it may not set that flag of files (chattr +i)."""
        self.host = host
        self.name = host.name
        self.root = directory / "root"
        self._image = image
        self._directory = directory
        self._group = f"{lab.name}-{host.name}"
        self._capabilities = [] if immutable else ["--drop-capability=CAP_LINUX_IMMUTABLE"]
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._console: threading.Thread | None = None

    def boot(self) -> None:
        """Begin to boot; `wait_booted` tells when it is done."""
        if not self.root.exists():
            over, work = self._directory / "over", self._directory / "work"
            for path in (self.root, over, work):
                path.mkdir(parents=True)
            layers = f"lowerdir={self._image},upperdir={over},workdir={work}"
            output_of("mount", "-t", "overlay", "-o", layers, "dnpipefs-test", self.root)
        ours, its = pty.openpty()
        network = NAMESPACES / self.host.namespace
        self._nspawn = subprocess.Popen(
            [
                *("bash", "-euc", _IN_GROUPS, "boot", self._group),
                *("systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--directory", self.root),
                *("--machine", self._group, "--hostname", self.name, *DEVICES, *self._capabilities),
                *(f"--network-namespace-path={network}", "--boot"),
            ],
            env={**os.environ, "HIERARCHIES": " ".join(map(str, hierarchies()))},
            stdin=its,
            stdout=its,
            stderr=its,
            start_new_session=True,
        )
        os.close(its)
        self._console = threading.Thread(target=self._keep_console, args=(ours,))
        self._console.start()

    def _keep_console(self, ours: int) -> None:
        with (self._directory / "console").open("ab", buffering=0) as log:
            try:
                while said := os.read(ours, 1 << 16):
                    log.write(said)
            except OSError:  # EIO: nobody has the other end any more
                pass
            finally:
                os.close(ours)

    @property
    def init(self) -> int | None:
        """The pid of its systemd, as seen from here; None if there is none."""
        assert self._nspawn is not None, f"{self.name} was not booted"
        try:
            tasks = list(Path(f"/proc/{self._nspawn.pid}/task").iterdir())
            children = [int(pid) for task in tasks for pid in (task / "children").read_text().split()]
        except OSError:
            return None
        return next((pid for pid in children if _is_init(pid)), None)

    def wait_booted(self) -> None:
        """Wait until systemd has started all that it is to start."""
        try:
            eventually(self._is_booted, within_s=BOOT_S)
        except AssertionError as error:
            raise AssertionError(f"{self.name} does not boot: {error}\n{self.console}") from None

    def _is_booted(self) -> bool:
        assert self._nspawn is not None
        assert self._nspawn.poll() is None, f"nspawn has ended:\n{self.console}"
        if self.init is None:
            return False
        said = self.try_run("systemctl", "is-system-running").stdout.strip()
        return said in ("running", "degraded")

    @property
    def console(self) -> str:
        """The end of what was said there."""
        return (self._directory / "console").read_text(errors="replace")[-CONSOLE_SHOWN:]

    def try_run(self, *command: str | Path, given: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command on it, whatever comes of that."""
        init = self.init
        if init is None:
            return subprocess.CompletedProcess(command, 255, "", f"{self.name} does not run")
        return subprocess.run(
            [
                *("nsenter", "--target", str(init), *["-m", "-u", "-i", "-n", "-p", "-C"]),
                *("env", "-i", "--chdir=/root", "HOME=/root", "LANG=C.UTF-8"),
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                *command,
            ],
            input=given or "",
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )

    def run(self, *command: str | Path, given: str | None = None) -> str:
        """Run a command on it, and return what it prints; CommandFailed if it does not succeed."""
        done = self.try_run(*command, given=given)
        if done.returncode != 0:
            raise CommandFailed(f"{self.name}: {' '.join(map(str, command))}: {done.stderr}{done.stdout}")
        return done.stdout

    def shell(self, script: str) -> str:
        """Type something into a shell of root's on it."""
        return self.run("bash", "-euo", "pipefail", "-c", script)

    def says(self, script: str) -> str:
        """Return what a shell says, errors included, whether it succeeds or not."""
        done = self.try_run("bash", "-c", f"exec 2>&1; {script}")
        return done.stdout

    def reboot(self) -> None:
        """Boot again, in an orderly way."""
        self.run("systemctl", "--no-block", "reboot")
        self.join()
        assert self._nspawn is not None
        assert self._nspawn.returncode == _REBOOTS, self.console
        self.boot()
        self.wait_booted()

    def freeze(self, *, frozen: bool = True) -> None:
        """Let nothing on it run until it is thawed; return once nothing does."""
        unified = unified_hierarchy()
        assert unified is not None
        group = unified / self._group
        (group / "cgroup.freeze").write_text(f"{frozen:d}")
        eventually(lambda: f"frozen {frozen:d}\n" in (group / "cgroup.events").read_text())

    def thaw(self) -> None:
        self.freeze(frozen=False)

    def join(self) -> None:
        """Wait for the end of what was killed."""
        if self._nspawn is not None:
            self._nspawn.wait(timeout=BOOT_S)
        if self._console is not None:
            self._console.join()


def _is_init(pid: int) -> bool:
    """Whether a process is the first one of its container, and systemd by now."""
    status = dict(line.split(":\t", 1) for line in _read(f"/proc/{pid}/status").splitlines() if ":\t" in line)
    return status.get("Name") == "systemd" and status.get("NSpid", "").split()[1:] == ["1"]


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def boot_all(machines: Sequence[Machine]) -> None:
    """Boot side by side."""
    for machine in machines:
        machine.boot()
    for machine in machines:
        machine.wait_booted()
