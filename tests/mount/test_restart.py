"""A daemon that dies under open files: what their users see, and the mount that replaces the dead one."""

import errno
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from dnpipefs.errors import SetupError
from dnpipefs.mount import prepare_mountpoint, unmount
from tests.mount.conftest import MakeMount
from tests.support.etcd_process import EtcdProcess
from tests.support.processes import mounts_below
from tests.support.programs import Programs
from tests.support.refusal import refused
from tests.support.waiting import WITHIN_S

NOT_CONNECTED = "Transport endpoint is not connected"


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    """Programs that begin outside of the mounts."""
    programs = Programs(tmp_path)
    try:
        yield programs
    finally:
        programs.clear()


def read_line(program: subprocess.Popen[str]) -> str:
    assert program.stdout is not None
    return program.stdout.readline().removesuffix("\n")


def test_what_open_files_say_of_a_daemon_that_died(mount: MakeMount) -> None:
    host = mount()
    topic = host.path / "topic"
    topic.write_bytes(b"line\n")
    flags = {
        "topic": os.O_RDWR | os.O_APPEND,
        "topic@": os.O_RDONLY,
        "topic@w": os.O_RDONLY,
        ".": os.O_RDONLY,
    }
    files = {name: os.open(host.path / name, how) for name, how in flags.items()}
    try:
        assert os.write(files["topic"], b"more\nheld") == 9
        host.kill()
        for again in (False, True):
            if again:
                host.start()  # files that were open stay dead
            for name in ("topic", "topic@", "topic@w"):
                with refused(errno.ENOTCONN):
                    os.read(files[name], 100)
                with refused(errno.ENOTCONN):
                    os.fstat(files[name])
            with refused(errno.ENOTCONN):
                os.write(files["topic"], b"lost\n")
            with refused(errno.ENOTCONN):
                os.fsync(files["topic"])
            with refused(errno.ENOTCONN):
                os.listdir(files["."])
        with refused(errno.ENOTCONN):
            os.close(files.pop("topic"))
        assert topic.read_bytes() == b"line\nmore\n", "what was acknowledged, and not the part that waited"
    finally:
        for descriptor in files.values():
            with suppress(OSError):
                os.close(descriptor)


def test_who_waits_is_woken_when_the_daemon_dies(mount: MakeMount, programs: Programs) -> None:
    host = mount()
    (host.path / "topic").write_bytes(b"line\n")
    waiting = [programs.reading(["cat", host.path / name]) for name in ("topic@", "topic@w")]
    loop = programs.reading(
        f"while read -r line; do echo $line; done < '{host.path}/topic@v'; echo \"status $?\""
    )
    tail = programs.start(["tail", "-f", host.path / "topic"])
    assert read_line(tail) == "line"
    host.kill()
    for program in waiting:
        printed, _ = program.communicate(timeout=WITHIN_S)
        assert "Software caused connection abort\n" in printed, "the read; what cat does then is refused"
        assert program.returncode == 1
    printed, _ = loop.communicate(timeout=WITHIN_S)
    assert printed.startswith("line\n")
    assert "Software caused connection abort\n" in printed, "bash says so, and takes it for the end"
    assert printed.endswith("status 0\n")
    assert NOT_CONNECTED in tail.communicate(timeout=WITHIN_S)[0]


def test_a_dead_mount_is_replaced_while_it_is_in_use(mount: MakeMount, programs: Programs) -> None:
    host = mount()
    (host.path / "directory").mkdir()
    (host.path / "directory" / "topic").write_bytes(b"line\n")
    resident = programs.start(
        f"cd '{host.path}/directory'; exec 3< topic; echo ready; kill -STOP $$; "
        f"ls; cat <&3; cd '{host.path}/directory' && cat topic"
    )
    assert read_line(resident) == "ready"
    host.kill()
    began = time.monotonic()
    host.start()
    print(f"restart to serving: {time.monotonic() - began:.2f} s")
    assert mounts_below(host.path) == [str(host.path)], "nothing is left of the dead one"
    assert (host.path / "directory" / "topic").read_bytes() == b"line\n"
    os.kill(resident.pid, 18)
    printed, _ = resident.communicate(timeout=WITHIN_S)
    assert f"ls: cannot open directory '.': {NOT_CONNECTED}" in printed, (
        "the old working directory stays dead"
    )
    assert f"cat: -: {NOT_CONNECTED}" in printed, "and what was open"
    assert printed.endswith("\nline\n"), "a new path does not"
    assert resident.returncode == 0


def test_a_dead_mount_is_found_through_a_symbolic_link(mount: MakeMount, tmp_path: Path) -> None:
    host = mount()
    link = tmp_path / "link"
    link.symlink_to(host.path)
    with pytest.raises(SetupError, match="is mounted already"):
        prepare_mountpoint(link)
    host.kill()
    assert prepare_mountpoint(link) == host.path
    unmount(link)
    assert not host.mounted


def test_a_dead_mount_stays_until_the_new_one_can_be_made(mount: MakeMount, own_etcd: EtcdProcess) -> None:
    """So that writers get errors meanwhile, and do not write into the directory below."""
    host = mount(endpoint=own_etcd.endpoint)
    host.kill()
    own_etcd.kill()
    with pytest.raises(AssertionError, match="check that etcd runs"):
        host.start()
    assert host.wait() != 0
    assert host.mounted
    with refused(errno.ENOTCONN):
        (host.path / "topic").write_bytes(b"lost\n")
    own_etcd.start()
    host.start()
    assert os.listdir(host.path) == []


def test_what_the_dead_daemon_had_in_hand_comes_again(mount: MakeMount, programs: Programs) -> None:
    host = mount(session_ttl=2)
    jobs = host.path / "jobs"
    jobs.write_text("1\n2\n3\n")
    holder = programs.start(f"exec 3< '{jobs}@w'; read -r a <&3; read -r b <&3; echo $a $b; kill -STOP $$")
    assert read_line(holder) == "1 2"
    host.kill()
    host.start()
    again = programs.start(["cat", host.path / "jobs@w"])
    taken: list[str] = []
    while not {"2", "3"} <= {*taken}:  # 2 once the dead daemon's lease has run out
        taken.append(read_line(again))
    assert sorted(taken) in (["2", "3"], ["1", "2", "3"]), "1 if its acknowledgement was still on its way"
