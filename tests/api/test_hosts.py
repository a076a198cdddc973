"""Who is in the cluster, and how its etcd is, from the Python API."""

import os
import socket
import time

import pytest

import dnpipefs
from dnpipefs import Dnp
from dnpipefs.core.keys import KeySchema
from dnpipefs.core.names import SessionId
from dnpipefs.core.records import encode_session
from dnpipefs.etcd import open_client
from tests.api.conftest import Connect
from tests.support.etcd_process import EtcdProcess


async def test_hosts_come_and_go(dnp: Dnp, connect: Connect) -> None:
    (mine,) = await dnp.hosts()
    assert (mine.host, mine.pid, mine.mountpoint) == (socket.gethostname(), os.getpid(), None)
    assert mine.version == dnpipefs.__version__
    assert mine.since_ns is not None
    assert 0 < time.time_ns() - mine.since_ns < 60 * 10**9
    async with connect() as other:
        await other.push("t", "x")  # which needs its session
        both = await dnp.hosts()
        assert len(both) == len({host.session for host in both}) == 2
        assert both == await other.hosts()
    assert await dnp.hosts() == [mine]


async def test_hosts_of_other_releases_and_what_is_none(
    dnp: Dnp, shared_server: EtcdProcess, caplog: pytest.LogCaptureFixture
) -> None:
    keys = KeySchema(dnp._cluster.settings.prefix)
    (mine,) = await dnp.hosts()
    async with open_client([shared_server.endpoint]) as client:
        record = encode_session(host="a-host", pid=7, mountpoint="/dnp", version="0.1")
        await client.put(keys.session(SessionId(7)), record)
        await client.put(keys.session(SessionId(8)), b"{}")
    older, itself = await dnp.hosts()
    assert itself == mine
    assert (older.session, older.host, older.mountpoint, older.since_ns) == (7, "a-host", "/dnp", None)
    assert "a host is left out, run dnpipefs fsck" in caplog.text


async def test_health(dnp: Dnp, shared_server: EtcdProcess) -> None:
    health = await dnp.health()
    (member,) = health.members
    assert (member.endpoint, member.answers) == (shared_server.endpoint, True)
    assert health.leader == member
    assert health.read_s is not None
