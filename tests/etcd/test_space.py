"""etcd's size and quota: of real servers, however they are reached, and of peers that do not tell them."""

import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from dnpipefs.etcd import Space, Tls, open_client
from dnpipefs.etcd.endpoint import Address, parse_address
from dnpipefs.etcd.http import ANSWER_TIMEOUT_S, HttpSide
from dnpipefs.etcd.maintenance import read_status
from dnpipefs.etcd.metrics import METRICS_LIMIT_BYTES
from dnpipefs.etcd.proto import rpc_pb2 as pb
from dnpipefs.etcd.server import embedded_server
from dnpipefs.etcd.space import (
    BELIEVED_S,
    ETCD_DEFAULT_BYTES,
    NO_QUOTA_BYTES,
    SIZE_BELIEVED_S,
    SpaceGauge,
)
from tests.support.certificates import Authority
from tests.support.etcd_process import EtcdProcess, ServerTls, free_port
from tests.support.mounts import Mounts, why_no_mounts
from tests.support.tcp_proxy import open_proxy

ENOUGH = 20.0
ODD = 1_234_567_891
"""A quota that nobody has by chance, and that a float of 32 bits would not hold."""

LOG = logging.getLogger(__name__)

STATUS = read_status("", pb.StatusResponse(dbSize=1))
"""What etcd tells of itself up to 3.5: no quota."""


def gauge() -> SpaceGauge:
    return SpaceGauge(HttpSide(None))


async def quota_at(address: Address) -> int:
    return (await gauge().read(address, STATUS)).quota


@contextmanager
def running(server: EtcdProcess) -> Iterator[EtcdProcess]:
    try:
        server.start()
        yield server
    finally:
        server.kill()


@asynccontextmanager
async def serving(serve: Callable[[trio.SocketStream], Awaitable[None]]) -> AsyncIterator[str]:
    """Let `serve` have the connections to the endpoint that is given."""
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        yield f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


def with_quota(quota: int) -> list[str]:
    return [f"--quota-backend-bytes={quota}"]


async def space_at(endpoint: str, tls: Tls | None = None) -> Space:
    async with open_client([endpoint], tls=tls, timeout=ENOUGH) as client:
        return await client.space()


@pytest.mark.parametrize(
    ("flag", "quota"),
    [(ODD, ODD), (0, ETCD_DEFAULT_BYTES), (-1, NO_QUOTA_BYTES)],
    ids=["set", "unset", "off"],
)
async def test_over_tcp(flag: int, quota: int, tmp_path: Path, etcd_binary: str) -> None:
    with running(EtcdProcess(tmp_path / "etcd", etcd_binary, arguments=with_quota(flag))) as server:
        space = await space_at(server.endpoint)
        assert space.quota == quota
        assert 0 < space.used < 2**24


async def test_over_tls_with_a_client_certificate(tmp_path: Path, etcd_binary: str) -> None:
    authority = Authority(tmp_path, "right")
    its, mine = authority.issue("server"), authority.issue("client")
    server_tls = ServerTls(its.cert, its.key, authority.ca)
    with running(
        EtcdProcess(tmp_path / "etcd", etcd_binary, tls=server_tls, arguments=with_quota(ODD))
    ) as server:
        space = await space_at(server.endpoint, Tls(authority.ca, mine.cert, mine.key))
        assert space.quota == ODD


async def test_of_an_embedded_server(tmp_path: Path, etcd_binary: str) -> None:
    async with embedded_server(tmp_path / "data", binary=etcd_binary, quota_bytes=ODD, log=LOG) as server:
        assert (await space_at(server.endpoint)).quota == ODD


async def test_metrics_are_elsewhere(server: EtcdProcess, caplog: pytest.LogCaptureFixture) -> None:
    """gRPC goes through, HTTP is not there."""
    async with open_proxy(server.port) as proxy:

        async def without_http(stream: trio.SocketStream) -> None:
            if await stream.socket.recv(4, trio.socket.MSG_PEEK) == b"GET ":
                async with stream:
                    await stream.send_all(b"HTTP/1.0 404 Not Found\r\n\r\n404 page not found\n")
                    await stream.receive_some()
            else:
                await proxy.serve(stream)

        async with (
            serving(without_http) as endpoint,
            open_client([endpoint], timeout=ENOUGH) as client,
        ):
            for _ in range(2):
                space = await client.space()
                assert space.quota == ETCD_DEFAULT_BYTES
                assert space.used > 0
    (line,) = caplog.messages
    assert "404 Not Found'): df shows what was known last, or no use and etcd's default quota, 2 GiB" in line


@pytest.mark.skipif(why_no_mounts() is not None, reason=str(why_no_mounts()))
def test_df_of_a_mount(tmp_path: Path, etcd_binary: str) -> None:
    mounts = Mounts(tmp_path)
    with running(EtcdProcess(tmp_path / "etcd", etcd_binary, arguments=with_quota(ODD))) as server:
        try:
            with mounts.guarded():
                host = mounts.make(endpoints=[server.endpoint], prefix="/df/")
                host.start()
                shown = os.statvfs(host.path)
                assert shown.f_blocks == ODD // shown.f_frsize
                assert 0 < shown.f_bfree < shown.f_blocks
                assert host.stop() == 0
        finally:
            mounts.clear()


class Metrics:
    """A peer that answers every connection with `answer`, or never if that is None."""

    def __init__(self, answer: bytes | None) -> None:
        self.answer = answer
        self.asked = 0
        self.address = Address("", "", tls=False)

    async def serve(self, stream: trio.SocketStream) -> None:
        self.asked += 1
        async with stream:
            await stream.receive_some()
            if self.answer is None:
                await trio.sleep_forever()
            else:
                await stream.send_all(self.answer)


@asynccontextmanager
async def metrics(answer: bytes | None) -> AsyncIterator[Metrics]:
    peer = Metrics(answer)
    async with serving(peer.serve) as endpoint:
        peer.address = parse_address(endpoint, tls=False)
        yield peer


def with_gauges(value: str, size: str = "0") -> bytes:
    name = b"etcd_server_quota_backend_bytes"
    quota = b"# TYPE %s gauge\n%s %s\n" % (name, name, value.encode())
    used = b"etcd_mvcc_db_total_size_in_bytes %s\n" % size.encode()
    return b"HTTP/1.0 200 OK\r\n\r\n" + used + quota + b"other 1\n"


async def test_it_is_asked_for_once_a_minute(mock_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    asked = gauge()
    async with metrics(with_gauges("1.234567891e+09")) as peer:

        async def ask() -> None:
            assert (await asked.read(peer.address, STATUS)).quota == ODD

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(ask)
        mock_clock.jump(BELIEVED_S - 1)
        await ask()
        assert peer.asked == 1
        peer.answer = with_gauges("7e+06")
        mock_clock.jump(1)
        assert (await asked.read(peer.address, STATUS)).quota == 7_000_000
        assert peer.asked == 2
        peer.answer = b""
        for _ in range(2):
            mock_clock.jump(BELIEVED_S)
            assert (await asked.read(peer.address, STATUS)).quota == 7_000_000
        assert peer.asked == 4
    (line,) = caplog.messages
    assert "does not tell its quota" in line


async def test_it_is_not_waited_for(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    asked = gauge()
    async with metrics(None) as peer:
        begun = trio.current_time()
        for _ in range(3):
            assert (await asked.read(peer.address, STATUS)).quota == ETCD_DEFAULT_BYTES
        assert trio.current_time() - begun == pytest.approx(ANSWER_TIMEOUT_S)
    (line,) = caplog.messages
    assert "no answer in 1 s" in line


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"", "is answered with ''"),
        (b"\x00\x00\x12\x04", "is answered with"),  # a server that speaks HTTP/2 only
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n" + with_gauges("5"), "503 Service Unavailable"),
        (with_gauges("many"), "b'many' as etcd_server_quota_backend_bytes"),
        (with_gauges("+Inf"), "b'+Inf' as"),
        (with_gauges("NaN"), "b'NaN' as"),
        (b"HTTP/1.0 200 OK\r\n\r\n" + b"#" * METRICS_LIMIT_BYTES, "more than 4194304 bytes"),
    ],
    ids=["nothing", "http2", "busy", "a word", "infinite", "no number", "endless"],
)
async def test_answers_that_do_not_tell(answer: bytes, said: str, caplog: pytest.LogCaptureFixture) -> None:
    async with metrics(answer) as peer:
        assert await quota_at(peer.address) == ETCD_DEFAULT_BYTES
    (line,) = caplog.messages
    assert said in line


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.0 200 OK\r\n\r\nother 1\n", with_gauges("5")[: -len("\nother 1\n")]],
    ids=["none", "cut"],
)
async def test_metrics_without_it(answer: bytes) -> None:
    """A value that is cut off by the end of the connection is none."""
    async with metrics(answer) as peer:
        assert await quota_at(peer.address) == ETCD_DEFAULT_BYTES


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:{}", "https://127.0.0.1:{}", "http://[::1]:{}", "unix:/{}"]
)
async def test_nobody_is_there(url: str, caplog: pytest.LogCaptureFixture) -> None:
    address = parse_address(url.format(free_port()), tls=False)
    assert await quota_at(address) == ETCD_DEFAULT_BYTES
    assert len(caplog.messages) == 1


async def test_a_peer_without_tls(caplog: pytest.LogCaptureFixture) -> None:
    async with metrics(with_gauges("5")) as peer:
        address = parse_address(peer.address.text.replace("http:", "https:"), tls=False)
        assert await quota_at(address) == ETCD_DEFAULT_BYTES
    (line,) = caplog.messages
    assert "SSL" in line


async def test_a_status_that_tells_is_enough() -> None:
    """etcd 3.6 has the flag in field 12 of its status."""
    status = read_status("", pb.StatusResponse.FromString(bytes([12 << 3, 42])))
    assert status.db_size_quota == 42
    async with metrics(with_gauges("5")) as peer:
        assert (await gauge().read(peer.address, status)).quota == 42
        assert (await gauge().read(peer.address, replace(status, db_size_quota=-1))).quota == NO_QUOTA_BYTES
        assert peer.asked == 0


async def test_a_refused_status_leaves_the_metrics(
    mock_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dnpipefs")
    asked = gauge()
    async with metrics(with_gauges("7e+06", "5e+06")) as peer:
        for _ in range(3):
            assert await asked.read(peer.address, None) == Space(5_000_000, 7_000_000)
        assert peer.asked == 1
        peer.answer = with_gauges("7e+06", "6e+06")
        mock_clock.jump(SIZE_BELIEVED_S)
        assert await asked.read(peer.address, None) == Space(6_000_000, 7_000_000)
        peer.answer = b""
        for _ in range(3):
            mock_clock.jump(SIZE_BELIEVED_S)
            assert await asked.read(peer.address, None) == Space(6_000_000, 7_000_000)
        assert peer.asked == 3
    why, failed = caplog.messages
    assert "users with the root role only" in why
    assert "does not tell its size and quota" in failed


async def test_neither_status_nor_metrics(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dnpipefs")
    asked = gauge()
    for _ in range(2):
        assert await asked.read(parse_address(f"127.0.0.1:{free_port()}", tls=False), None) == Space(
            0, ETCD_DEFAULT_BYTES
        )
    (line,) = caplog.messages
    assert "df shows what was known last, or no use and etcd's default quota, 2 GiB" in line
