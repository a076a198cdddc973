"""TLS and etcd's users: what works, and what is said when it does not."""

import os
import re
import ssl
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
from google.protobuf.message import Message

from dnpipefs import connect
from dnpipefs.cluster import Settings, open_cluster
from dnpipefs.errors import SetupError
from dnpipefs.etcd import (
    Ambiguous,
    AuthenticationFailed,
    Client,
    Credentials,
    PermissionDenied,
    Tls,
    TlsFailed,
    Unreachable,
    open_client,
)
from dnpipefs.etcd.endpoint import Method
from dnpipefs.etcd.http import HttpFailed, HttpSide
from dnpipefs.etcd.proto import rpc_pb2 as pb
from tests.support.certificates import Authority, Pair
from tests.support.etcd_process import EtcdProcess, ServerTls

ENOUGH = 20.0

StartTls = Callable[[ServerTls], EtcdProcess]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("pki"), "right")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("pki"), "stranger")


@pytest.fixture(scope="module")
def start_tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartTls]:
    servers: dict[ServerTls, EtcdProcess] = {}

    def start(tls: ServerTls) -> EtcdProcess:
        if tls not in servers:
            binary = os.environ.get("DNPIPEFS_TEST_ETCD", "etcd")
            servers[tls] = EtcdProcess(tmp_path_factory.mktemp("etcd"), binary, tls=tls)
            servers[tls].start()
        return servers[tls]

    try:
        yield start
    finally:
        for server in servers.values():
            server.kill()


@pytest.fixture(scope="module")
def good(authority: Authority) -> Pair:
    return authority.issue("server")


async def test_tls(start_tls: StartTls, good: Pair, authority: Authority) -> None:
    server = start_tls(ServerTls(good.cert, good.key))
    for endpoint in (server.endpoint, server.endpoint.removeprefix("https://")):
        async with open_client([endpoint], tls=Tls(authority.ca), timeout=ENOUGH) as client:
            await client.check()
            revision = await client.put(b"key", b"")
            async with client.watch(b"key", start_revision=revision) as watch:
                assert (await watch.__anext__()).revision == revision


async def test_client_certificates(start_tls: StartTls, good: Pair, authority: Authority) -> None:
    server = start_tls(ServerTls(good.cert, good.key, authority.ca))
    mine = authority.issue("client")
    async with open_client(
        [server.endpoint], tls=Tls(authority.ca, mine.cert, mine.key), timeout=ENOUGH
    ) as client:
        await client.put(b"key", b"")
    async with open_client([server.endpoint], tls=Tls(authority.ca)) as client:
        with pytest.raises(Unreachable):
            await client.put(b"key", b"", timeout=1)


async def test_replaced_files_are_read_while_it_runs(
    start_tls: StartTls,
    good: Pair,
    authority: Authority,
    stranger: Authority,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As certificates are renewed, and an authority: no client has to be started again for it."""
    server = start_tls(ServerTls(good.cert, good.key, authority.ca))
    cacert, cert, key = (tmp_path / name for name in ("ca.pem", "mine.crt", "mine.key"))

    def renew(pair: Pair) -> None:
        for file, source in ((cert, pair.cert), (key, pair.key)):
            new = tmp_path / "new"
            new.write_bytes(source.read_bytes())
            new.replace(file)

    renew(authority.issue("mine", expired=True))
    cacert.write_bytes(stranger.ca.read_bytes())
    async with open_client([server.endpoint], tls=Tls(cacert, cert, key)) as client:
        with pytest.raises(TlsFailed):
            await client.put(b"key", b"", timeout=0.5)
        cacert.write_bytes(authority.ca.read_bytes())
        with pytest.raises(Unreachable):  # the server says no to the other one, too
            await client.put(b"key", b"", timeout=0.5)
        cert.unlink()
        with pytest.raises(Unreachable):
            await client.put(b"key", b"", timeout=0.5)
        [complaint] = [record for record in caplog.records if record.levelname == "WARNING"]
        assert (
            complaint.message
            == f"cannot read {cert}: No such file or directory; going on with what was there"
        )
        renew(authority.issue("mine again"))
        await client.put(b"key", b"", timeout=ENOUGH)
        async with client.watch(b"key") as watch:
            await client.put(b"key", b"")
            with trio.fail_after(ENOUGH):
                assert await watch.__anext__()


async def _complains(endpoint: str, tls: Tls) -> None:
    async with open_client([endpoint], tls=tls) as client:
        with trio.fail_after(ENOUGH), pytest.raises(TlsFailed, match="TLS failed: check that the CA"):
            await client.check()
        with pytest.raises(TlsFailed):
            await client.get(b"key", timeout=0.5)
        with pytest.raises(TlsFailed):
            await client.put(b"key", b"", timeout=0.5)


async def test_unknown_authority(start_tls: StartTls, good: Pair, stranger: Authority) -> None:
    await _complains(start_tls(ServerTls(good.cert, good.key)).endpoint, Tls(stranger.ca))


async def test_expired_certificate(start_tls: StartTls, authority: Authority) -> None:
    old = authority.issue("old", expired=True)
    await _complains(start_tls(ServerTls(old.cert, old.key)).endpoint, Tls(authority.ca))


async def test_certificate_of_another_host(start_tls: StartTls, authority: Authority) -> None:
    other = authority.issue("other", host="127.9.9.9")
    await _complains(start_tls(ServerTls(other.cert, other.key)).endpoint, Tls(authority.ca))


async def test_tls_to_a_server_without(shared_server: EtcdProcess, authority: Authority) -> None:
    endpoint = shared_server.endpoint.replace("http:", "https:")
    await _complains(endpoint, Tls(authority.ca))


async def test_no_tls_to_a_server_with(start_tls: StartTls, good: Pair) -> None:
    server = start_tls(ServerTls(good.cert, good.key))
    async with open_client([server.endpoint.replace("https:", "http:")]) as client:
        with trio.fail_after(ENOUGH), pytest.raises(Unreachable):
            await client.check()


async def test_verification_is_on_by_default(start_tls: StartTls, good: Pair) -> None:
    """Nobody has to ask for it: without an authority of its own a client trusts gRPC's, not everybody."""
    endpoint = start_tls(ServerTls(good.cert, good.key)).endpoint
    for tls in (None, Tls()):
        async with open_client([endpoint], tls=tls) as client:
            with trio.fail_after(ENOUGH), pytest.raises(TlsFailed):
                await client.check()


class OldServer:
    """Accepts connections and shakes hands, up to a version of TLS; `versions` has what came about."""

    def __init__(self, pair: Pair, newest: ssl.TLSVersion) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(pair.cert, pair.key)
        self._context.set_ciphers("ALL:@SECLEVEL=0")  # what else OpenSSL takes for too old
        self._context.set_alpn_protocols(["h2"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # that is the point
            self._context.minimum_version = ssl.TLSVersion.TLSv1
            self._context.maximum_version = newest
        self.versions: set[str | None] = set()

    async def serve(self, task_status: trio.TaskStatus[str]) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        task_status.started(f"https://127.0.0.1:{port}")
        await trio.serve_listeners(self._shake_hands, listeners)

    async def _shake_hands(self, stream: trio.SocketStream) -> None:
        secure = trio.SSLStream(stream, self._context, server_side=True)
        try:
            await secure.do_handshake()
        except trio.BrokenResourceError:
            self.versions.add(None)
        else:
            self.versions.add(secure.version())
        await trio.aclose_forcefully(stream)


@pytest.mark.skipif(not ssl.HAS_TLSv1_1, reason="this OpenSSL does not know TLS 1.1 any more")
@pytest.mark.parametrize(
    ("newest", "seen"), [(ssl.TLSVersion.TLSv1_1, None), (ssl.TLSVersion.TLSv1_2, "TLSv1.2")]
)
async def test_older_tls_is_refused(
    good: Pair, authority: Authority, newest: ssl.TLSVersion, seen: str | None
) -> None:
    server = OldServer(good, newest)
    async with trio.open_nursery() as nursery:
        endpoint = await nursery.start(server.serve)
        async with open_client([endpoint], tls=Tls(authority.ca)) as client:
            with trio.fail_after(ENOUGH), pytest.raises((Unreachable, Ambiguous)):
                await client.get(b"key", timeout=2)
            address = client._pool.endpoints[0].address
            with pytest.raises(HttpFailed):
                await HttpSide(Tls(authority.ca)).get(address, "/version", limit_bytes=1000)
        nursery.cancel_scope.cancel()
    assert server.versions == {seen}


async def test_files_that_cannot_be_used(tmp_path: Path, authority: Authority) -> None:
    with pytest.raises(SetupError, match=r"nothing\.pem"):
        async with open_client(["https://127.0.0.1:1"], tls=Tls(tmp_path / "nothing.pem")):
            pass
    with pytest.raises(SetupError, match="go together"):
        async with open_client(["https://127.0.0.1:1"], tls=Tls(authority.ca, cert=authority.ca)):
            pass
    (tmp_path / "a.der").write_bytes(b"0\x82\x05")
    with pytest.raises(SetupError, match=r"a\.der is no PEM file"):
        async with open_client(["https://127.0.0.1:1"], tls=Tls(tmp_path / "a.der")):
            pass


def test_nothing_of_grpc_goes_to_standard_error(
    repository: Path, start_tls: StartTls, good: Pair, stranger: Authority
) -> None:
    """A failing connection is told by an exception, not by lines of gRPC's own."""
    server = start_tls(ServerTls(good.cert, good.key))
    script = f"""
import trio
from pathlib import Path
from dnpipefs.etcd import Unreachable, Tls, open_client
async def main():
    tls = Tls(Path({str(stranger.ca)!r}))
    async with open_client(["{server.endpoint}", "http://127.0.0.1:1"], tls=tls) as client:
        try:
            await client.check()
        except Unreachable:
            print("told")
trio.run(main)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=repository, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("told\n", "")


ROOT = Credentials("root", "right")
GUEST = Credentials("guest", "guest")


async def _admin(client: Client, method: str, request: Message, response: type[Message]) -> None:
    """Call a method of etcd's Auth service, of which the client knows `Authenticate` only."""
    await client._pool.call(Method(f"/etcdserverpb.Auth/{method}", response), request, ENOUGH, once=True)


async def _enable_auth(client: Client) -> None:
    """Make user root, and a guest who may use the keys below `open/` only."""
    for user in (ROOT, GUEST):
        await _admin(client, "UserAdd", pb.AuthUserAddRequest(name=user.user, password=user.password),
                     pb.AuthUserAddResponse)  # fmt: skip
        await _admin(client, "RoleAdd", pb.AuthRoleAddRequest(name=user.user), pb.AuthRoleAddResponse)
        await _admin(client, "UserGrantRole", pb.AuthUserGrantRoleRequest(user=user.user, role=user.user),
                     pb.AuthUserGrantRoleResponse)  # fmt: skip
    permission = {"permType": "READWRITE", "key": b"open/", "range_end": b"open0"}
    await _admin(client, "RoleGrantPermission",
                 pb.AuthRoleGrantPermissionRequest(name=GUEST.user, perm=permission),
                 pb.AuthRoleGrantPermissionResponse)  # fmt: skip
    await _admin(client, "AuthEnable", pb.AuthEnableRequest(), pb.AuthEnableResponse)


@pytest.fixture
async def guarded(server: EtcdProcess) -> EtcdProcess:
    """A server with users."""
    async with open_client([server.endpoint], timeout=ENOUGH) as client:
        await _enable_auth(client)
    return server


async def test_users(guarded: EtcdProcess) -> None:
    async with open_client([guarded.endpoint], credentials=GUEST, timeout=ENOUGH) as client:
        await client.check()
        revision = await client.put(b"open/key", b"")
        with pytest.raises(PermissionDenied, match="role"):
            await client.put(b"closed", b"")
        with pytest.raises(PermissionDenied):
            await client.get(b"closed")
        async with client.watch(b"open/key", start_revision=revision) as allowed:
            assert (await allowed.__anext__()).revision == revision
            async with client.watch(b"closed", start_revision=revision) as refused:
                with trio.fail_after(ENOUGH), pytest.raises(PermissionDenied):
                    await refused.__anext__()
            with trio.fail_after(ENOUGH), pytest.raises(PermissionDenied):
                async with client.watch(b"closed"):
                    pass
            revision = await client.put(b"open/key", b"")
            assert (await allowed.__anext__()).revision == revision


async def test_an_ordinary_user_learns_release_and_space(
    guarded: EtcdProcess, caplog: pytest.LogCaptureFixture
) -> None:
    """Current releases show their status to the root role only."""
    async with (
        open_client([guarded.endpoint], credentials=ROOT, timeout=ENOUGH) as root,
        open_client([guarded.endpoint], credentials=GUEST, timeout=ENOUGH) as guest,
    ):
        assert re.fullmatch(r"3\.\d+\.\d+", (await root.check()).version)
        assert await guest.check() == await root.check()
        seen, real = await guest.space(), await root.space()
        assert seen.quota == real.quota
        assert seen.used == pytest.approx(real.used, rel=0.5)  # the store grows with what was asked
    assert caplog.messages == []


async def test_a_role_on_the_prefix_is_enough(guarded: EtcdProcess, caplog: pytest.LogCaptureFixture) -> None:
    """All that is done below a prefix, by a user to whom etcd refuses everything else."""
    async with connect(guarded.endpoint, prefix="open/", credentials=GUEST) as dnp:
        await dnp.mkdir("team")
        await dnp.push("team/jobs", "before")
        await dnp.reset("team/jobs")
        await dnp.push("team/jobs", "one", "two")
        assert [message.data async for message in dnp.pull("team/jobs")] == [b"one\n", b"two\n"]
        assert (await dnp.stat("team/jobs")).size == 8
        await dnp.rename("team/jobs", "done")
        await dnp.remove("done")
        assert [entry.name for entry in await dnp.ls()] == ["team"]
    async with open_cluster(Settings((guarded.endpoint,), "open/", credentials=GUEST)) as cluster:
        await cluster.log.sweeper.sweep_all()
    async with open_client([guarded.endpoint], credentials=ROOT) as root:
        left = [kv.key.split(b"/")[1] for kv in (await root.get_prefix(b"open/")).kvs]
        assert {b"session", b"trash", b"tail"}.isdisjoint(left), "swept, and the lease given back"
    assert caplog.messages == []


async def test_a_role_elsewhere_is_told_so(guarded: EtcdProcess) -> None:
    with pytest.raises(PermissionDenied, match="a role with read and write permission for the prefix"):
        async with connect(guarded.endpoint, prefix="closed/", credentials=GUEST):
            pass


async def test_a_member_without_majority_is_passed_over(
    cluster: list[EtcdProcess], guarded: EtcdProcess
) -> None:
    """It refuses its status like a sound one, so it is found out when it cannot let anybody in."""
    async with open_client([cluster[0].endpoint], timeout=ENOUGH) as client:
        await _enable_auth(client)
    for member in cluster[1:]:
        member.kill()
    endpoints = [cluster[0].endpoint, guarded.endpoint]
    async with open_client(endpoints, credentials=ROOT, timeout=2) as client:
        assert (await client.check()).endpoint == guarded.endpoint


async def test_wrong_password(guarded: EtcdProcess) -> None:
    wrong = Credentials("root", "wrong")
    async with open_client([guarded.endpoint], credentials=wrong, timeout=ENOUGH) as client:
        with pytest.raises(AuthenticationFailed, match="refuses user 'root'"):
            await client.check()
        with pytest.raises(AuthenticationFailed) as caught:
            await client.put(b"key", b"")
        assert "wrong" not in str(caught.value)
        with trio.fail_after(ENOUGH), pytest.raises(AuthenticationFailed):
            async with client.watch(b"key"):
                pass
        async with client.watch(b"key", start_revision=1) as watch:
            with trio.fail_after(ENOUGH), pytest.raises(AuthenticationFailed):
                await watch.__anext__()


async def test_without_credentials(guarded: EtcdProcess) -> None:
    async with open_client([guarded.endpoint], timeout=ENOUGH) as client:
        with pytest.raises(AuthenticationFailed, match="user and a password"):
            await client.get(b"key")
        with trio.fail_after(ENOUGH), pytest.raises(AuthenticationFailed):
            async with client.watch(b"key"):
                pass


async def test_token_is_renewed(guarded: EtcdProcess) -> None:
    """etcd's simple tokens are forgotten when the server ends."""
    async with open_client([guarded.endpoint], credentials=ROOT, timeout=ENOUGH) as client:
        written = [await client.put(b"key", b"")]
        async with client.watch(b"key", start_revision=written[0]) as watch:
            assert (await watch.__anext__()).revision == written[0]
            guarded.kill()
            await trio.to_thread.run_sync(guarded.start)
            assert await client.get(b"key") is not None
            last = await client.put(b"key", b"")
            with trio.fail_after(ENOUGH):
                assert (await watch.__anext__()).revision == last


async def test_token_is_renewed_by_a_watch_alone(guarded: EtcdProcess) -> None:
    async with (
        open_client([guarded.endpoint], credentials=ROOT, timeout=ENOUGH) as writer,
        open_client([guarded.endpoint], credentials=ROOT, timeout=ENOUGH) as client,
        client.watch(b"key") as watch,
    ):
        tokens = client._pool.tokens
        assert tokens is not None
        tokens._metadata = (("token", "stale.1"),)  # a restart alone may replay the old one from etcd's log
        guarded.kill()
        await trio.to_thread.run_sync(guarded.start)
        revision = await writer.put(b"key", b"")
        with trio.fail_after(ENOUGH):
            assert (await watch.__anext__()).revision == revision


async def test_token_is_renewed_by_a_write_first(guarded: EtcdProcess) -> None:
    async with open_client([guarded.endpoint], credentials=ROOT, timeout=ENOUGH) as client:
        await client.put(b"key", b"")
        tokens = client._pool.tokens
        assert tokens is not None
        tokens._metadata = (("token", "stale.1"),)
        await client.put(b"key", b"")
        kv = await client.get(b"key")
        assert kv is not None
        assert kv.version == 2


async def test_credentials_for_a_server_without_users(shared_server: EtcdProcess, prefix: bytes) -> None:
    async with open_client([shared_server.endpoint], credentials=ROOT, timeout=ENOUGH) as client:
        await client.check()
        await client.put(prefix, b"")
