"""`--read-stale`: what readers get while etcd does not answer, and that they get nothing stale otherwise.

That a mount without it never does is tested with the outages themselves, in `test_no_quorum`.
"""

import errno
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dnpipefs.mount import State, mount_status
from tests.mount.conftest import MakeMount
from tests.support.etcd_process import EtcdProcess
from tests.support.mounts import Mount
from tests.support.outage import OUTAGES, Outage, outage
from tests.support.proxy_thread import ProxyThread, proxy_thread
from tests.support.refusal import refused
from tests.support.tcp_proxy import Mode
from tests.support.waiting import eventually

GOES_ON_S = 40.0
BEGINS = "from now on readers get what this host has, which may be stale"
ENDS = "readers get nothing stale any more"
OP_TIMEOUT_S = 30.0


@pytest.fixture(params=OUTAGES)
def etcd(request: pytest.FixtureRequest, tmp_path: Path, etcd_binary: str) -> Iterator[Outage]:
    with outage(request.param, tmp_path, etcd_binary) as made:
        yield made


@pytest.fixture
def proxy(own_etcd: EtcdProcess) -> Iterator[ProxyThread]:
    with proxy_thread(own_etcd.port) as proxy:
        yield proxy


def at_once(operation: Callable[[], Any]) -> Any:
    """Do what does not wait until the operation's time is up."""
    began = time.monotonic()
    result = operation()
    assert time.monotonic() - began < OP_TIMEOUT_S / 2
    return result


def told(host: Mount) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(os.getxattr(host.path, "user.dnp.status"))
    return found


def stale(host: Mount) -> bool:
    return told(host)["stale_since"] is not None


def test_readers_get_what_the_host_has_and_writers_wait(mount: MakeMount, etcd: Outage) -> None:
    host = mount(endpoint=etcd.endpoint, op_timeout=OP_TIMEOUT_S, read_stale=True)
    topic = host.path / "topic"
    topic.write_bytes(b"line\n")
    (host.path / "directory").mkdir()
    with topic.open("rb", buffering=0) as reader:
        assert reader.read(100) == b"line\n"
        assert not stale(host)
        etcd.begin()
        assert at_once(lambda: reader.read(100)) == b"", "an end of file as this host has it"
        assert stale(host)
        for _ in range(3):
            assert at_once(topic.read_bytes) == b"line\n"
            assert at_once(lambda: sorted(os.listdir(host.path))) == ["directory", "topic"]
            assert at_once(topic.stat).st_size == len(b"line\n")
            with refused(errno.ENOENT):
                at_once((host.path / "missing").stat)
        assert host.log.count(BEGINS) == 1
        etcd.end()
        eventually(lambda: not stale(host), within_s=GOES_ON_S)
        assert host.log.count(ENDS) == 1
        topic.write_bytes(b"more\n")
        assert reader.read(100) == b"more\n"
    assert host.log.count(BEGINS) == 1


def test_writes_and_groups_are_as_ever(mount: MakeMount, own_etcd: EtcdProcess) -> None:
    host = mount(endpoint=own_etcd.endpoint, op_timeout=2.0, read_stale=True)
    topic = host.path / "topic"
    topic.write_bytes(b"line\n")
    unread = host.path / "unread"
    unread.write_bytes(b"line\n")
    group = os.open(host.path / "topic@w", os.O_RDONLY | os.O_NONBLOCK)
    with topic.open("rb", buffering=0) as reader, topic.open("ab", buffering=0) as writer:
        try:
            assert reader.read(100) == os.read(group, 100) == b"line\n"
            own_etcd.pause()
            assert at_once(lambda: reader.read(100)) == b""
            assert stale(host)
            with refused(errno.ETIMEDOUT):
                writer.write(b"lost, or once\n")
            changes: list[Callable[[], object]] = [
                (host.path / "new").touch,
                lambda: os.truncate(topic, 0),
                topic.unlink,
                lambda: os.rename(topic, host.path / "other"),
                lambda: os.chmod(topic, 0o600),
                (host.path / "directory").mkdir,
            ]
            for change in changes:
                with refused(errno.ETIMEDOUT):
                    change()
            reads: list[Callable[[], object]] = [
                unread.read_bytes,  # there is no view of it
                lambda: os.read(group, 100),
                lambda: os.open(host.path / "topic@", os.O_RDONLY),
            ]
            for read in reads:
                with refused(errno.ETIMEDOUT):
                    read()
            assert reader.read(100) == b""
        finally:
            own_etcd.resume()
            os.close(group)
        eventually(lambda: not stale(host), within_s=GOES_ON_S)


def test_nothing_is_stale_while_etcd_answers(
    mount: MakeMount, own_etcd: EtcdProcess, proxy: ProxyThread
) -> None:
    """Of two hosts one is cut off: its readers miss what the other pushes, until it is back."""
    cut_off = mount(endpoint=proxy.endpoint, op_timeout=OP_TIMEOUT_S, read_stale=True)
    strict = mount(endpoint=proxy.endpoint, op_timeout=2.0)
    other = mount(endpoint=own_etcd.endpoint)
    (other.path / "topic").touch()
    topics = [host.path / "topic" for host in (cut_off, strict)]
    readers = [topic.open("rb", buffering=0) for topic in topics]
    try:
        for number in range(50):
            line = b"%d\n" % number
            (other.path / "topic").write_bytes(line)
            assert [reader.read(100) for reader in readers] == [line, line], "as without the option"
        proxy.become(Mode.REFUSE)
        (other.path / "topic").write_bytes(b"unseen\n")
        (other.path / "name").touch()
        assert at_once(lambda: readers[0].read(100)) == b""
        assert stale(cut_off)
        with refused(errno.ENOENT):
            at_once((cut_off.path / "name").stat)
        with refused(errno.ETIMEDOUT):
            readers[1].read(100)
        with refused(errno.ETIMEDOUT):
            (strict.path / "name").stat()
        proxy.become(Mode.PASS)
        eventually(lambda: not stale(cut_off), within_s=GOES_ON_S)
        assert readers[0].read(100) == b"unseen\n"
        assert (cut_off.path / "name").stat().st_size == 0
        eventually(lambda: told(strict)["etcd"]["answers"], within_s=GOES_ON_S)
        assert readers[1].read(100) == b"unseen\n"
    finally:
        for reader in readers:
            reader.close()
    assert BEGINS not in strict.log + other.log
    assert not stale(strict)


def test_what_this_host_has_pushed_it_sees(mount: MakeMount, own_etcd: EtcdProcess) -> None:
    """Also right after an outage, when a push may return before anybody else was answered."""
    host = mount(endpoint=own_etcd.endpoint, op_timeout=OP_TIMEOUT_S, read_stale=True)
    topic = host.path / "topic"
    topic.write_bytes(b"line\n")
    with topic.open("rb", buffering=0) as reader, topic.open("ab", buffering=0) as writer:
        reader.read(100)
        for number in range(3):
            own_etcd.pause()
            while not stale(host):
                assert reader.read(100) == b""
            own_etcd.resume()
            line = b"%d\n" % number
            writer.write(line)
            assert reader.read(100) == line
            eventually(lambda: not stale(host), within_s=GOES_ON_S)


def test_status_of_a_mount(mount: MakeMount, own_etcd: EtcdProcess) -> None:
    host = mount(endpoint=own_etcd.endpoint, session_ttl=2)
    status = mount_status(host.path)
    assert (status.mountpoint, status.state, status.well) == (host.path, State.SERVED, True)
    assert status.told is not None
    assert status.told["pid"] == host.pid
    etcd = status.told["etcd"]
    assert etcd["answers"]
    assert etcd["endpoints"] == [{"endpoint": own_etcd.endpoint, "failure": None}]
    own_etcd.kill()
    eventually(lambda: not told(host)["session"]["healthy"])
    status = mount_status(host.path)
    assert status.told is not None
    assert not status.well
    assert not status.told["etcd"]["answers"]
    assert status.told["stale_since"] is None, "not a mount without --read-stale"
    own_etcd.start()
    eventually(lambda: mount_status(host.path).well, within_s=GOES_ON_S)
    host.pause()
    assert mount_status(host.path).state is State.SILENT
    host.resume()
    host.kill()
    assert mount_status(host.path).state is State.DEAD
