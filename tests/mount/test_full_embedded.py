"""An embedded etcd that is filled and emptied through mounts takes pushes again by itself."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mount.conftest import complain
from tests.support.checker import Observation, Outcome, Reset
from tests.support.mounts import REPOSITORY, Mount, Mounts
from tests.support.processes import processes_at_home
from tests.support.waiting import eventually
from tests.support.writers import Writer, history, observe, progress, reset, running

QUOTA = 16 << 20
SOON_S = 20.0
"""A look every two seconds, then compaction, defragmentation and the alarm, on a busy machine."""

MakeHost = Callable[[], Mount]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[MakeHost]:
    """Give a function that mounts another user of one small embedded etcd."""
    mounts = Mounts(tmp_path)
    data_dir = tmp_path / "data"

    def make() -> Mount:
        made = mounts.make(endpoints=[], prefix="/dnp/", data_dir=str(data_dir), quota=QUOTA)
        made.start()
        return made

    try:
        with mounts.guarded():
            yield make
            assert not any(mount.stop() for mount in mounts.alive)
    finally:
        mounts.clear()
        for pid in processes_at_home(data_dir):
            os.kill(pid, signal.SIGKILL)
    complain(mounts, [])


def large_writers_on(hosts: list[Mount]) -> list[Writer]:
    return [
        Writer(f"{host.path.parent.name}-large", host.path / "topic", body=b"x" * 60_000) for host in hosts
    ]


def fill(hosts: list[Mount]) -> list[Writer]:
    """Push to the topic on all hosts until etcd is full; return the writers, which have ended."""
    writers = large_writers_on(hosts)
    with running(*writers):
        for writer in writers:
            eventually(lambda writer=writer: len(writer.errors) >= 3)  # type: ignore[misc]
    assert {error.errno for writer in writers for error in writer.errors} == {errno.ENOSPC}
    return writers


def takes_pushes(host: Mount) -> bool:
    try:
        (host.path / "probe").write_bytes(b"probe\n")
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return False
    return True


def observations(hosts: list[Mount]) -> list[Observation]:
    return [observe(host.path.parent.name, host.path / "topic") for host in hosts]


def truncate(host: Mount) -> None:
    os.truncate(host.path / "topic", 0)


def remove(host: Mount) -> None:
    (host.path / "topic").unlink()


@pytest.mark.parametrize("empty", [truncate, remove])
def test_it_takes_pushes_again_by_itself(host: MakeHost, empty: Callable[[Mount], None]) -> None:
    hosts = [host() for _ in range(2)]
    (hosts[0].path / "probe").touch()
    (hosts[0].path / "topic").touch()
    for _ in range(2):
        (hosts[0].path / "topic").touch()
        eventually((hosts[1].path / "topic").exists)
        writers = fill(hosts)
        seen = observations(hosts)
        assert history(writers, seen).check() == [], "reads go on"
        assert seen[0].data == seen[1].data
        empty(hosts[1])
        for each in hosts:
            eventually(lambda each=each: takes_pushes(each), within_s=SOON_S)  # type: ignore[misc]
    logs = [each.log for each in hosts]
    # Twice at least: what was rewritten while it was filled may have made a little room, too.
    idle, keeper = sorted(log.count("etcd has room again") for log in logs)
    assert idle == 0, "one of them keeps it"
    assert keeper >= 2


def test_who_keeps_it_is_killed_while_it_is_emptied(host: MakeHost) -> None:
    first, second = host(), host()
    (first.path / "probe").touch()
    (first.path / "topic").touch()
    eventually((second.path / "topic").exists)
    fill([first, second])
    eventually(lambda: "etcd is full" in first.log)
    truncate(second)
    first.kill()
    eventually(lambda: takes_pushes(second), within_s=SOON_S)  # whoever of the two has made the room


def test_invariant_5_when_it_is_filled_and_emptied_again_and_again(host: MakeHost) -> None:
    """Writers on both hosts never stop; nobody makes room but the upkeep."""
    hosts = [host() for _ in range(2)]
    (hosts[0].path / "topic").touch()
    eventually((hosts[1].path / "topic").exists)
    writers = large_writers_on(hosts)
    resets: list[Reset] = []
    seen: list[Observation] = []
    with running(*writers):
        for _ in range(3):
            full = [len(writer.errors) for writer in writers]
            for writer, errors in zip(writers, full, strict=True):
                eventually(lambda writer=writer, errors=errors: len(writer.errors) > errors)  # type: ignore[misc]
            resets.append(reset(lambda: truncate(hosts[1])))
            progress(writers, 3)
    seen += observations(hosts)
    assert {each.outcome for each in resets} == {Outcome.OK}
    assert {error.errno for writer in writers for error in writer.errors} == {errno.ENOSPC}
    assert history(writers, seen, resets).check() == []


def test_with_short_commands_only(tmp_path: Path, etcd_binary: str) -> None:
    """A reset that cannot leave an order sweeps before it ends; the next command makes the room."""
    data_dir = tmp_path / "data"
    keeper = subprocess.Popen(
        [sys.executable, "-m", "tests.embedded.user", str(data_dir), etcd_binary, str(QUOTA)],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )

    def command(name: str, *arguments: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        line = [sys.executable, "-m", "dnpipefs", name, "--data-dir", str(data_dir), *arguments]
        return subprocess.run(line, input=given, capture_output=True, timeout=60, check=False)

    with keeper:
        assert keeper.stdin is not None
        assert keeper.stdout is not None
        keeper.stdout.readline()
        try:
            for _ in range(2):
                filling = command("push", "topic", given=(b"x" * 60_000 + b"\n") * 1000)
                assert filling.returncode == 1
                assert b"`dnpipefs doctor`" in filling.stderr
                assert command("reset", "topic").returncode == 0
                done = command("push", "topic", "taken")
                assert (done.returncode, done.stderr) == (0, b"")
                assert command("pull", "topic").stdout == b"taken\n"
        finally:
            keeper.stdin.close()
            assert keeper.wait() == 0
