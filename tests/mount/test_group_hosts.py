"""Groups whose workers are on several hosts, some of which end in the midst of it, on real mounts."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.mount.conftest import Hosts, MakeMount
from tests.support.etcd_process import EtcdProcess
from tests.support.onlooker import Onlooker
from tests.support.programs import Programs, readers
from tests.support.waiting import WITHIN_S, eventually

LOOP = "while read -r j; do [ $j = end ] && break; echo $j; done < jobs@w"


def push(topic: Path, *messages: object) -> None:
    topic.write_text("".join(f"{message}\n" for message in messages))


@contextmanager
def programs_in(*directories: Path) -> Iterator[list[Programs]]:
    all_of_them = [Programs(directory) for directory in directories]
    try:
        yield all_of_them
    finally:
        for programs in all_of_them:
            programs.clear()


def outputs(workers: list[subprocess.Popen[str]]) -> list[list[int]]:
    """Wait for workers, and return what numbers each of them has printed."""
    return [[int(word) for word in worker.communicate(timeout=40)[0].split()] for worker in workers]


def test_two_hosts_process_everything_once(hosts: Hosts, onlooker: Onlooker) -> None:
    push(hosts.here / "jobs", *range(400), *["end"] * 4)
    with programs_in(hosts.here, hosts.there) as both:
        workers = [programs.start(LOOP) for programs in (*both, *both)]
        done = outputs(workers)
    assert sorted(number for one in done for number in one) == list(range(400))
    assert all(one == sorted(one) for one in done), "in the group messages start in order"
    assert onlooker.leftovers(hosts.here / "jobs@w") == []


def test_two_equally_fast_hosts_share_evenly(hosts: Hosts, onlooker: Onlooker) -> None:
    """Each message takes the workers a millisecond, and all are there when the messages come."""
    loop = LOOP.replace("echo $j", "echo $j; /bin/true")
    push(hosts.here / "jobs")
    with programs_in(hosts.here, hosts.there) as both:
        workers = [programs.reading(loop) for programs in (*both, *both)]
        push(hosts.here / "jobs", *range(400), *["end"] * 4)
        done = outputs(workers)
    shares = [len(done[0]) + len(done[2]), len(done[1]) + len(done[3])]
    assert sum(shares) == 400
    assert min(shares) >= 140, shares
    assert onlooker.leftovers(hosts.here / "jobs@w") == []


def test_a_slow_worker_holds_only_what_it_has_in_hand(hosts: Hosts, onlooker: Onlooker) -> None:
    push(hosts.here / "jobs", *range(300))
    slow = os.open(hosts.there / "jobs@w", os.O_RDONLY)
    try:
        assert os.read(slow, 100) == b"0\n"
        with programs_in(hosts.here) as [programs]:
            workers = [programs.start(["cat", "jobs@w"]) for _ in range(3)]
            eventually(lambda: onlooker.lag(hosts.here / "jobs@w") == 1)
            for worker in workers:
                worker.terminate()
            done = [int(word) for worker in workers for word in worker.communicate(timeout=20)[0].split()]
            assert sorted(done) == list(range(1, 300))
    finally:
        os.close(slow)
    assert onlooker.leftovers(hosts.here / "jobs@w") == []


def test_what_a_killed_host_had_in_hand_is_delivered_elsewhere(
    mount: MakeMount, shared_etcd: EtcdProcess
) -> None:
    doomed, other = mount(session_ttl=2), mount(session_ttl=2)
    push(other.path / "jobs", *range(6))
    hands = [os.open(doomed.path / "jobs@w", os.O_RDONLY) for _ in range(3)]
    try:
        assert [os.read(hand, 100) for hand in hands] == [b"0\n", b"1\n", b"2\n"]
        assert os.read(hands[0], 100) == b"3\n", "which acknowledges 0"
        with Onlooker(shared_etcd.endpoint, other.prefix) as onlooker:
            eventually(lambda: onlooker.lag(other.path / "jobs@w") == 5)
            doomed.kill()
            # What it had claimed and handed to nobody as well.
            assert sorted(onlooker.leftovers(other.path / "jobs@w")) == ["1", "2", "3", "4", "5"]
    finally:
        for hand in hands:
            with suppress(OSError):  # of a mount without a daemon
                os.close(hand)


def test_a_waiting_worker_gets_what_a_killed_host_had(mount: MakeMount) -> None:
    doomed, other = mount(session_ttl=2), mount(session_ttl=2)
    push(other.path / "jobs", "one")
    with programs_in(doomed.path.parent, other.path) as [there, here]:
        first = there.start("exec 3< mnt/jobs@w; read -r j <&3; echo $j; kill -STOP $$")
        assert first.stdout is not None
        assert first.stdout.readline() == "one\n"
        second = here.reading(["head", "-n", "1", "jobs@w"])
        doomed.kill()
        assert second.communicate(timeout=WITHIN_S)[0] == "one\n"


@pytest.mark.parametrize("view", ["jobs@w", "jobs@"])
def test_an_unmount_ends_those_who_wait(mount: MakeMount, view: str) -> None:
    host = mount()
    push(host.path / "jobs")
    with programs_in(host.path.parent) as [programs]:
        worker = programs.reading(["cat", f"mnt/{view}"])
        assert host.stop() == 0
        # It calls again after EINTR, and finds nothing there.
        assert "Transport endpoint is not connected" in worker.communicate(timeout=WITHIN_S)[0]
        assert worker.returncode == 1
        assert not host.mounted


def test_what_is_in_hand_at_an_unmount_comes_again(mount: MakeMount, shared_etcd: EtcdProcess) -> None:
    host, other = mount(), mount()
    push(host.path / "jobs", 1, 2, 3)
    script = """if True:
        import os, sys
        file = os.open("mnt/jobs@w", os.O_RDONLY)
        os.read(file, 100), os.read(file, 100)
        print("ready", flush=True)
        sys.stdin.read()
    """
    holder = subprocess.Popen(
        [sys.executable, "-I", "-c", script],
        cwd=host.path.parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder, Onlooker(shared_etcd.endpoint, host.prefix) as onlooker:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "ready\n"
            eventually(lambda: onlooker.lag(other.path / "jobs@w") == 2)
            assert host.stop() == 0
            assert sorted(onlooker.leftovers(other.path / "jobs@w")) == ["2", "3"]
        finally:
            holder.send_signal(signal.SIGKILL)


def test_a_worker_that_waits_on_one_host_hears_of_pushes_on_the_other(hosts: Hosts) -> None:
    push(hosts.here / "jobs")
    with programs_in(hosts.there) as [programs]:
        worker = programs.reading(["head", "-n", "1", "jobs@w"])
        assert readers(worker.pid)
        push(hosts.here / "jobs", "hello")
        assert worker.communicate(timeout=WITHIN_S)[0] == "hello\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a PID namespace")
def test_a_worker_whose_end_the_daemon_cannot_see_gives_back(
    mount: MakeMount, shared_etcd: EtcdProcess
) -> None:
    """The daemon is in a PID namespace of its own, so to it nobody outside has a number."""
    host, other = mount(start=False), mount()
    host.wrapper = ("unshare", "--pid", "--fork", "--kill-child")
    host.start()
    push(other.path / "jobs", 1, 2, 3)
    with programs_in(host.path) as [programs], Onlooker(shared_etcd.endpoint, host.prefix) as onlooker:
        script = "exec 3< jobs@w; read -r j <&3; read -r j <&3; echo $j; exit 0"
        assert programs.run(script) == ["2"]
        assert sorted(onlooker.leftovers(other.path / "jobs@w")) == ["2", "3"], "its next read counts"
        worker = programs.reading(["cat", "jobs@w"])
        worker.terminate()
        assert worker.wait(WITHIN_S) == -signal.SIGTERM
