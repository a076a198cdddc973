"""What the services rely on in etcd, held against the real one and the one in memory alike."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from dnpipefs import etcd
from dnpipefs.etcd import Client, EventKind, Op, Transaction, open_client
from tests.etcd.conftest import CALL_TIMEOUT_S
from tests.support.etcd_process import EtcdProcess
from tests.support.memory_etcd import MemoryClient, MemoryEtcd


@pytest.fixture(params=["memory", "real"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Client]:
    if request.param == "memory":
        yield MemoryClient(MemoryEtcd())
        return
    server: EtcdProcess = request.getfixturevalue("shared_server")
    async with open_client([server.endpoint], timeout=CALL_TIMEOUT_S) as client:
        yield client


async def test_revisions_and_versions_count_changes(store: Client, prefix: bytes) -> None:
    one = await store.put(prefix + b"a", b"1")
    two = await store.put(prefix + b"a", b"2")
    assert two == one + 1
    found = await store.get(prefix + b"a")
    assert found == etcd.KeyValue(prefix + b"a", b"2", one, two, 2, 0)
    nothing = await store.delete(prefix + b"b")
    assert (nothing.deleted, nothing.revision) == (0, two)
    gone = await store.delete(prefix + b"a", prev_kv=True)
    assert (gone.deleted, gone.revision, gone.previous) == (1, two + 1, [found])
    assert await store.get(prefix + b"a") is None
    again = await store.put(prefix + b"a", b"3")
    assert await store.get(prefix + b"a") == etcd.KeyValue(prefix + b"a", b"3", again, again, 1, 0)


async def test_ranges_are_half_open_and_in_order(store: Client, prefix: bytes) -> None:
    for name in (b"c", b"a", b"b", b"d"):
        await store.put(prefix + name, b"value of " + name)
    every = await store.range(prefix + b"a", prefix + b"d")
    assert [kv.key[-1:] for kv in every.kvs] == [b"a", b"b", b"c"]
    assert (every.count, every.more) == (3, False)
    some = await store.range(prefix + b"a", prefix + b"d", limit=2, keys_only=True)
    assert [(kv.key[-1:], kv.value) for kv in some.kvs] == [(b"a", b""), (b"b", b"")]
    assert some.more
    assert some.count == 3
    counted = await store.range(prefix + b"a", prefix + b"d", count_only=True)
    assert (counted.kvs, counted.count) == ([], 3)
    deleted = await store.delete(prefix + b"a", prefix + b"c")
    assert deleted.deleted == 2
    assert [kv.key[-1:] for kv in (await store.range(prefix, etcd.prefix_end(prefix))).kvs] == [b"c", b"d"]


async def test_a_transaction_is_one_revision_and_sees_its_own_writes(store: Client, prefix: bytes) -> None:
    before = await store.put(prefix + b"old", b"x")
    result = await store.transaction(
        (),
        [
            etcd.get(prefix + b"a"),
            etcd.put(prefix + b"a", b"1"),
            etcd.get(prefix + b"a"),
            etcd.delete(prefix + b"old"),
            etcd.get(prefix + b"old"),
            etcd.put(prefix + b"b", b"2"),
        ],
    )
    first, _, second, removed, third, _ = result.responses
    assert result.succeeded
    assert result.revision == before + 1
    assert isinstance(first, etcd.RangeResult)
    assert isinstance(second, etcd.RangeResult)
    assert isinstance(third, etcd.RangeResult)
    assert isinstance(removed, etcd.DeleteResult)
    assert (first.kvs, third.kvs, removed.deleted) == ([], [], 1)
    assert second.kvs[0].mod_revision == before + 1


async def test_comparisons(store: Client, prefix: bytes) -> None:
    key, absent = prefix + b"a", prefix + b"absent"
    await store.put(key, b"1")
    modified = await store.put(key, b"2")
    kv = await store.get(key)
    assert kv is not None
    cases = [
        (etcd.compare_version(key) == 2, True),
        (etcd.compare_version(key) > 1, True),
        (etcd.compare_version(key) < 2, False),
        (etcd.compare_version(absent) == 0, True),
        (etcd.compare_mod_revision(key) == modified, True),
        (etcd.compare_mod_revision(key) != modified, False),
        (etcd.compare_mod_revision(absent) == 0, True),
        (etcd.compare_mod_revision(absent) > 0, False),
        (etcd.compare_create_revision(key) == kv.create_revision, True),
        (etcd.compare_value(key) == b"2", True),
        (etcd.compare_value(absent) == b"", False),
    ]
    for compare, holds in cases:
        result = await store.transaction([compare], [etcd.get(key)], [etcd.get(absent)])
        assert result.succeeded is holds, compare
    both = await store.transaction([cases[0][0], cases[2][0]], [etcd.put(key, b"3")])
    assert not both.succeeded
    assert await store.get(key) == kv


async def test_touch_gives_a_revision_and_leaves_the_value(store: Client, prefix: bytes) -> None:
    key = prefix + b"a"
    first = await store.put(key, b"value")
    touched = await store.transaction((), [etcd.touch(key)])
    assert await store.get(key) == etcd.KeyValue(key, b"value", first, touched.revision, 2, 0)
    with pytest.raises(etcd.InvalidRequest):
        await store.transaction((), [etcd.put(prefix + b"other", b""), etcd.touch(prefix + b"absent")])
    assert await store.get(prefix + b"other") is None


async def test_a_failed_transaction_does_nothing_of_what_it_would(store: Client, prefix: bytes) -> None:
    key, lease = prefix + b"a", await store.lease_grant(60)
    await store.lease_revoke(lease.id)
    with pytest.raises(etcd.LeaseNotFound):
        await store.transaction((), [etcd.put(key, b"1"), etcd.put(prefix + b"b", b"", lease=lease.id)])
    assert await store.get(key) is None
    refused = await store.transaction([etcd.compare_version(key) == 7], [etcd.put(key, b"1", lease=lease.id)])
    assert not refused.succeeded  # it compares before it looks at the lease


@pytest.mark.parametrize(
    "operations",
    [
        (etcd.put(b"/twice", b"1"), etcd.put(b"/twice", b"2")),
        (etcd.put(b"/twice", b"1"), etcd.touch(b"/twice")),
        (etcd.put(b"/b", b"1"), etcd.delete(b"/b")),
        (etcd.delete(b"/a", b"/c"), etcd.put(b"/b", b"1")),
        tuple(etcd.delete(b"/many/%d" % number) for number in range(129)),
    ],
    ids=["put twice", "put and touched", "put and deleted", "put in a deleted range", "129 operations"],
)
async def test_what_one_transaction_must_not_have(store: Client, operations: tuple[Op, ...]) -> None:
    with pytest.raises(etcd.InvalidRequest):
        await store.transaction((), operations)


async def test_what_one_transaction_may_have(store: Client, prefix: bytes) -> None:
    await store.transaction((), [etcd.put(prefix + b"%03d" % number, b"") for number in range(128)])
    result = await store.transaction(
        (),
        [
            etcd.delete(prefix + b"000", prefix + b"002"),
            etcd.delete(prefix + b"001", prefix + b"003"),
            etcd.put(prefix + b"003", b"new"),
        ],
    )
    counts = [answer.deleted for answer in result.responses if isinstance(answer, etcd.DeleteResult)]
    assert counts == [2, 1]


async def test_a_request_is_at_most_a_megabyte_and_a_half(store: Client, prefix: bytes) -> None:
    parts = [etcd.put(prefix + b"%d" % number, bytes(520_000)) for number in range(3)]
    await store.transaction((), parts)
    with pytest.raises(etcd.RequestTooLarge):
        await store.transaction((), [*parts, etcd.put(prefix + b"3", bytes(20_000))])


async def test_a_lease_takes_its_keys_along_at_one_revision(store: Client, prefix: bytes) -> None:
    lease, other = await store.lease_grant(60), await store.lease_grant(60)
    for name in (b"a", b"b", b"moved", b"freed"):
        await store.put(prefix + name, b"", lease=lease.id)
    await store.put(prefix + b"moved", b"", lease=other.id)
    revision = await store.put(prefix + b"freed", b"")
    assert await store.lease_keepalive_once(lease.id) > 0
    await store.lease_revoke(lease.id)
    found = await store.range(prefix, etcd.prefix_end(prefix))
    assert [kv.key.removeprefix(prefix) for kv in found.kvs] == [b"freed", b"moved"]
    assert found.revision == revision + 1
    with pytest.raises(etcd.LeaseNotFound):
        await store.lease_keepalive_once(lease.id)
    with pytest.raises(etcd.LeaseNotFound):
        await store.lease_revoke(lease.id)


async def test_a_watch_brings_whole_revisions_of_its_range(store: Client, prefix: bytes) -> None:
    await store.put(prefix + b"before", b"")
    start = await store.put(prefix + b"a", b"1")
    async with store.watch(prefix + b"a", prefix + b"c", start_revision=start) as watch:
        transaction = Transaction()
        transaction.put(prefix + b"b", b"2")
        transaction.put(prefix + b"c", b"outside")
        transaction.delete(prefix + b"a")
        last = (await store.commit(transaction)).revision
        events: list[etcd.Event] = []
        async for batch in watch:
            events += batch.events
            if batch.revision == last:
                break
    assert [(event.kind, event.kv.key[-1:], event.kv.mod_revision) for event in events] == [
        (EventKind.PUT, b"a", start),
        (EventKind.PUT, b"b", last),
        (EventKind.DELETE, b"a", last),
    ]
    assert [event.kv.value for event in events] == [b"1", b"2", b""]
