"""How the members of real clusters are told to be: sound, guarded, full, half dead, with a wrong address."""

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from trio.testing import MockClock

from dnpipefs.etcd import AlarmKind, Client, Health, HealthGauge, MemberHealth, health, open_client
from dnpipefs.etcd.endpoint import ALARM
from dnpipefs.etcd.health import read_state
from dnpipefs.etcd.metrics import Metrics
from dnpipefs.etcd.proto import rpc_pb2 as pb
from tests.etcd.conftest import CALL_TIMEOUT_S
from tests.etcd.test_security import GUEST, guarded
from tests.support.etcd_process import EtcdProcess, free_port

__all__ = ["guarded"]

KEY = b"open/key"


async def look(endpoints: Sequence[str]) -> Health:
    async with open_client(endpoints, timeout=CALL_TIMEOUT_S) as client:
        return await HealthGauge(client, KEY).look()


def named(told: Health, name: str) -> MemberHealth:
    (member,) = [member for member in told.members if member.name == name]
    return member


async def test_one_member(tmp_path: Path, etcd_binary: str) -> None:
    server = EtcdProcess(tmp_path / "etcd", etcd_binary, arguments=["--quota-backend-bytes", "77000000"])
    try:
        server.start()
        told = await look([server.endpoint])
    finally:
        server.kill()
    (member,) = told.members
    assert (member.name, member.endpoint, member.failure) == ("default", server.endpoint, "")
    assert member.answers
    assert member.state is not None
    assert member.state.version.startswith("3.")
    assert (member.state.leads, member.state.is_learner, member.state.quota) == (True, False, 77_000_000)
    assert member.state.size is not None
    assert member.state.in_use is not None
    assert 0 < member.state.in_use <= member.state.size
    assert member.state.raft_term
    assert member.state.raft_index
    assert member.latency_s is not None
    assert told.read_s is not None
    assert (told.leader, told.alarms, told.failure) == (member, (), "")


async def test_members_that_nobody_named_and_those_that_are_gone(
    cluster: list[EtcdProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are known by the cluster, and by their addresses; not twice."""
    for endpoints in ([cluster[0].endpoint], [member.endpoint for member in cluster]):
        told = await look(endpoints)
        assert [member.name for member in told.members] == ["a", "b", "c"]
        assert [member.endpoint for member in told.members] == [member.endpoint for member in cluster]
        assert [member.answers for member in told.members] == [True] * 3
        assert told.leader is not None
        assert sum(member.state is not None and member.state.leads is True for member in told.members) == 1
    async with open_client([member.endpoint for member in cluster[:2]], timeout=CALL_TIMEOUT_S) as client:
        gauge = HealthGauge(client, KEY)
        await gauge.look()
        monkeypatch.setattr(health, "ANSWER_S", 1.0)
        for gone, alive in ((cluster[2], True), (cluster[1], False)):  # not named, named
            gone.kill()
            told = await gauge.look()
            assert [member.name for member in told.members] == ["a", "b", "c"]
            dead = named(told, gone.name)
            assert (dead.answers, dead.latency_s, dead.endpoint) == (False, None, gone.endpoint)
            assert dead.failure
            assert named(told, "a").answers
            assert alive or (told.read_s is None and told.failure), "a majority is needed to read"
            if alive:
                fresh = await look([member.endpoint for member in cluster])
                assert [member.name for member in fresh.members] == ["a", "b", "c"], "one never answered"
        cluster[0].kill()
        told = await gauge.look()
        assert [member.name for member in told.members] == ["a", "b", "c"], "they are known from before"
        assert not any(member.answers for member in told.members)


async def test_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "ANSWER_S", 0.3)
    endpoints = [f"http://127.0.0.1:{free_port()}" for _ in range(2)]
    told = await look(endpoints)
    assert sorted(member.endpoint for member in told.members) == sorted(endpoints)
    assert all(member.failure and not member.answers for member in told.members)
    assert (told.read_s, told.leader) == (None, None)
    assert told.failure


async def raise_alarm(client: Client, member_id: int) -> None:
    request = pb.AlarmRequest(action=pb.AlarmRequest.ACTIVATE, memberID=member_id, alarm=pb.NOSPACE)
    await client._pool.call(ALARM, request, CALL_TIMEOUT_S, once=True)


async def test_alarms(server: EtcdProcess) -> None:
    async with open_client([server.endpoint], timeout=CALL_TIMEOUT_S) as client:
        await raise_alarm(client, 1)
        gauge = HealthGauge(client, KEY)
        assert (await gauge.look()).alarms == (), "that one is nobody's, of `settle`"
        await raise_alarm(client, (await client.status()).member_id)
        told = await gauge.look()
        assert told.alarms == told.members[0].alarms == (AlarmKind.NOSPACE,)
        await raise_alarm(client, 4711)
        assert (await gauge.look()).members[0].alarms == (AlarmKind.NOSPACE,)


async def test_a_user_with_a_role_on_the_prefix(guarded: EtcdProcess) -> None:
    """Current releases show their status to root only; then the metrics tell. No token goes in the open."""
    async with (
        open_client([guarded.endpoint], timeout=CALL_TIMEOUT_S) as stranger,
        open_client([guarded.endpoint], credentials=GUEST, timeout=CALL_TIMEOUT_S) as client,
    ):
        told = await HealthGauge(client, KEY).look()
        (listed,) = await client.members()
        stray = await HealthGauge(client, KEY)._ask_beside(listed)
        assert "no address to be asked at" in stray.failure
        assert (await HealthGauge(stranger, KEY)._ask_beside(listed)).endpoint == guarded.endpoint
    (member,) = told.members
    assert member.state is not None
    assert (member.state.leads, member.state.quota) == (True, 2 << 30)
    assert member.state.version.startswith("3.")
    assert member.state.size
    assert member.state.in_use
    assert told.read_s is not None


async def test_an_address_that_leads_to_somebody_else(
    tmp_path: Path, etcd_binary: str, shared_server: EtcdProcess
) -> None:
    """As a member's ``localhost`` does, seen from another host."""
    arguments = ["--advertise-client-urls", shared_server.endpoint]
    lost = EtcdProcess(tmp_path / "etcd", etcd_binary, arguments=arguments)
    try:
        lost.start()
        async with open_client([lost.endpoint], timeout=CALL_TIMEOUT_S) as client:
            gauge = HealthGauge(client, KEY)
            assert (await gauge.look()).members[0].endpoint == lost.endpoint
            (member,) = await client.members()
            stray = await gauge._ask_beside(member)
            assert not stray.answers
            assert f"who answers at {shared_server.endpoint}" in stray.failure
    finally:
        lost.kill()


async def test_a_quota_that_only_the_metrics_tell_is_asked_for_once_a_minute(
    server: EtcdProcess, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0
    mock_clock.rate = 1
    async with open_client([server.endpoint], timeout=CALL_TIMEOUT_S) as client:
        ask = client.metrics

        async def metrics(endpoint: str) -> Metrics:
            nonlocal asked
            asked += 1
            return await ask(endpoint)

        monkeypatch.setattr(client, "metrics", metrics)
        gauge = HealthGauge(client, KEY)
        for looks in ((0, 1), (0, 1), (60, 2)):
            mock_clock.jump(looks[0])
            (member,) = (await gauge.look()).members
            assert member.state is not None
            assert member.state.quota == 2 << 30
            assert asked == looks[1] or member.state.version.startswith("3.6")


def test_what_metrics_say_and_do_not_say() -> None:
    nothing = read_state("3.5.0", None, Metrics(b""))
    assert (nothing.leads, nothing.size, nothing.quota, nothing.revision) == (None,) * 4
    told = read_state(
        "3.5.0", None, Metrics(b"etcd_server_is_leader 0\netcd_server_quota_backend_bytes -1\n")
    )
    assert told.leads is False
    assert told.quota is not None
    assert told.quota > 2**59, "it is switched off"
    assert math.isfinite(told.quota)
