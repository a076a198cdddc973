"""Connecting, and how failures reach whoever connected."""

import logging
import math
from pathlib import Path

import pytest
import trio

import dnpipefs
from dnpipefs import EtcdError, NotFound, SetupError, TimedOut, cluster
from dnpipefs.errors import InvalidArgument, UnknownOutcome, UsageError
from dnpipefs.writer import Writer
from tests.api.conftest import Connect
from tests.support.etcd_process import EtcdProcess, free_port


async def test_an_error_leaves_the_block_as_it_is(connect: Connect) -> None:
    with pytest.raises(NotFound):
        async with connect() as dnp:
            await dnp.reset("missing")


async def test_a_group_of_the_users_own_stays_one(connect: Connect) -> None:
    mine = ExceptionGroup("mine", [ZeroDivisionError()])
    with pytest.raises(ExceptionGroup) as caught:
        async with connect():
            raise mine
    assert caught.value is mine


async def test_an_error_beside_a_cancellation_leaves_as_it_is(connect: Connect) -> None:
    with pytest.raises(ZeroDivisionError), trio.CancelScope() as scope:  # noqa: PT012 - the block is the point
        async with connect():
            scope.cancel()
            raise ZeroDivisionError


@pytest.mark.parametrize(("mountpoint", "levels"), [(None, ["INFO"]), ("/dnp", ["WARNING"])])
async def test_a_release_with_a_fault_is_a_warning_to_mounts_only(
    mountpoint: str | None,
    levels: list[str],
    shared_server: EtcdProcess,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A push in a shell loop says nothing of it."""
    monkeypatch.setattr(cluster, "known_fault", lambda version: f"fault of {version}")
    caplog.set_level(logging.INFO, cluster.__name__)
    settings = cluster.Settings((shared_server.endpoint,), "/api/release/")
    async with cluster.open_cluster(settings, mountpoint=mountpoint):
        pass
    said = [record for record in caplog.records if record.getMessage().startswith("fault of 3.")]
    assert [record.levelname for record in said] == levels


async def test_a_connection_that_was_left_is_refused(connect: Connect) -> None:
    """Nobody does its work any more: it must not be waited for."""
    refused = "this connection is closed: use it inside the block of connect"
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            writing = trio.Event()

            async def write_on(writer: Writer) -> None:
                while True:
                    await writer.write(b"line\n")

            async def write() -> None:
                async with dnp.writer("t") as writer:
                    writing.set()
                    with pytest.raises((UsageError, UnknownOutcome)):
                        await write_on(writer)
                    with pytest.raises(UsageError, match=refused):
                        await writer.write(b"line\n")

            async with connect() as dnp:
                nursery.start_soon(write)
                await writing.wait()
        for use in (dnp.push("t", "x"), dnp.ls(), dnp.reset("t"), dnp.overview(), dnp.hosts(), dnp.health()):
            with pytest.raises(UsageError, match=refused):
                await use
        with pytest.raises(UsageError, match=refused):
            await anext(dnp.pull("t"))


@pytest.mark.parametrize("op_timeout", [0, -1, math.nan, math.inf])
async def test_a_time_that_is_none(connect: Connect, op_timeout: float) -> None:
    with pytest.raises(InvalidArgument, match="a number of seconds above 0 is needed"):
        async with connect(op_timeout=op_timeout):
            pass


async def test_cancelling_leaves_the_block(connect: Connect) -> None:
    with trio.CancelScope() as scope:
        async with connect() as dnp:
            scope.cancel()
            await dnp.push("t", "x")
    assert scope.cancelled_caught


async def test_an_etcd_of_its_own_keeps_what_was_pushed(tmp_path: Path) -> None:
    for _ in range(2):
        async with dnpipefs.connect(data_dir=tmp_path / "data") as dnp:
            await dnp.push("t", "x")
    async with dnpipefs.connect(data_dir=str(tmp_path / "data")) as dnp:
        assert [message.data async for message in dnp.pull("t")] == [b"x\n", b"x\n"]


async def test_endpoints_that_do_not_answer() -> None:
    with pytest.raises(EtcdError, match="check that etcd runs"):
        async with dnpipefs.connect([f"http://127.0.0.1:{free_port()}"]):
            pass
    with pytest.raises(SetupError, match="write host:port"):
        async with dnpipefs.connect("nonsense"):
            pass


async def test_an_etcd_that_stops_answering_is_a_timeout(server: EtcdProcess) -> None:
    async with dnpipefs.connect(server.endpoint, op_timeout=0.5) as dnp:
        await dnp.push("t", "x")
        server.pause()
        for operation in (dnp.push("t", "y"), dnp.reset("t"), dnp.ls(), dnp.push("new", "x")):
            with pytest.raises(TimedOut):
                await operation
        server.resume()
