"""What tests of the embedded server share: a data directory, its processes, its log lines, raw requests."""

import logging
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
import trio

from dnpipefs.etcd.proto import rpc_pb2 as rpc
from dnpipefs.etcd.server import EmbeddedServer, embedded_server
from tests.support.processes import has_exited, processes_at_home

ANSWER_TIMEOUT_S = 20.0


class Lines(logging.Handler):
    """The lines of a log, to be looked at and waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self._changed = trio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
        self._changed.set()
        self._changed = trio.Event()

    def count(self, text: str) -> int:
        return sum(text in line for line in self.lines)

    async def until(self, text: str, count: int = 1) -> None:
        with trio.fail_after(ANSWER_TIMEOUT_S):
            while self.count(text) < count:
                await self._changed.wait()


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[Path]:
    """Give the path of a data directory yet to be made; whatever still works in it is killed at the end."""
    directory = tmp_path / "data"
    yield directory
    strays = processes_at_home(directory)
    for pid in strays:
        os.kill(pid, signal.SIGKILL)
        has_exited(pid, ANSWER_TIMEOUT_S)
    assert not strays, "the last user to leave stops the server"


@pytest.fixture
def lines() -> Lines:
    return Lines()


@pytest.fixture
def log(lines: Lines) -> Iterator[logging.Logger]:
    logger = logging.getLogger("tests.embedded")
    logger.setLevel(logging.INFO)
    logger.addHandler(lines)
    yield logger
    logger.removeHandler(lines)


Enter = Callable[..., AbstractAsyncContextManager[EmbeddedServer]]


@pytest.fixture
def enter(data_dir: Path, etcd_binary: str, log: logging.Logger) -> Enter:
    """Give `embedded_server` with this test's directory, binary and log."""
    return partial(embedded_server, data_dir, binary=etcd_binary, log=log)


class UserProcess:
    """`tests.embedded.user` as a child."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.pid = process.pid

    async def server_pid(self) -> int:
        assert self._process.stdout is not None
        return int(await trio.to_thread.run_sync(self._process.stdout.readline))

    async def leave(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert await trio.to_thread.run_sync(self._process.wait) == 0

    async def kill(self) -> None:
        self._process.kill()
        await trio.to_thread.run_sync(self._process.wait)


OpenUser = Callable[[], AbstractAsyncContextManager[UserProcess]]


@pytest.fixture
def open_user(data_dir: Path, etcd_binary: str, repository: Path) -> OpenUser:
    """Give a function that starts another process using the same server."""

    @asynccontextmanager
    async def start() -> AsyncIterator[UserProcess]:
        command = [sys.executable, "-m", "tests.embedded.user", str(data_dir), etcd_binary]
        process = subprocess.Popen(
            command, cwd=repository, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        with process:
            try:
                yield UserProcess(process)
            finally:
                process.kill()

    return start


async def call(server: EmbeddedServer, method: str, request: Any, response: Any) -> Any:
    """Ask the server one thing, waiting for it to come up if need be."""

    def ask() -> Any:
        with grpc.insecure_channel(server.endpoint, [("grpc.max_reconnect_backoff_ms", 200)]) as channel:
            rpc_method = channel.unary_unary(
                f"/etcdserverpb.{method}", type(request).SerializeToString, response.FromString
            )
            return rpc_method(request, timeout=ANSWER_TIMEOUT_S, wait_for_ready=True)

    return await trio.to_thread.run_sync(ask)


async def put(server: EmbeddedServer, key: bytes, value: bytes) -> None:
    await call(server, "KV/Put", rpc.PutRequest(key=key, value=value), rpc.PutResponse)


async def get(server: EmbeddedServer, key: bytes) -> list[bytes]:
    found = await call(server, "KV/Range", rpc.RangeRequest(key=key), rpc.RangeResponse)
    return [pair.value for pair in found.kvs]


async def exited(pid: int) -> bool:
    return await trio.to_thread.run_sync(has_exited, pid, ANSWER_TIMEOUT_S)
