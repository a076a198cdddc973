"""What is read from a server's HTTP side: samples, flags, dates."""

import json
import time

import pytest
import trio
import trio.testing

from dnpipefs.etcd import open_client
from dnpipefs.etcd.endpoint import parse_address
from dnpipefs.etcd.http import HttpFailed, HttpSide
from dnpipefs.etcd.metrics import Metrics, flag, parse_command_line
from tests.etcd.test_space import serving
from tests.support.etcd_process import EtcdProcess

DOCUMENT = b"""# TYPE a gauge
a 1.5e+03
a_b 2
with_labels{x="y"} 3
infinite +Inf
word many
last 4"""


@pytest.mark.parametrize(
    ("name", "value"),
    [("a", 1500), ("a_b", 2), ("with_labels", None), ("b", None), ("last", None), (".", None)],
)
def test_samples(name: str, value: float | None) -> None:
    """The last line is cut off."""
    assert Metrics(DOCUMENT).value(name) == value


@pytest.mark.parametrize("name", ["infinite", "word"])
def test_samples_that_are_no_numbers(name: str) -> None:
    with pytest.raises(HttpFailed, match=f"as {name}"):
        Metrics(DOCUMENT).value(name)


@pytest.mark.parametrize(
    ("command", "value"),
    [
        ("etcd --mode=x", "x"),
        ("etcd --mode x", "x"),
        ("etcd -mode x --other y", "x"),
        ("etcd --mode=", ""),
        ("etcd --mode", ""),
        ("etcd --mode-of-it x", None),
        ("etcd", None),
    ],
)
def test_flags(command: str, value: str | None) -> None:
    assert flag(command.split(), "mode") == value


@pytest.mark.parametrize(
    "document", [b"", b"[]", b"{}", b'{"cmdline": "etcd"}', b'{"cmdline": [1]}', b"\xff"]
)
def test_documents_without_a_command_line(document: bytes) -> None:
    assert parse_command_line(document) is None
    assert parse_command_line(json.dumps({"cmdline": ["etcd"], "memstats": {}}).encode()) == ["etcd"]


async def test_a_real_server_tells(shared_server: EtcdProcess) -> None:
    async with open_client([shared_server.endpoint]) as client:
        command = await client.command_line(shared_server.endpoint)
        assert command is not None
        assert flag(command, "listen-client-urls") == shared_server.endpoint
        metrics = await client.metrics(shared_server.endpoint)
        assert metrics.value("etcd_server_is_leader") == 1
        assert await client.date(shared_server.endpoint) == pytest.approx(time.time(), abs=5)


@pytest.mark.parametrize(
    ("answer", "date"),
    [
        (b"HTTP/1.0 200 OK\r\nServer: x\r\ndate: Thu, 01 Jan 1970 00:01:40 GMT\r\n\r\n{}", 100.0),
        (b"HTTP/1.0 200 OK\r\n\r\n{}", None),
        (b"HTTP/1.0 200 OK\r\nDate: soon\r\n\r\n{}", None),
        (b"HTTP/1.0 404 Not Found\r\nDate: Thu, 01 Jan 1970 00:01:40 GMT\r\n\r\n", None),
    ],
)
async def test_dates(answer: bytes, date: float | None) -> None:
    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(answer)

    async with serving(serve) as endpoint:
        address = parse_address(endpoint, tls=False)
        if date is not None:
            assert await HttpSide(None).date(address) == date
        else:
            with pytest.raises(HttpFailed):
                await HttpSide(None).date(address)


async def test_a_date_that_does_not_come(autojump_clock: trio.testing.MockClock) -> None:
    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            await trio.sleep_forever()

    async with serving(serve) as endpoint:
        with pytest.raises(HttpFailed, match="no answer in 1 s"):
            await HttpSide(None).date(parse_address(endpoint, tls=False))
