"""The embedded etcd: one server per data directory, shared by every process that names the directory.

This module owns the server process, its socket, its locks and its restart. It knows nothing of keys,
of RPCs or of gRPC: whoever enters `embedded_server` gets an endpoint and opens a client on it.

Reach. The server listens on Unix sockets inside the data directory only, and that directory is mode
0700, so no other user of the machine (root aside) can connect. etcd 3.4 refuses ``unix:///absolute``
and wants ``host:port``, so the URL is the relative ``unix://client.sock:0``, which 3.4, 3.5 and 3.6 take
as a file of that name in their working directory: the data directory.

Who does what is settled by two lock files (``flock``, so a killed process holds nothing):

1. ``users.lock`` is held shared by every user from before the server is needed until after.
2. ``start.lock`` is held exclusively while the server is looked for, started, or stopped.
   So at most one server is ever started, and none is stopped that a user is about to adopt.
3. The user that can turn its ``users.lock`` exclusive while holding ``start.lock`` is the last: it stops
   the server. If all users were killed the server goes on, and the next user adopts it.
4. The server is nobody's child: it is reparented at its start, survives any user, and is watched by all
   of them through a pidfd. The first to get ``start.lock`` after its death restarts it.
5. A process is taken for our server only if its start time is the recorded one and its working directory
   *is* the data directory, so a pid that was given to another process since is never signalled.
"""

import fcntl
import json
import logging
import os
import platform
import re
import select
import shutil
import signal
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path

import trio

from dnpipefs.errors import SetupError
from dnpipefs.etcd.file_lock import try_lock
from dnpipefs.etcd.http import HttpFailed, http_get
from dnpipefs.etcd.patience import Patience

DEFAULT_QUOTA_BYTES = 8 * 1024**3
"""Size of etcd's database before it answers "no space": the largest that etcd's makers recommend."""

KEPT_REVISIONS = 100_000
"""History etcd keeps, in revisions; it compacts to this every five minutes.

By count, not by age: this bounds what etcd keeps in memory of it, some 200 bytes a revision. How many bytes
of history there are on disk is bounded by `upkeep.py`. A reader that is further behind takes a new snapshot.
"""

SNAPSHOT_COUNT = 10_000
"""Raft entries between snapshots, as in etcd 3.6; older ones hold 100,000 in memory, each up to 1 MiB."""

HEARTBEAT_MS = 50
"""Raft's tick; a member elects itself after five. Half of etcd's default, with a quarter of its election
timeout: a start takes 0.15 s instead of 0.6 s, and a single member has nobody to disagree with."""

START_TIMEOUT_S = 60.0
"""How long a server that does nothing may take to answer after its start (see `patience.py`), and how long a
user waits for another one that starts it."""

LEAVE_TIMEOUT_S = 15.0
"""How long a leaving user waits for the start lock before it leaves the stopping to the others."""

STOP_TIMEOUT_S = 10.0
"""Time between SIGTERM and SIGKILL."""

RESTART_BACKOFF_S = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Pauses before the first, second, … restart in a row; the last one repeats."""

STABLE_AFTER_S = 60.0
"""A server that lived this long has recovered: the next restart is a first one again."""

LOG_LIMIT_BYTES = 8 * 1024**2
"""A log above this is moved to ``etcd.log.1`` at the next start of the server."""

_POLL_S = (0.002, 0.1)  # first and largest pause between two looks at a lock or at a starting server
_ANSWER_TIMEOUT_S = 2.0
_ANSWER_LIMIT_BYTES = 64 * 1024

_CLIENT_SOCKET = "client.sock:0"
_PEER_SOCKET = "peer.sock:0"
_SUN_PATH_BYTES = 107  # sockaddr_un without its terminating NUL
# gRPC parses a target as a URI, so other characters would need escapes that versions treat differently.
_PLAIN_PATH = re.compile(r"[A-Za-z0-9/._:+=,@~-]+")

# The shell writes the pid file, not the caller: it lives on if the caller is killed at this very moment,
# so a server that runs always has its pid on record. Beside the pid, the process's start time (field 22).
_SPAWN = """
umask 077
"$@" </dev/null >>etcd.log 2>&1 &
set -- $(cat "/proc/$!/stat")
echo "$1 ${22}" >etcd.pid.new && mv etcd.pid.new etcd.pid
"""


def _private(path: str, flags: int) -> int:
    """Open a file that only its owner can read if this is what creates it."""
    return os.open(path, flags, 0o600)


class EmbeddedServer:
    """A running embedded server, as one of its users sees it."""

    def __init__(self, endpoint: str, data_dir: Path) -> None:
        self.endpoint = endpoint
        """gRPC target of the server. Valid in this process, inside the context; the same after a restart."""
        self.data_dir = data_dir
        self.pid = 0
        """Process id; changes when the server is restarted."""
        self.version = ""
        """Release of the server, such as ``3.4.23``."""


@asynccontextmanager
async def embedded_server(
    data_dir: Path,
    *,
    binary: str = "etcd",
    quota_bytes: int = DEFAULT_QUOTA_BYTES,
    log: logging.Logger,
) -> AsyncIterator[EmbeddedServer]:
    """Use the etcd of `data_dir`: start it if it does not run, keep it running, stop it if last to leave.

    Enter after forking, not before: the locks belong to open files, which a fork shares. `quota_bytes`
    and `binary` count for the process that happens to start the server.

    Raises `SetupError` when there is no `binary`, the directory is not usable by this user alone, or the
    server does not come up. A server that dies later does not raise: it is logged and restarted, and
    clients see a lost connection meanwhile.
    """
    program = _find_program(binary)
    directory = _prepare_directory(data_dir)
    with ExitStack() as stack:
        membership = stack.enter_context(_opened(directory))
        command = [program, *_arguments(quota_bytes)]
        server = EmbeddedServer(membership.endpoint(), directory)
        keeper = _Keeper(membership, command, server, log)
        async with membership.starting(START_TIMEOUT_S):
            membership.register()
        try:
            await keeper.ensure_running()
            async with _background(keeper.supervise):
                yield server
        finally:
            with trio.CancelScope(shield=True):
                await keeper.leave()


@contextmanager
def running_endpoint(data_dir: Path) -> Iterator[str | None]:
    """Give the endpoint of the etcd of `data_dir` if there is one, for a look and no more.

    Starts nothing, makes nothing, and keeps nothing running: the server may stop at any time.
    """
    with ExitStack() as stack:
        try:
            directory = os.open(data_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, directory)
            os.stat(_CLIENT_SOCKET, dir_fd=directory)
        except OSError:  # never used, not used now, or another user's
            yield None
        else:
            yield _endpoint(data_dir.resolve(), directory)


def _find_program(binary: str) -> str:
    program = shutil.which(binary)
    if program is None:
        missing = "no etcd server found: " + (
            "" if binary == "etcd" else f"{binary} is not an executable file; "
        )
        raise SetupError(
            missing + "install it (Debian/Ubuntu: apt-get install etcd-server) or pass --endpoints"
        )
    return str(Path(program).absolute())


def _prepare_directory(data_dir: Path) -> Path:
    """Create `data_dir` if missing and refuse one that others could reach. Returns its absolute path."""
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory = data_dir.resolve()
        status = directory.stat()
        if status.st_uid != os.geteuid():
            raise SetupError(
                f"data directory {directory} belongs to uid {status.st_uid}, not to you "
                f"(uid {os.geteuid()}): choose another with --data-dir"
            )
        if stat.S_IMODE(status.st_mode) & 0o077:
            if any(directory.iterdir()):
                raise SetupError(
                    f"data directory {directory} is open to other users: chmod 700 it, "
                    "or choose another with --data-dir"
                )
            directory.chmod(0o700)
    except OSError as error:
        raise _unusable(data_dir, error) from error
    return directory


def _arguments(quota_bytes: int) -> list[str]:
    client, peer = f"unix://{_CLIENT_SOCKET}", f"unix://{_PEER_SOCKET}"
    return [
        *("--name", "dnpipefs", "--data-dir", "etcd"),
        *("--listen-client-urls", client, "--advertise-client-urls", client),
        *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
        *("--initial-cluster", f"dnpipefs={peer}"),
        *("--quota-backend-bytes", str(quota_bytes), "--snapshot-count", str(SNAPSHOT_COUNT)),
        *("--auto-compaction-mode", "revision", "--auto-compaction-retention", str(KEPT_REVISIONS)),
        *("--heartbeat-interval", str(HEARTBEAT_MS), "--election-timeout", str(5 * HEARTBEAT_MS)),
        "--enable-grpc-gateway=false",
        "--logger=zap",
    ]


def _environment() -> dict[str, str]:
    """Our environment without etcd's own variables, which would change what the flags say."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}
    if platform.machine() == "aarch64":
        kept["ETCD_UNSUPPORTED_ARCH"] = "arm64"  # 3.4 refuses to start there otherwise
    return kept


@contextmanager
def _opened(directory: Path) -> "Iterator[_Membership]":
    """Open the directory and its lock files; closing them releases every lock that is still held."""
    flags = {
        ".": os.O_RDONLY | os.O_DIRECTORY,
        "users.lock": os.O_RDWR | os.O_CREAT,
        "start.lock": os.O_RDWR | os.O_CREAT,
    }
    with ExitStack() as stack:
        fds = []
        for name, how in flags.items():
            try:
                fd = os.open(directory / name, how | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise _unusable(directory, error) from error
            stack.callback(os.close, fd)
            fds.append(fd)
        yield _Membership(directory, *fds)


def _unusable(directory: Path, error: OSError) -> SetupError:
    return SetupError(
        f"data directory {directory} is not usable ({error.strerror}): choose another with --data-dir"
    )


@asynccontextmanager
async def _background(task: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Run `task` beside the body and cancel it after; the body's exception leaves as it is, in no group."""
    # Shielded, so that a cancellation from outside ends the body alone and the group below has one member.
    scope = trio.CancelScope(shield=True)

    async def run() -> None:
        with scope:
            await task()

    failure: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            try:
                yield
            finally:
                scope.cancel()
    except BaseExceptionGroup as group:  # raised below, alone
        if len(group.exceptions) > 1:
            raise
        failure = group.exceptions[0]
    if failure is not None:  # outside the handler: it would become its own context's member
        raise failure


def _socket(directory_fd: int) -> str:
    """Return the client socket by way of the open directory: short however deep the directory lies."""
    return f"/proc/self/fd/{directory_fd}/{_CLIENT_SOCKET}"


def _endpoint(directory: Path, directory_fd: int) -> str:
    """Return the socket's path where it fits a socket address and a URI, else the way through /proc."""
    path = str(directory / _CLIENT_SOCKET)
    plain = len(path) <= _SUN_PATH_BYTES and _PLAIN_PATH.fullmatch(path)
    return f"unix:{path if plain else _socket(directory_fd)}"


_EINVAL = 22
"""What Linux says of a pid that can be no process: 0, or a thread's."""


class _Membership:
    """This user's hold on the directory: its lock files and its way to the socket."""

    def __init__(self, directory: Path, directory_fd: int, users_fd: int, start_fd: int) -> None:
        self.directory = directory
        self._directory_fd = directory_fd
        self._users_fd = users_fd
        self._start_fd = start_fd

    @property
    def socket(self) -> str:
        """The client socket by way of the open directory."""
        return _socket(self._directory_fd)

    def endpoint(self) -> str:
        """The client socket for gRPC."""
        return _endpoint(self.directory, self._directory_fd)

    @asynccontextmanager
    async def starting(self, timeout_s: float) -> AsyncIterator[None]:
        """Hold ``start.lock``. Raises `SetupError` when another process keeps it longer than `timeout_s`."""
        with trio.move_on_after(timeout_s) as scope:
            for pause in _pauses():
                if try_lock(self._start_fd, fcntl.LOCK_EX):
                    break
                await trio.sleep(pause)
        if scope.cancelled_caught:
            raise SetupError(
                f"another process has been starting or stopping the etcd of {self.directory} "
                f"for {timeout_s:g} s: see {self.directory / 'etcd.log'}"
            )
        try:
            yield
        finally:
            fcntl.flock(self._start_fd, fcntl.LOCK_UN)

    def register(self) -> None:
        """Become a user. Call with ``start.lock`` held: then nobody can hold the lock exclusively."""
        if not try_lock(self._users_fd, fcntl.LOCK_SH):
            raise SetupError(f"{self.directory / 'users.lock'} is locked by a foreign program: end it")

    def is_last(self) -> bool:
        """Whether no other user is registered. Call with ``start.lock`` held. Ends the own registration."""
        return try_lock(self._users_fd, fcntl.LOCK_EX)

    def resign(self) -> None:
        """Stop being a user."""
        fcntl.flock(self._users_fd, fcntl.LOCK_UN)

    def find_process(self) -> tuple[int, int] | None:
        """Pid and an open pidfd of the living server, or None. The caller closes the pidfd."""
        try:
            pid, start_time = (int(field) for field in (self.directory / "etcd.pid").read_text().split())
            pidfd = os.pidfd_open(pid)
        except (FileNotFoundError, ValueError, OverflowError, ProcessLookupError):
            return None
        except OSError as error:  # to have no descriptors left says nothing of the server
            if error.errno != _EINVAL:
                raise
            return None
        # The identity is read between opening the pidfd and seeing it alive, so it is that process's own.
        if self._is_server(pid, start_time) and not _has_exited(pidfd):
            return pid, pidfd
        os.close(pidfd)
        return None

    def _is_server(self, pid: int, start_time: int) -> bool:
        """Whether `pid` is what was started here; its command line would not do, it is empty during exec."""
        try:
            after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            at_home = os.path.samestat(os.stat(f"/proc/{pid}/cwd"), os.fstat(self._directory_fd))
        except OSError:  # gone, or another user's
            return False
        return at_home and int(after_name[22 - 3]) == start_time


class _Keeper:
    """Starts, watches, restarts and stops the server on behalf of one user."""

    def __init__(
        self, membership: _Membership, command: list[str], server: EmbeddedServer, log: logging.Logger
    ) -> None:
        self._membership = membership
        self._directory = membership.directory
        self._command = command
        self._server = server
        self._log = log
        self._pidfd = -1

    async def ensure_running(self) -> None:
        """Adopt the running server or start one; returns when it answers. Raises `SetupError`."""
        async with self._membership.starting(START_TIMEOUT_S):
            how, log_offset = "adopted", 0
            found = self._membership.find_process()
            if found is None:
                how, log_offset = "started", await self._spawn()
                found = self._membership.find_process()
            if found is None:
                raise self._start_failure("exited at once", log_offset)
            self._forget()
            self._server.pid, self._pidfd = found
            await self._until_ready(log_offset)
        self._log.info(
            "%s etcd %s (pid %d) in %s", how, self._server.version, self._server.pid, self._directory
        )

    async def supervise(self) -> None:
        """Wait for the server's death and bring it back, until cancelled."""
        failures = 0
        while True:
            born = trio.current_time()
            if self._pidfd >= 0:
                await trio.lowlevel.wait_readable(self._pidfd)
                self._log.warning(
                    "etcd (pid %d) died, restarting it; its last words: %s",
                    self._server.pid,
                    _last_words(self._directory / "etcd.log", 0),
                )
                self._forget()
                if trio.current_time() - born >= STABLE_AFTER_S:
                    failures = 0
            await trio.sleep(RESTART_BACKOFF_S[min(failures, len(RESTART_BACKOFF_S) - 1)])
            failures += 1
            try:
                await self.ensure_running()
            except SetupError as error:
                self._forget()
                self._log.error("etcd does not come back, trying again: %s", error)

    async def leave(self) -> None:
        """Stop being a user, and stop the server if there is no other. Takes a bounded time."""
        try:
            async with self._membership.starting(LEAVE_TIMEOUT_S):
                if self._membership.is_last():
                    await self._stop()
                self._membership.resign()
        except SetupError as error:
            # Whoever holds the lock is a user too and will stop the server in its turn.
            self._log.warning("left the etcd of %s running: %s", self._directory, error)
        finally:
            self._forget()

    async def _stop(self) -> None:
        if self._pidfd < 0 or _has_exited(self._pidfd):
            self._forget()
            self._server.pid, self._pidfd = self._membership.find_process() or (0, -1)
        if self._pidfd >= 0:
            await self._end(self._server.pid, self._pidfd)
        for name in ("etcd.pid", _CLIENT_SOCKET, _PEER_SOCKET):
            (self._directory / name).unlink(missing_ok=True)

    async def _end(self, pid: int, pidfd: int) -> None:
        for signum in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signum)
            with trio.move_on_after(STOP_TIMEOUT_S):
                await trio.lowlevel.wait_readable(pidfd)
                self._log.info("stopped etcd (pid %d) in %s", pid, self._directory)
                return
        self._log.error("etcd (pid %d) in %s does not die from SIGKILL", pid, self._directory)

    async def _spawn(self) -> int:
        """Start the server. Returns the byte in the log where its lines begin."""
        if await _answers_connect(self._membership.socket):
            raise SetupError(
                f"the etcd of {self._directory} is served by a process not to be seen from here "
                "(another container?): end it, or choose another --data-dir"
            )
        try:
            for name in (_CLIENT_SOCKET, _PEER_SOCKET):  # left by a killed server; 3.4 does not replace them
                (self._directory / name).unlink(missing_ok=True)
            log_offset = self._begin_log()
            with trio.CancelScope(shield=True):  # a millisecond; half a start would be hard to undo
                await trio.run_process(
                    ["/bin/sh", "-c", _SPAWN, "sh", *self._command],
                    cwd=self._directory,
                    env=_environment(),
                    start_new_session=True,  # a Ctrl-C in a user's terminal is not for the server
                    check=False,  # without a pid file the server counts as not started, which is reported
                )
        except OSError as error:
            raise _unusable(self._directory, error) from error
        return log_offset

    def _begin_log(self) -> int:
        path = self._directory / "etcd.log"
        with suppress(FileNotFoundError):
            if path.stat().st_size > LOG_LIMIT_BYTES:
                path.rename(path.with_suffix(".log.1"))
        with open(path, "a", opener=_private) as file:
            file.write(f"-- dnpipefs starts {self._command[0]}\n")
            return file.tell()

    async def _until_ready(self, log_offset: int) -> None:
        pid = self._server.pid
        patience = Patience(pid, START_TIMEOUT_S, trio.current_time())
        for pause in _pauses():
            version = await _ask_version(self._membership.socket)
            if version is not None:
                self._server.version = version
                return
            if _has_exited(self._pidfd):
                raise self._start_failure("exited at once", log_offset)
            now = trio.current_time()
            waited_s = patience.waited_s(now)
            if patience.ends(now):
                raise self._start_failure(f"(pid {pid}) does not answer after {waited_s:.0f} s", log_offset)
            if patience.is_word_due(now):
                self._log.warning(
                    "etcd (pid %d) in %s has been starting for %.0f s: a large database takes minutes",
                    *(pid, self._directory, waited_s),
                )
            await trio.sleep(pause)

    def _start_failure(self, what: str, log_offset: int) -> SetupError:
        log_path = self._directory / "etcd.log"
        return SetupError(f"etcd {what}; its last words in {log_path}: {_last_words(log_path, log_offset)}")

    def _forget(self) -> None:
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


async def _ask_version(socket: str) -> str | None:
    """Ask the server for its release; None while it is not ready.

    ``/version`` and not ``/health``: the latter says no while the space alarm is on, when reads and resets
    still work. The port answers nothing before the server takes part in its cluster, and refuses RPCs
    until the cluster's version is decided.
    """
    connect = partial(trio.open_unix_socket, socket)
    with trio.move_on_after(_ANSWER_TIMEOUT_S), suppress(HttpFailed):
        return _parse_version(
            await http_get(connect, "/version", host="localhost", limit_bytes=_ANSWER_LIMIT_BYTES)
        )
    return None


def _parse_version(document: bytes) -> str | None:
    try:
        versions = json.loads(document)
        decided = versions["etcdcluster"] != "not_decided"
        return str(versions["etcdserver"]) if decided else None
    except (ValueError, KeyError, TypeError):
        return None


async def _answers_connect(socket: str) -> bool:
    try:
        with trio.move_on_after(_ANSWER_TIMEOUT_S):
            await (await trio.open_unix_socket(socket)).aclose()
    except OSError:
        return False
    return True


def _last_words(path: Path, offset: int) -> str:
    """Return the most telling of the last lines a server wrote to the log from byte `offset` on."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(offset, end - _ANSWER_LIMIT_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError as error:
        return f"(no log: {error.strerror})"
    lines = [line for line in lines if line.strip()]
    for line in reversed(lines):
        if line.startswith("panic: "):
            return line
        with suppress(ValueError, TypeError, AttributeError):
            entry = json.loads(line)
            if entry.get("level") in ("error", "fatal", "panic"):
                return ": ".join(str(entry[key]) for key in ("msg", "error") if key in entry)
    return lines[-1] if lines else "(none)"


def _has_exited(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def _pauses() -> Iterator[float]:
    """Pauses in seconds that double from the first to the largest, without end."""
    pause, largest = _POLL_S
    while True:
        yield pause
        pause = min(2 * pause, largest)
