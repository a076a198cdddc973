"""Connections to a real etcd that the tests of this package share, each test below a prefix of its own."""

import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial

import pytest

import dnpipefs
from dnpipefs import Dnp
from tests.etcd.conftest import server, shared_server
from tests.support.etcd_process import EtcdProcess

__all__ = ["server", "shared_server"]

_numbers = itertools.count()

Connect = Callable[..., AbstractAsyncContextManager[Dnp]]


@pytest.fixture
def connect(shared_server: EtcdProcess) -> Connect:
    """Connect to this test's cluster; each connection is a host."""
    return partial(dnpipefs.connect, shared_server.endpoint, prefix=f"/api/{next(_numbers)}/")


@pytest.fixture
async def dnp(connect: Connect) -> AsyncIterator[Dnp]:
    async with connect() as dnp:
        yield dnp


@pytest.fixture
async def other(connect: Connect, dnp: Dnp) -> AsyncIterator[Dnp]:
    """Another host of the same cluster."""
    async with connect() as other:
        yield other
