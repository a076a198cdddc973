"""The embedded server, with a real etcd: its life, its sharing between processes, its faults."""

import errno
import fcntl
import logging
import os
import shutil
import signal
import stat
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import pytest
import trio

from dnpipefs.errors import SetupError
from dnpipefs.etcd import patience
from dnpipefs.etcd import server as module
from dnpipefs.etcd.proto import rpc_pb2 as rpc
from dnpipefs.etcd.server import embedded_server
from tests.embedded.conftest import (
    Enter,
    Lines,
    OpenUser,
    call,
    exited,
    get,
    put,
)
from tests.support.processes import processes_at_home


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file as a foreign process would."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class TestLife:
    async def test_starts_answers_and_stops(self, enter: Enter, data_dir: Path) -> None:
        async with enter() as server:
            await put(server, b"k", b"v")
            assert await get(server, b"k") == [b"v"]
            assert processes_at_home(data_dir) == [server.pid]
            assert server.version.startswith("3.")
        assert await exited(server.pid)
        assert sorted(path.name for path in data_dir.iterdir()) == [
            *("etcd", "etcd.log", "start.lock", "users.lock")
        ]

    async def test_data_survives_a_restart(self, enter: Enter) -> None:
        async with enter() as server:
            await put(server, b"k", b"v")
        async with enter() as server:
            assert await get(server, b"k") == [b"v"]

    async def test_nobody_else_reaches_it(self, enter: Enter, data_dir: Path) -> None:
        async with enter() as server:
            assert stat.S_IMODE(data_dir.stat().st_mode) == 0o700
            assert server.endpoint.startswith("unix:")
            own = [os.readlink(fd) for fd in Path(f"/proc/{server.pid}/fd").iterdir()]
            inodes = {name.removeprefix("socket:[").removesuffix("]") for name in own if "socket" in name}
            for table in ("tcp", "tcp6", "udp", "udp6"):
                rows = Path(f"/proc/{server.pid}/net/{table}").read_text().splitlines()[1:]
                assert not [row for row in rows if row.split()[9] in inodes], f"etcd has a {table} socket"

    async def test_inherits_no_descriptors(self, enter: Enter) -> None:
        async with enter() as server:
            names = [os.readlink(fd) for fd in Path(f"/proc/{server.pid}/fd").iterdir()]
            own = {os.readlink(f"/proc/self/fd/{fd}") for fd in (1, 2)} - {"/dev/null"}
        assert not [name for name in names if name.endswith((".lock", "/data")) or name in own]

    async def test_a_terminals_signals_do_not_reach_it(self, enter: Enter) -> None:
        async with enter() as server:
            assert os.getsid(server.pid) != os.getsid(0)
            assert os.getpgid(server.pid) != os.getpgid(0)

    async def test_ignores_etcds_environment(self, enter: Enter, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ETCD_CONFIG_FILE", "/nonexistent")
        async with enter() as server:
            assert await get(server, b"k") == []

    async def test_deep_and_odd_directories(
        self, tmp_path: Path, etcd_binary: str, log: logging.Logger
    ) -> None:
        """A socket address has 108 bytes and gRPC parses targets as URIs; neither limits the directory."""
        for directory in (tmp_path / ("d" * 150), tmp_path / "a b%41?#"):
            async with embedded_server(directory, binary=etcd_binary, log=log) as server:
                assert await get(server, b"k") == []

    async def test_starts_with_the_space_alarm_on(self, enter: Enter) -> None:
        alarm = rpc.AlarmRequest(action=rpc.AlarmRequest.ACTIVATE, alarm=rpc.NOSPACE)
        async with enter() as server:
            status = await call(server, "Maintenance/Status", rpc.StatusRequest(), rpc.StatusResponse)
            alarm.memberID = status.header.member_id
            await call(server, "Maintenance/Alarm", alarm, rpc.AlarmResponse)
        async with enter() as server:
            assert await get(server, b"k") == []

    async def test_a_large_log_is_moved_away(
        self, enter: Enter, data_dir: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "LOG_LIMIT_BYTES", 100)
        async with enter():
            pass
        async with enter():
            assert (data_dir / "etcd.log.1").stat().st_size > 100

    async def test_an_error_of_the_body_leaves_as_it_is(self, enter: Enter) -> None:
        with pytest.raises(KeyError, match="mine"):
            async with enter():
                raise KeyError("mine")

    async def test_stops_when_cancelled(self, enter: Enter) -> None:
        with trio.CancelScope() as scope:
            async with enter() as server:
                scope.cancel()
                await trio.sleep_forever()
        assert await exited(server.pid)

    @pytest.mark.parametrize("after_s", [0, 0.01, 0.05])
    async def test_a_cancelled_start_leaves_nothing(
        self, enter: Enter, data_dir: Path, after_s: float
    ) -> None:
        with trio.move_on_after(after_s) as scope:
            async with enter():
                await trio.sleep_forever()
        assert scope.cancelled_caught
        assert processes_at_home(data_dir) == []

    async def test_a_server_that_does_not_stop_is_killed(
        self, enter: Enter, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "STOP_TIMEOUT_S", 0.1)
        async with enter() as server:
            os.kill(server.pid, signal.SIGSTOP)
        assert await exited(server.pid)


class TestSharing:
    async def test_two_processes_use_one_server(self, enter: Enter, open_user: OpenUser) -> None:
        async with open_user() as user:
            first = await user.server_pid()
            async with enter() as server:
                assert server.pid == first
                await user.leave()  # it started the server, and goes
                assert await get(server, b"k") == []
                assert server.pid == first
        assert await exited(first)

    async def test_the_last_out_stops_it(self, enter: Enter, open_user: OpenUser) -> None:
        async with open_user() as user:
            async with enter() as server:
                assert await user.server_pid() == server.pid
            assert await trio.to_thread.run_sync(Path(f"/proc/{server.pid}/cwd").exists)
            await user.leave()
        assert await exited(server.pid)

    async def test_many_starting_at_once_get_one_server(self, open_user: OpenUser) -> None:
        async with AsyncExitStack() as stack:
            users = [await stack.enter_async_context(open_user()) for _ in range(5)]
            pids = {await user.server_pid() for user in users}
            assert len(pids) == 1
            async with trio.open_nursery() as nursery:
                for user in users:
                    nursery.start_soon(user.leave)
        assert await exited(pids.pop())

    async def test_a_killed_users_server_is_adopted_and_stopped(
        self, enter: Enter, open_user: OpenUser, lines: Lines
    ) -> None:
        async with open_user() as user:
            orphan = await user.server_pid()
            await user.kill()
        async with enter() as server:
            assert server.pid == orphan
            assert lines.count("adopted etcd") == 1
        assert await exited(orphan)

    async def test_a_foreign_process_of_the_recorded_pid_is_left_alone(
        self, enter: Enter, data_dir: Path
    ) -> None:
        data_dir.mkdir(mode=0o700)
        (data_dir / "etcd.pid").write_text(f"{os.getpid()} 1\n")
        async with enter() as server:
            assert server.pid != os.getpid()

    @pytest.mark.parametrize("pid", [0, -1, 2**31, 2**70])
    async def test_a_recorded_pid_that_cannot_be_is_no_server(
        self, enter: Enter, data_dir: Path, pid: int
    ) -> None:
        data_dir.mkdir(mode=0o700)
        (data_dir / "etcd.pid").write_text(f"{pid} 1\n")
        async with enter() as server:
            assert server.pid != pid

    @pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
    async def test_who_has_no_descriptors_left_does_not_start_another_server(
        self, enter: Enter, data_dir: Path, monkeypatch: pytest.MonkeyPatch, number: int
    ) -> None:
        def fail(pid: int) -> int:
            raise OSError(number, os.strerror(number))

        data_dir.mkdir(mode=0o700)
        (data_dir / "etcd.pid").write_text(f"{os.getpid()} 1\n")
        monkeypatch.setattr(os, "pidfd_open", fail)
        with pytest.raises(OSError, match=os.strerror(number)):
            await enter().__aenter__()

    async def test_a_server_without_record_is_not_started_twice(self, enter: Enter, data_dir: Path) -> None:
        async with enter() as server:
            (data_dir / "etcd.pid").unlink()
            with pytest.raises(SetupError, match="not to be seen from here"):
                await enter().__aenter__()
            assert await get(server, b"k") == []

    async def test_a_start_that_hangs_elsewhere_is_reported(
        self, enter: Enter, data_dir: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "START_TIMEOUT_S", 0.05)
        data_dir.mkdir(mode=0o700)
        with locked(data_dir / "start.lock"), pytest.raises(SetupError, match="another process has been"):
            await enter().__aenter__()

    async def test_leaving_takes_a_bounded_time(
        self, enter: Enter, data_dir: Path, lines: Lines, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "LEAVE_TIMEOUT_S", 0.05)
        async with AsyncExitStack() as stack:
            server = await stack.enter_async_context(enter())
            with locked(data_dir / "start.lock"):
                await stack.aclose()
        assert lines.count("left the etcd") == 1
        async with enter() as again:
            assert again.pid == server.pid


class TestSupervision:
    async def test_a_killed_server_comes_back_with_its_data(self, enter: Enter, lines: Lines) -> None:
        async with enter() as server:
            await put(server, b"k", b"v")
            killed, endpoint = server.pid, server.endpoint
            os.kill(killed, signal.SIGKILL)
            assert await exited(killed), "until then it may still take connections, and break them"
            assert await get(server, b"k") == [b"v"]
            assert server.pid != killed
            assert server.endpoint == endpoint
            assert lines.count("died, restarting it") == 1

    async def test_exactly_one_user_restarts_it(self, enter: Enter, lines: Lines, data_dir: Path) -> None:
        async with AsyncExitStack() as stack:
            servers = [await stack.enter_async_context(enter()) for _ in range(3)]
            lines.lines.clear()
            os.kill(servers[0].pid, signal.SIGKILL)
            await lines.until("adopted etcd", 2)
            assert lines.count("started etcd") == 1
            assert [server.pid for server in servers] == processes_at_home(data_dir) * 3

    async def test_the_one_left_restarts_it(self, enter: Enter, open_user: OpenUser) -> None:
        async with open_user() as user:
            first = await user.server_pid()
            async with enter() as server:
                await user.kill()
                os.kill(first, signal.SIGKILL)
                assert await exited(first)
                assert await get(server, b"k") == []
                assert server.pid != first

    async def test_it_keeps_trying_and_recovers(
        self, data_dir: Path, tmp_path: Path, etcd_binary: str, log: logging.Logger, lines: Lines,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        monkeypatch.setattr(module, "RESTART_BACKOFF_S", (0.0, 0.001))
        link = tmp_path / "server"
        link.symlink_to(module._find_program(etcd_binary))
        good = link.readlink()

        def relink(target: Path) -> None:
            link.unlink()
            link.symlink_to(target)

        async with embedded_server(data_dir, binary=str(link), log=log) as server:
            relink(Path("/bin/false"))
            os.kill(server.pid, signal.SIGKILL)
            await lines.until("does not come back", 3)
            relink(good)
            await lines.until("started etcd", 2)
            assert await get(server, b"k") == []


class TestRefusals:
    async def test_no_binary(
        self, data_dir: Path, log: logging.Logger, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PATH", "")
        with pytest.raises(SetupError, match=r"apt-get install etcd-server\) or pass --endpoints"):
            await embedded_server(data_dir, log=log).__aenter__()
        with pytest.raises(SetupError, match="/no/etcd is not an executable file"):
            await embedded_server(data_dir, binary="/no/etcd", log=log).__aenter__()

    async def test_a_directory_that_cannot_be_made(self, enter: Enter, data_dir: Path) -> None:
        data_dir.touch()
        with pytest.raises(SetupError, match=r"not usable .*--data-dir"):
            await enter().__aenter__()

    async def test_a_directory_of_somebody_else(
        self, enter: Enter, data_dir: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data_dir.mkdir(mode=0o700)
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        with pytest.raises(SetupError, match="belongs to uid"):
            await enter().__aenter__()

    async def test_a_directory_open_to_others(self, enter: Enter, data_dir: Path) -> None:
        data_dir.mkdir()
        data_dir.chmod(0o755)
        async with enter():
            assert stat.S_IMODE(data_dir.stat().st_mode) == 0o700, "an empty one is closed"
        data_dir.chmod(0o755)
        with pytest.raises(SetupError, match="chmod 700"):
            await enter().__aenter__()

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    async def test_a_directory_without_write_permission(self, enter: Enter, data_dir: Path) -> None:
        data_dir.mkdir(mode=0o500)
        with pytest.raises(SetupError, match="not usable"):
            await enter().__aenter__()

    async def test_a_server_that_exits_at_once(self, enter: Enter, data_dir: Path) -> None:
        (data_dir / "etcd").mkdir(parents=True, mode=0o700)
        data_dir.chmod(0o700)
        (data_dir / "etcd" / "member").write_text("not a directory")
        with pytest.raises(SetupError, match=r"exited at once; its last words in .*member") as caught:
            await enter().__aenter__()
        assert "\n" not in str(caught.value)

    async def test_a_server_that_does_not_answer(
        self, enter: Enter, open_user: OpenUser, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "START_TIMEOUT_S", 0.2)
        async with open_user() as user:
            pid = await user.server_pid()
            os.kill(pid, signal.SIGSTOP)
            with pytest.raises(SetupError, match=rf"\(pid {pid}\) does not answer after"):
                await enter().__aenter__()
            os.kill(pid, signal.SIGCONT)
            await user.leave()

    async def test_a_server_that_works_is_waited_for(
        self, enter: Enter, data_dir: Path, tmp_path: Path, lines: Lines, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As it does with a large database. This one works until it was told that it takes long."""
        monkeypatch.setattr(module, "START_TIMEOUT_S", 0.3)
        monkeypatch.setattr(patience, "WORK_S", 0.02)
        monkeypatch.setattr(patience, "WORD_AFTER_S", 1.0)
        real = shutil.which("etcd")
        slow = tmp_path / "slow"
        slow.write_text(f'#!/bin/sh\nwhile [ ! -e told ]; do :; done\nexec {real} "$@"\n')
        slow.chmod(0o755)

        async def tell() -> None:
            await lines.until("has been starting for")
            (data_dir / "told").touch()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(tell)
            async with enter(binary=str(slow)) as server:
                assert server.version.startswith("3.")


def test_an_undecided_cluster_is_not_ready() -> None:
    parse = module._parse_version
    assert parse(b'{"etcdserver":"3.4.23","etcdcluster":"3.4.0"}') == "3.4.23"
    assert parse(b'{"etcdserver":"3.4.23","etcdcluster":"not_decided"}') is None
    assert parse(b"[") is None
    assert parse(b"") is None


def test_the_last_words_are_the_telling_ones(tmp_path: Path) -> None:
    path = tmp_path / "etcd.log"
    fatal = '{"level":"fatal","msg":"discovery failed","error":"no space left"}\n'
    path.write_text(fatal + '{"level":"info","msg":"bye"}\n')
    assert module._last_words(path, 0) == "discovery failed: no space left"
    assert module._last_words(path, len(fatal)) == '{"level":"info","msg":"bye"}'
    path.write_text("panic: boom\n\ngoroutine 1\n")
    assert module._last_words(path, 0) == "panic: boom"
    assert module._last_words(path, 1000) == "(none)"
    assert module._last_words(tmp_path / "missing", 0).startswith("(no log")
