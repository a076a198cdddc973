"""Invariants 1 to 5 of the log while daemons, servers and connections break under it.

A checker knows what every writer was told and compares it with what readers see on all hosts.
"""

import errno
import os
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.mount.conftest import MakeMount
from tests.support.checker import Observation, Outcome
from tests.support.etcd_http import compact, keys_below
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


def test_a_full_etcd_says_so_and_reads_go_on(mount: MakeMount, tmp_path: Path, etcd_binary: str) -> None:
    etcd = EtcdProcess(tmp_path / "small", etcd_binary, arguments=["--quota-backend-bytes", str(2 << 20)])
    try:
        etcd.start()
        hosts = [mount(endpoint=etcd.endpoint) for _ in range(2)]
        topic_of(hosts[0]).touch()
        writers = [
            Writer(f"{host.path.parent.name}-{n}", topic_of(host), body=b"x" * 9000)
            for host in hosts
            for n in range(2)
        ]
        with running(*writers):
            for writer in writers:
                eventually(lambda writer=writer: len(writer.errors) >= 3)  # type: ignore[misc]
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
        etcd.kill()


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
