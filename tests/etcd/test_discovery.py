"""Endpoints by DNS: which records count, in which order, what is said if there are none, looking again."""

from collections.abc import Iterator

import pytest
import trio

from dnpipefs.cluster import Settings, open_etcd
from dnpipefs.errors import SetupError
from dnpipefs.etcd import Discovery, Unreachable, discovery, open_client, srv
from tests.etcd.conftest import CALL_TIMEOUT_S
from tests.support.dns_server import DnsServer, dns_server
from tests.support.etcd_process import EtcdProcess
from tests.support.tcp_proxy import Mode, open_proxy

PLAIN = "_etcd-client._tcp.cluster.test. SRV"
TLS = "_etcd-client-ssl._tcp.cluster.test. SRV"


@pytest.fixture
def server_of_names() -> Iterator[DnsServer]:
    with dns_server() as server:
        yield server


async def found(server: DnsServer, *, tls_only: bool = False) -> list[str]:
    return await srv.look_up("cluster.test", tls_only=tls_only, resolver=server.resolver)


async def test_records_without_tls(server_of_names: DnsServer) -> None:
    server_of_names.zone = f"{PLAIN} 0 0 2379 etcd1.cluster.test."
    assert await found(server_of_names) == ["http://etcd1.cluster.test:2379"]


async def test_records_with_tls_count_alone(server_of_names: DnsServer) -> None:
    server_of_names.zone = f"{PLAIN} 0 0 2379 etcd1.cluster.test.\n{TLS} 0 0 2380 etcd1.cluster.test."
    assert await found(server_of_names) == ["https://etcd1.cluster.test:2380"]
    assert "_etcd-client._tcp.cluster.test. SRV" not in server_of_names.asked


async def test_the_order_is_that_of_priorities(server_of_names: DnsServer) -> None:
    server_of_names.zone = "\n".join(f"{TLS} {10 - n} 5 {n} etcd{n}.cluster.test." for n in range(6))
    assert await found(server_of_names) == [f"https://etcd{n}.cluster.test:{n}" for n in (5, 4, 3, 2, 1, 0)]


async def test_equals_share_by_weight(server_of_names: DnsServer) -> None:
    server_of_names.zone = f"{PLAIN} 0 1 1 a.test.\n{PLAIN} 0 1 2 b.test."
    assert {tuple(await found(server_of_names)) for _ in range(64)} == {
        ("http://a.test:1", "http://b.test:2"),
        ("http://b.test:2", "http://a.test:1"),
    }


async def test_no_such_domain(server_of_names: DnsServer) -> None:
    with pytest.raises(SetupError, match=r"DNS knows no domain cluster\.test: check --discovery-srv"):
        await found(server_of_names)


@pytest.mark.parametrize(
    "zone", ["www.cluster.test. A 127.0.0.1", f"{PLAIN} 0 0 0 .", "cluster.test. A 1.2.3.4"]
)
async def test_no_records(zone: str, server_of_names: DnsServer) -> None:
    server_of_names.zone = zone
    with pytest.raises(
        SetupError,
        match=r"cluster\.test has no SRV records _etcd-client-ssl\._tcp or _etcd-client\._tcp: add",
    ):
        await found(server_of_names)


async def test_with_a_certificate_tls_it_has_to_be(server_of_names: DnsServer) -> None:
    server_of_names.zone = f"{PLAIN} 0 0 2379 etcd1.cluster.test."
    with pytest.raises(SetupError, match=r"ssl\._tcp; there is a certificate, so TLS is needed"):
        await found(server_of_names, tls_only=True)


async def test_what_dns_does_not_say_is_not_taken_for_no(server_of_names: DnsServer) -> None:
    """Whoever can keep answers away would else decide that there is no TLS."""
    server_of_names.zone = f"{PLAIN} 0 0 2379 etcd1.cluster.test.\n{TLS} 0 0 2379 etcd1.cluster.test."
    server_of_names.failing = {"_etcd-client-ssl._tcp.cluster.test."}
    with pytest.raises(SetupError, match=r"DNS does not say where the etcd of cluster\.test is \(.*SERVFAIL"):
        await found(server_of_names)


async def test_dns_that_does_not_answer(server_of_names: DnsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(srv, "LOOKUP_S", 0.2)
    server_of_names.silent = True
    with pytest.raises(
        SetupError, match=r"check /etc/resolv\.conf, or name the members with --endpoints"
    ) as caught:
        await found(server_of_names)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("domain", ["a..test", "x" * 64 + ".test", "\ud800.test"])
async def test_what_is_no_domain(domain: str, server_of_names: DnsServer) -> None:
    with pytest.raises(SetupError, match="DNS does not say"):
        await srv.look_up(domain, tls_only=False, resolver=server_of_names.resolver)
    assert server_of_names.asked == []


async def test_others_are_looked_for_when_none_answers(
    shared_server: EtcdProcess, prefix: bytes, server_of_names: DnsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discovery, "AGAIN_S", 0.0)
    way = Discovery("cluster.test", resolver=server_of_names.resolver)
    monkeypatch.setattr(Settings, "discovery", way)  # the machine's resolver would ask at port 53
    async with open_proxy(shared_server.port) as former:
        server_of_names.zone = f"{PLAIN} 0 0 {former.port} localhost."
        async with open_etcd(Settings(discovery_srv="cluster.test")) as (client, _, _):
            first = f"http://localhost:{former.port}"
            await client.put(prefix, b"by the first")
            assert [name for name, _ in client.endpoints()] == [first]
            async with client.watch(prefix) as watch:
                server_of_names.zone = f"{PLAIN} 0 0 {shared_server.port} localhost."
                asked = len(server_of_names.asked)
                await client.put(prefix, b"still")
                assert len(server_of_names.asked) == asked, "nobody is asked while all is well"
                former.become(Mode.REFUSE)
                found = await client.get(prefix, timeout=CALL_TIMEOUT_S)
                assert found is not None
                assert found.value == b"still"
                assert [name for name, _ in client.endpoints()] == [f"http://localhost:{shared_server.port}"]
                await client.put(prefix, b"by the second")
                values: list[bytes] = []
                with trio.fail_after(CALL_TIMEOUT_S):
                    while len(values) < 2:
                        values += [event.kv.value for event in (await watch.__anext__()).events]
                assert values == [b"still", b"by the second"]


async def test_what_was_found_is_kept_while_dns_says_nothing(
    server_of_names: DnsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discovery, "AGAIN_S", 0.0)
    server_of_names.zone = f"{PLAIN} 0 0 1 localhost."
    way = Discovery("cluster.test", resolver=server_of_names.resolver)
    async with open_client(await way.endpoints(), discovery=way) as client:
        server_of_names.failing = {"*"}
        asked = len(server_of_names.asked)
        with pytest.raises(Unreachable, match="localhost:1"):
            await client.get(b"key", timeout=1)
        assert len(server_of_names.asked) > asked
        assert [name for name, _ in client.endpoints()] == ["http://localhost:1"]


async def test_dns_is_asked_again_now_and_then_only(server_of_names: DnsServer) -> None:
    server_of_names.zone = f"{PLAIN} 0 0 1 localhost."
    way = Discovery("cluster.test", resolver=server_of_names.resolver)
    async with open_client(await way.endpoints(), discovery=way) as client:
        asked = len(server_of_names.asked)
        with pytest.raises(Unreachable):
            await client.get(b"key", timeout=0.5)
        assert len(server_of_names.asked) == asked
