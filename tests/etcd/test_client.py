"""Keys, transactions, leases and maintenance against a real server that nobody harms."""

from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from dnpipefs.errors import SetupError
from dnpipefs.etcd import (
    ALL_KEYS_END,
    Client,
    Compacted,
    Compare,
    Credentials,
    DeleteResult,
    FutureRevision,
    InvalidRequest,
    LeaseExists,
    LeaseNotFound,
    PutResult,
    RangeResult,
    RequestTooLarge,
    compare_create_revision,
    compare_mod_revision,
    compare_value,
    compare_version,
    delete,
    get,
    open_client,
    prefix_end,
    put,
)
from dnpipefs.etcd.endpoint import parse_address
from tests.support.etcd_process import EtcdProcess

MIB = 2**20


@given(st.binary(max_size=4), st.binary(max_size=4))
def test_prefix_end_bounds_the_prefix(prefix: bytes, rest: bytes) -> None:
    end = prefix_end(prefix)
    assert end == ALL_KEYS_END or prefix + rest < end
    assert end == ALL_KEYS_END or not end.startswith(prefix)
    assert (end == ALL_KEYS_END) == (not prefix.strip(b"\xff"))


@pytest.mark.parametrize(
    ("text", "tls", "target", "secure"),
    [
        ("http://host:2379", True, "dns:///host:2379", False),
        ("https://host:2379/", False, "dns:///host:2379", True),
        ("host:2379", False, "dns:///host:2379", False),
        ("host:2379", True, "dns:///host:2379", True),
        ("[::1]:2379", False, "dns:///[::1]:2379", False),
        ("unix:/run/etcd.sock", True, "unix:/run/etcd.sock", False),
        ("unix:///run/etcd.sock", True, "unix:/run/etcd.sock", False),
    ],
)
def test_addresses(text: str, tls: bool, target: str, secure: bool) -> None:
    address = parse_address(text, tls=tls)
    assert (address.text, address.target, address.tls) == (text, target, secure)


@pytest.mark.parametrize("text", ["", "host", "ftp://host:1", "host:port", "http://host:1/path", "a b:1"])
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(SetupError):
        parse_address(text, tls=False)


async def test_no_endpoints_are_a_setup_error() -> None:
    with pytest.raises(SetupError):
        async with open_client([]):
            pass


def test_password_is_not_shown() -> None:
    assert "secret" not in repr(Credentials("root", "secret"))


async def test_put_get_delete(client: Client, prefix: bytes) -> None:
    assert await client.get(prefix) is None
    first = await client.put(prefix, b"one")
    second = await client.put(prefix, b"two")
    kv = await client.get(prefix)
    assert kv is not None
    assert kv == (prefix, b"two", first, second, 2, 0)
    old = await client.get(prefix, revision=first)
    assert old is not None
    assert old.value == b"one"
    assert await client.delete(prefix, prev_kv=True) == DeleteResult(1, second + 1, [kv])
    assert (await client.delete(prefix)).deleted == 0


async def test_range(client: Client, prefix: bytes) -> None:
    for number in range(5):
        await client.put(prefix + b"%d" % number, b"v")
    whole = await client.get_prefix(prefix)
    assert [kv.key[-1:] for kv in whole.kvs] == [b"0", b"1", b"2", b"3", b"4"]
    assert (whole.count, whole.more) == (5, False)
    cut = await client.range(prefix + b"1", prefix + b"4", limit=2, keys_only=True, serializable=True)
    assert [(kv.key[-1:], kv.value) for kv in cut.kvs] == [(b"1", b""), (b"2", b"")]
    assert (cut.count, cut.more) == (3, True)
    counted = await client.get_prefix(prefix, count_only=True)
    assert (counted.kvs, counted.count) == ([], 5)
    assert (await client.range(prefix + b"3", ALL_KEYS_END)).count >= 2
    assert (await client.get_prefix(b"")).count >= 5


async def test_transaction(client: Client, prefix: bytes) -> None:
    await client.put(prefix + b"old", b"1")
    result = await client.transaction(
        [compare_version(prefix + b"new") == 0],
        [put(prefix + b"new", b"x"), get(prefix + b"new"), delete(prefix + b"old", prev_kv=True)],
        [get(prefix)],
    )
    assert result.succeeded
    done, read, removed = result.responses
    assert done == PutResult(result.revision)
    assert isinstance(read, RangeResult)
    assert read.kvs[0].value == b"x"
    assert isinstance(removed, DeleteResult)
    assert (removed.deleted, removed.previous[0].value) == (1, b"1")
    again = await client.transaction([compare_version(prefix + b"new") == 0], [], [get(prefix + b"new")])
    assert not again.succeeded
    assert isinstance(again.responses[0], RangeResult)


async def test_compares(client: Client, prefix: bytes) -> None:
    key = prefix + b"key"
    created = await client.put(key, b"b")
    changed = await client.put(key, b"m")

    async def holds(compare: Compare) -> bool:
        return (await client.transaction([compare], [])).succeeded

    assert await holds(compare_version(key) == 2)
    assert await holds(compare_version(key) != 1)
    assert await holds(compare_create_revision(key) == created)
    assert await holds(compare_mod_revision(key) > created)
    assert await holds(compare_mod_revision(key) < changed + 1)
    assert not await holds(compare_mod_revision(key) != changed)
    assert await holds(compare_value(key) == b"m")
    assert await holds(compare_value(key) > b"a")
    assert not await holds(compare_value(prefix + b"none") == b"")
    assert await holds(compare_create_revision(prefix + b"none") == 0)


async def test_range_compare_looks_at_every_key(client: Client, prefix: bytes) -> None:
    end = prefix_end(prefix)
    assert (await client.transaction([compare_version(prefix, end) == 0], [])).succeeded
    await client.put(prefix + b"1", b"")
    last = await client.put(prefix + b"2", b"")
    assert (await client.transaction([compare_mod_revision(prefix, end) < last + 1], [])).succeeded
    assert not (await client.transaction([compare_mod_revision(prefix, end) < last], [])).succeeded
    assert not (await client.transaction([compare_version(prefix, end) == 0], [])).succeeded


async def test_large_answers(client: Client, prefix: bytes) -> None:
    for number in range(6):
        await client.put(prefix + b"%d" % number, bytes(MIB))
    assert sum(len(kv.value) for kv in (await client.get_prefix(prefix)).kvs) == 6 * MIB
    await client.delete(prefix, prefix_end(prefix))


@pytest.mark.parametrize("size", [2 * MIB - 64 * 1024, 4 * MIB])
async def test_request_too_large_is_definite(client: Client, prefix: bytes, size: int) -> None:
    """Above etcd's limit, and above what its gRPC layer takes at all."""
    with pytest.raises(RequestTooLarge):
        await client.put(prefix, bytes(size))
    assert await client.get(prefix) is None


async def test_malformed_is_definite(client: Client, prefix: bytes) -> None:
    with pytest.raises(InvalidRequest, match="duplicate key"):
        await client.transaction([], [put(prefix, b"1"), put(prefix, b"2")])
    with pytest.raises(InvalidRequest, match="too many operations"):
        await client.transaction([], [put(prefix + b"%d" % n, b"") for n in range(129)])
    with pytest.raises(InvalidRequest):
        await client.put(b"", b"")
    with pytest.raises(FutureRevision):
        await client.get(prefix, revision=10**9)


async def test_lease(client: Client, prefix: bytes) -> None:
    lease = await client.lease_grant(60)
    assert lease.ttl == 60
    await client.put(prefix, b"", lease=lease.id)
    assert await client.lease_keepalive_once(lease.id) == 60
    left = await client.lease_time_to_live(lease.id, keys=True)
    assert (left.granted_ttl, left.keys) == (60, [prefix])
    assert 0 < left.ttl <= 60
    with pytest.raises(LeaseExists):
        await client.lease_grant(60, lease_id=lease.id)
    await client.lease_revoke(lease.id)
    assert await client.get(prefix) is None
    with pytest.raises(LeaseNotFound):
        await client.lease_revoke(lease.id)
    with pytest.raises(LeaseNotFound):
        await client.lease_keepalive_once(lease.id)
    with pytest.raises(LeaseNotFound):
        await client.lease_time_to_live(lease.id)


async def test_lease_runs_out(client: Client, prefix: bytes) -> None:
    lease = await client.lease_grant(1)
    revision = await client.put(prefix, b"", lease=lease.id)
    async with client.watch(prefix, start_revision=revision + 1) as watch:
        with trio.fail_after(20):
            await watch.__anext__()
    with pytest.raises(LeaseNotFound):
        await client.lease_keepalive_once(lease.id)


async def test_revoked_lease_in_a_transaction_is_definite(client: Client, prefix: bytes) -> None:
    lease = await client.lease_grant(60)
    await client.lease_revoke(lease.id)
    with pytest.raises(LeaseNotFound):
        await client.transaction(
            [compare_version(prefix) == 0], [put(prefix + b"a", b""), put(prefix, b"", lease=lease.id)]
        )
    assert (await client.get_prefix(prefix)).count == 0


async def test_maintenance(server: EtcdProcess) -> None:
    async with open_client([server.endpoint]) as client:
        for number in range(10):
            revision = await client.put(b"key", b"%d" % number)
        status = await client.status(server.endpoint)
        assert status.version.startswith("3.")
        assert status.leader == status.member_id
        assert (status.revision, status.errors, status.is_learner) == (revision, (), False)
        assert 0 < status.db_size_in_use <= status.db_size
        (member,) = await client.members()
        assert (member.id, member.name) == (status.member_id, "default")
        assert await client.alarms() == []
        await client.compact(revision, physical=True)
        with pytest.raises(Compacted):
            await client.compact(revision)
        with pytest.raises(Compacted):
            await client.get(b"key", revision=revision - 1)
        await client.defragment(server.endpoint)
        assert (await client.hash(server.endpoint)).compact_revision == revision
        with pytest.raises(SetupError):
            await client.status("http://elsewhere:1")


async def test_unix_socket(tmp_path: Path, etcd_binary: str) -> None:
    server = EtcdProcess(tmp_path / "e", etcd_binary, unix=True)
    try:
        server.start()
        async with open_client([server.endpoint]) as client:
            await client.put(b"key", b"value")
            assert (await client.check()).endpoint == server.endpoint
    finally:
        server.kill()


async def test_errors_of_the_body_come_out_as_they_are(client: Client, shared_server: EtcdProcess) -> None:
    with pytest.raises(KeyError):
        async with (
            open_client([shared_server.endpoint]) as other,
            other.watch(b"key"),
        ):
            raise KeyError


async def test_cancellation_in_the_middle_of_a_call(server: EtcdProcess) -> None:
    async with open_client([server.endpoint], timeout=20) as client:
        await client.put(b"key", b"before")
        server.pause()
        with trio.move_on_after(0.1) as scope:
            await client.get(b"key")
        assert scope.cancelled_caught
        server.resume()
        kv = await client.get(b"key")
        assert kv is not None
        assert kv.value == b"before"


async def test_many_calls_at_once(client: Client, prefix: bytes) -> None:
    async with trio.open_nursery() as nursery:
        for number in range(256):
            nursery.start_soon(client.put, prefix + b"%d" % number, b"")
    assert (await client.get_prefix(prefix, count_only=True)).count == 256
