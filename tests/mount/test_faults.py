"""Invariants 1 to 5 of the log while daemons, servers and connections break under it.

A checker knows what every writer was told and compares it with what readers see on all hosts.
"""

import errno
import os
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.mount.conftest import MakeMount
from tests.support.checker import Observation, Outcome, Reset
from tests.support.etcd_http import compact, keys_below, make_room
from tests.support.etcd_process import EtcdProcess
from tests.support.mounts import Mount
from tests.support.proxy_thread import ProxyThread, proxy_thread
from tests.support.refusal import refused
from tests.support.tcp_proxy import Mode
from tests.support.waiting import eventually
from tests.support.writers import (
    Follower,
    Writer,
    history,
    observe,
    observe_at_once,
    progress,
    reset,
    running,
)


@pytest.fixture
def proxy(own_etcd: EtcdProcess) -> Iterator[ProxyThread]:
    with proxy_thread(own_etcd.port) as proxy:
        yield proxy


def topic_of(host: Mount) -> Path:
    return host.path / "topic"


def writers_on(host: Mount, count: int, *, limit: int | None = None) -> list[Writer]:
    name = host.path.parent.name
    return [Writer(f"{name}-{n}", topic_of(host), limit=limit) for n in range(count)]


def observations(hosts: Sequence[Mount]) -> list[Observation]:
    return [observe(host.path.parent.name, topic_of(host)) for host in hosts]


def errors_of(*tasks: Writer | Follower) -> list[OSError]:
    return [error for task in tasks for error in task.errors]


def session_keys(etcd: EtcdProcess, host: Mount) -> list[str]:
    return keys_below(etcd.endpoint, f"{host.prefix}session/")


# Daemons


def test_invariants_1_and_2_when_a_daemon_is_killed_while_writing(mount: MakeMount) -> None:
    dying, other = mount(), mount()
    topic_of(dying).touch()
    victims, others = writers_on(dying, 4), writers_on(other, 2)
    follower = Follower("follower", topic_of(other))
    with running(*victims, *others, follower):
        for _ in range(2):
            progress([*victims, *others], 30)
            errors = [len(writer.errors) for writer in victims]
            dying.kill()
            for writer, before in zip(victims, errors, strict=True):
                eventually(lambda writer=writer, before=before: len(writer.errors) > before)  # type: ignore[misc]
            progress(others, 10)
            dying.start()  # clears the dead mount
            progress([*victims, *others], 30)
    found = history([*victims, *others], [*observations([dying, other]), follower.observed()])
    assert found.check() == []
    assert found.count(Outcome.UNKNOWN), "the daemon died while it had something in hand"
    assert errors_of(*others) == []


def test_invariant_1_when_the_session_is_lost(mount: MakeMount, own_etcd: EtcdProcess) -> None:
    frozen, other = (mount(endpoint=own_etcd.endpoint, session_ttl=2) for _ in range(2))
    topic_of(frozen).touch()
    writers = [*writers_on(frozen, 3), *writers_on(other, 1)]
    with running(*writers):
        for _ in range(2):
            progress(writers, 20)
            frozen.pause()
            eventually(lambda: len(session_keys(own_etcd, frozen)) == 1)
            frozen.resume()
            progress(writers, 20)
    assert "was lost: its lease ran out" in frozen.log
    assert errors_of(*writers) == []
    assert history(writers, observations([frozen, other])).check() == []


def test_invariant_1_when_the_session_is_lost_before_an_answer_comes(
    mount: MakeMount, own_etcd: EtcdProcess, proxy: ProxyThread
) -> None:
    host = mount(endpoint=proxy.endpoint, session_ttl=2)
    topic_of(host).touch()
    writers = writers_on(host, 2)
    with running(*writers):
        for _ in range(2):
            progress(writers, 20)
            proxy.become(Mode.SWALLOW_ANSWERS)
            proxy.wait_swallowed()  # of an append or its event: it was applied
            proxy.become(Mode.REFUSE)
            eventually(lambda: not session_keys(own_etcd, host))
            proxy.become(Mode.PASS)
            progress(writers, 20)
    assert errors_of(*writers) == []
    assert history(writers, observations([host])).check() == []


# etcd


def test_invariant_1_when_etcd_is_killed_and_restarted(mount: MakeMount, own_etcd: EtcdProcess) -> None:
    hosts = [mount(endpoint=own_etcd.endpoint) for _ in range(2)]
    topic_of(hosts[0]).touch()
    writers = [writer for host in hosts for writer in writers_on(host, 2)]
    followers = [Follower(f"follower{n}", topic_of(host)) for n, host in enumerate(hosts)]
    with running(*writers, *followers):
        for _ in range(3):
            progress(writers, 30)
            own_etcd.kill()
            own_etcd.start()
        progress(writers, 30)
    assert errors_of(*writers, *followers) == [], "it goes on by itself"
    seen = [follower.observed() for follower in followers]
    assert history(writers, [*observations(hosts), *seen]).check() == []
    assert all(follower.data for follower in followers)


def test_invariant_2_when_etcd_does_not_answer_in_time(mount: MakeMount, own_etcd: EtcdProcess) -> None:
    hosts = [mount(endpoint=own_etcd.endpoint, op_timeout=1.0) for _ in range(2)]
    topic_of(hosts[0]).touch()
    writers = [writer for host in hosts for writer in writers_on(host, 2)]
    with running(*writers):
        progress(writers, 30)
        own_etcd.pause()
        for writer in writers:
            eventually(lambda writer=writer: len(writer.errors) >= 2)  # type: ignore[misc]
        with refused(errno.ETIMEDOUT):
            topic_of(hosts[0]).read_bytes()
        with refused(errno.ETIMEDOUT):
            (hosts[0].path / "other").touch()
        own_etcd.resume()
        progress(writers, 30)
    assert {error.errno for writer in writers for error in writer.errors} == {errno.ETIMEDOUT}
    found = history(writers, observations(hosts))
    assert found.check() == []
    assert found.count(Outcome.UNKNOWN) >= 4


def test_views_live_on_through_compaction(
    mount: MakeMount, own_etcd: EtcdProcess, proxy: ProxyThread
) -> None:
    near, far = mount(endpoint=own_etcd.endpoint), mount(endpoint=proxy.endpoint)
    topic_of(near).touch()
    writers = writers_on(near, 2)
    follower = Follower("follower", topic_of(far))
    with running(*writers, follower):
        progress(writers, 20)
        eventually(lambda: follower.data)
        proxy.become(Mode.REFUSE)
        progress(writers, 20)
        compact(own_etcd.endpoint)
        progress(writers, 20)
        proxy.become(Mode.PASS)
        before = len(follower.data)
        eventually(lambda: len(follower.data) > before + 1000)
        for _ in range(5):  # and under a watch that has nothing to catch up with
            compact(own_etcd.endpoint)
            progress(writers, 20)
    assert "compacted; taking a new snapshot" in far.log
    assert errors_of(*writers, follower) == []
    assert history(writers, [*observations([near, far]), follower.observed()]).check() == []


@pytest.fixture
def small_etcd(tmp_path: Path, etcd_binary: str) -> Iterator[EtcdProcess]:
    etcd = EtcdProcess(tmp_path / "small", etcd_binary, arguments=["--quota-backend-bytes", str(2 << 20)])
    try:
        etcd.start()
        yield etcd
    finally:
        etcd.kill()


def large_writers_on(hosts: Sequence[Mount]) -> list[Writer]:
    return [
        Writer(f"{host.path.parent.name}-large{n}", topic_of(host), body=b"x" * 9000)
        for host in hosts
        for n in range(2)
    ]


def fill(hosts: Sequence[Mount]) -> list[Writer]:
    """Push to the topic on all hosts until etcd is full; return the writers, which have ended."""
    writers = large_writers_on(hosts)
    with running(*writers):
        for writer in writers:
            eventually(lambda writer=writer: len(writer.errors) >= 3)  # type: ignore[misc]
    return writers


def test_a_full_etcd_says_so_and_reads_go_on(mount: MakeMount, small_etcd: EtcdProcess) -> None:
    etcd = small_etcd
    hosts = [mount(endpoint=etcd.endpoint) for _ in range(2)]
    try:
        topic_of(hosts[0]).touch()
        writers = fill(hosts)
        assert {error.errno for writer in writers for error in writer.errors} == {errno.ENOSPC}
        found = history(writers, observations(hosts))
        assert found.check() == []
        assert found.count(Outcome.OK) > 50
        with refused(errno.ENOSPC):
            (hosts[0].path / "directory").mkdir()
        assert os.listdir(hosts[1].path) == ["topic"]
        hosts.append(mount(endpoint=etcd.endpoint))  # gets no session: etcd has no room for one
        assert topic_of(hosts[2]).read_bytes() == topic_of(hosts[0]).read_bytes()
        with refused(errno.ENOSPC):
            topic_of(hosts[2]).write_bytes(b"line\n")
        assert [host.alive for host in hosts] == [True, True, True]
    finally:
        for host in hosts:
            host.clear()


def test_a_full_etcd_is_emptied_through_the_mount(mount: MakeMount, small_etcd: EtcdProcess) -> None:
    """Invariants 1, 2 and 5 for a reset that only deletes and the generation after it."""
    hosts = [mount(endpoint=small_etcd.endpoint) for _ in range(2)]
    here, there = (host.path for host in hosts)
    fds: dict[str, int] = {}
    try:
        topic_of(hosts[0]).touch()
        for name in ("deleted", "both"):
            (here / name).write_bytes(b"old\n")
        (here / "directory").mkdir()
        fds |= {name: os.open(there / name, os.O_RDWR) for name in ("topic", "deleted", "both")}
        before = fill(hosts)
        resets = [reset(lambda: os.truncate(here / "topic", 0))]
        assert resets[0].outcome is Outcome.OK, hosts[0].log
        seen = observations(hosts)
        assert [each.data for each in seen] == [b"", b""], "at once, also on the other host"
        assert (here / "topic").stat().st_size == 0
        eventually(lambda: (there / "topic").stat().st_size == 0)
        eventually(lambda: os.pread(fds["topic"], 100, 0) == b"")
        os.truncate(here / "topic", 0)  # once more: nothing is there
        for host in hosts:
            with refused(errno.ENOSPC):
                topic_of(host).write_bytes(b"line\n")

        (here / "deleted").unlink()
        assert not (here / "deleted").exists()
        eventually(lambda: not (there / "deleted").exists())
        with refused(errno.ESTALE):
            eventually(lambda: os.pread(fds["deleted"], 100, 0) == b"")
        os.truncate(there / "both", 0)
        with refused(errno.ENOSPC):
            os.write(fds["both"], b"would begin the next generation\n")
        (here / "both").unlink()
        with refused(errno.ESTALE):
            eventually(lambda: os.pread(fds["both"], 100, 0) == b"never")
        (here / "directory").rmdir()
        assert os.listdir(here) == ["topic"]
        eventually(lambda: os.listdir(there) == ["topic"])
        with refused(errno.ENOSPC):
            (here / "topic").rename(here / "renamed")
        eventually(lambda: not keys_below(small_etcd.endpoint, f"{hosts[0].prefix}tail/"))
        hosts.append(mount(endpoint=small_etcd.endpoint))
        assert topic_of(hosts[2]).read_bytes() == b""

        make_room(small_etcd.endpoint)
        with refused(errno.ESTALE):
            os.write(fds["both"], b"must not bring it back\n")
        assert keys_below(small_etcd.endpoint, f"{hosts[0].prefix}epoch/") == []
        after = [writer for host in hosts for writer in writers_on(host, 2)]
        with running(*after):
            progress(after, 20)
        assert errors_of(*after) == []
        seen += observations(hosts)
        assert os.pread(fds["topic"], 1 << 20, 0) == seen[-1].data
        assert history([*before, *after], seen, resets).check() == []
    finally:
        for fd in fds.values():
            os.close(fd)
        for host in hosts:
            host.clear()


def test_invariant_5_when_a_full_etcd_is_emptied_again_and_again(
    mount: MakeMount, small_etcd: EtcdProcess
) -> None:
    """Writers on both hosts never stop; both hosts reset at once; then there is room again."""
    hosts = [mount(endpoint=small_etcd.endpoint) for _ in range(2)]
    try:
        topic_of(hosts[0]).touch()
        writers = large_writers_on(hosts)
        resets: list[Reset] = []
        seen: list[Observation] = []
        with running(*writers), ThreadPoolExecutor() as pool:
            for _ in range(4):
                full = [len(writer.errors) for writer in writers]
                for writer, errors in zip(writers, full, strict=True):
                    eventually(lambda writer=writer, errors=errors: len(writer.errors) > errors)  # type: ignore[misc]
                resets += pool.map(lambda host: reset(lambda: os.truncate(topic_of(host), 0)), hosts)
                seen += observations(hosts)
                eventually(lambda: not keys_below(small_etcd.endpoint, f"{hosts[0].prefix}tail/"))
                make_room(small_etcd.endpoint)
                progress(writers, 10)
                seen += observations(hosts)
        seen += observations(hosts)
        assert {each.outcome for each in resets} == {Outcome.OK}
        assert {error.errno for writer in writers for error in writer.errors} == {errno.ENOSPC}
        assert history(writers, seen, resets).check() == []
        assert [host.log.count("is reset by deletions only") > 0 for host in hosts].count(True) >= 1
    finally:
        for host in hosts:
            host.clear()


# Connections


def lose_answers(proxy: ProxyThread) -> None:
    proxy.become(Mode.SWALLOW_ANSWERS)
    proxy.wait_swallowed()
    proxy.heal()


def cut(proxy: ProxyThread) -> None:
    proxy.drop()


@pytest.mark.parametrize("harm", [lose_answers, cut])
def test_invariant_1_when_connections_break_at_random(
    mount: MakeMount, own_etcd: EtcdProcess, proxy: ProxyThread, harm: Callable[[ProxyThread], None]
) -> None:
    harmed, other = mount(endpoint=proxy.endpoint), mount(endpoint=own_etcd.endpoint)
    topic_of(harmed).touch()
    writers = [*writers_on(harmed, 4, limit=400), *writers_on(other, 1, limit=400)]
    follower = Follower("follower", topic_of(harmed))
    moments = random.Random(6)
    with running(*writers, follower):
        while any(writer.ok < 400 for writer in writers[:4]):
            now = sum(writer.ok for writer in writers[:4])
            wanted = min(now + moments.randrange(1, 120), 1600)
            eventually(lambda wanted=wanted: sum(w.ok for w in writers[:4]) >= wanted)  # type: ignore[misc]
            harm(proxy)
        eventually(lambda: writers[4].ok == 400)
    assert errors_of(*writers, follower) == []
    assert history(writers, [*observations([harmed, other]), follower.observed()]).check() == []


# Resets


def test_invariant_5_when_resets_race_with_writers(mount: MakeMount) -> None:
    hosts = [mount() for _ in range(2)]
    topic_of(hosts[0]).touch()
    writers = [writer for host in hosts for writer in writers_on(host, 2)]
    resets, seen = [], []
    with running(*writers):
        for n in range(20):
            progress(writers, 3)
            host = hosts[n % 2]
            resets.append(reset(lambda host=host: os.truncate(topic_of(host), 0)))  # type: ignore[misc]
            seen += [observe_at_once(host.path.parent.name, topic_of(host)) for host in hosts]
    seen += [observe_at_once(host.path.parent.name, topic_of(host)) for host in hosts]
    found = history(writers, seen, resets)
    assert found.check() == []
    assert seen[-1].data == seen[-2].data != b""
    assert [host.log.count("taking a new snapshot") for host in hosts] == [0, 0]
    assert {push.outcome for push in found.pushes} == {Outcome.OK}
    assert {each.outcome for each in resets} == {Outcome.OK}
