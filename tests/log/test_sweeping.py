"""What is removed though the order for it was somebody else's, or is gone."""

from __future__ import annotations

from typing import Any

import pytest
from trio.testing import MockClock

from dnpipefs import etcd
from dnpipefs.core.keys import Beside, BodyKey
from dnpipefs.core.names import FileId, Offset, Revision, SessionId
from dnpipefs.errors import CorruptData
from dnpipefs.log.sweeper import ROUND_S, Sweeper
from tests.log.conftest import Hosts
from tests.support.network import Fate


async def test_a_topic_deleted_without_order_is_swept_though_an_earlier_order_failed(
    hosts: Hosts, mock_clock: MockClock
) -> None:
    """Etcd is full, so the deletion leaves no order; the order of a reset is there, and goes meanwhile."""
    host = await hosts.start()
    topic = await hosts.topic()
    await hosts.append(host, topic, b"a\n", b"b\n")
    keys, store, network = hosts.cluster.keys, hosts.cluster.store, hosts.cluster.network
    await store.put(keys.trash(topic.id), b'{"time":1}')
    ended = [keys.epoch(topic.id), keys.head(topic.id), keys.last(topic.id), keys.mark(topic.id)]
    await store.transaction((), [etcd.delete(key) for key in ended])
    network.open = False
    host.log.forget(topic.id)
    [orders] = await hosts.gates("range")
    orders.open()
    [look] = await hosts.gates("read")
    look.open(Fate.REFUSE)
    await network.settle()
    await store.delete(keys.trash(topic.id))  # by a host that had looked before the deletion
    network.open = True
    await hosts.pass_time(ROUND_S + 5, steps=20)
    await hosts.cluster.catch_up()
    assert [hosts.keys(area) for area in (b"tail", b"writer", b"trash", b"seg")] == [[], [], [], []]


async def test_an_order_that_does_not_parse_keeps_no_other_from_being_carried_out(
    hosts: Hosts, mock_clock: MockClock
) -> None:
    mock_clock.autojump_threshold = 0
    keys, store = hosts.cluster.keys, hosts.cluster.store
    for name in (b"0", b"t", b"zz"):
        await store.put(keys.all_trash.start + name, b"{}")
        await store.put(keys.all_pending.start + name, b"{}")
    deleted = FileId(0xDEAD)
    order = keys.pending(deleted, Revision(1), BodyKey(SessionId(7), 1, Beside(1, 5)))
    planted = (keys.trash(deleted), keys.index_page(deleted, Revision(1), Offset(0)), order)
    for key in planted:
        await store.put(key, b"{}")
    with pytest.raises(CorruptData, match="is not an order to remove"):
        await Sweeper(store, keys).sweep_all()
    left = {kv.key for kv in (await store.get_prefix(keys.prefix)).kvs}
    assert left >= {keys.all_trash.start + b"t", keys.all_pending.start + b"t"}
    assert left.isdisjoint(planted)


async def test_a_key_that_does_not_parse_keeps_nothing_else_from_being_swept(
    hosts: Hosts, mock_clock: MockClock
) -> None:
    keys, store = hosts.cluster.keys, hosts.cluster.store
    host = await hosts.start()
    topics = [await hosts.topic(), await hosts.topic(), await hosts.topic()]
    ours, theirs = [], []
    for topic in topics:
        await hosts.append(host, topic, b"a\n")
        await host.log.reset(topic.id)
        ours.append(keys.index_page(topic.id, Revision(1), Offset(0)))
        theirs.append(keys.tail(topic.id).start + b"zzz")
    strange = theirs[0]
    await store.put(strange, b"")
    for key in ours:
        await store.put(key, b"{}")
        await store.put(keys.trash(topics[ours.index(key)].id), b"{}")
    mock_clock.autojump_threshold = 0  # sweeping pauses; etcd is asked without a simulated network
    with pytest.raises(CorruptData, match="zzz"):
        await Sweeper(store, keys).sweep_all()
    left = {kv.key for kv in (await store.get_prefix(keys.prefix)).kvs}
    assert left >= {strange, keys.trash(topics[0].id)}
    assert left.isdisjoint([*ours, *(keys.trash(topic.id) for topic in topics[1:])])


async def test_orders_of_the_living_keep_none_of_the_dead_from_being_carried_out(
    hosts: Hosts, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as are looked at in one step stand before it."""
    monkeypatch.setattr("dnpipefs.log.sweeper.STEP_KEYS", 3)
    keys, store = hosts.cluster.keys, hosts.cluster.store
    host = await hosts.start()
    living = host.sessions.current()
    assert living is not None
    of_the_living = [keys.pending(FileId(1), Revision(1), BodyKey(living, n, Beside(n, 5))) for n in range(7)]
    body = BodyKey(SessionId(7), 1, Beside(1, 5))
    of_the_dead = [keys.pending(FileId(2), Revision(1), body), *keys.body_parts(FileId(2), Revision(1), body)]
    for key in (*of_the_living, *of_the_dead):
        await store.put(key, b"{}")
    mock_clock.autojump_threshold = 0
    await Sweeper(store, keys).sweep_all()
    pending, bodies = keys.all_pending, keys.bodies(FileId(2))
    assert [kv.key for kv in (await store.range(pending.start, pending.end)).kvs] == of_the_living
    assert (await store.range(bodies.start, bodies.end)).kvs == []


async def test_invariant_7_many_orders_are_read_a_page_at_a_time(
    hosts: Hosts, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after the removal of a directory of a million topics by a host that died."""
    monkeypatch.setattr("dnpipefs.log.sweeper.STEP_KEYS", 3)
    keys, store = hosts.cluster.keys, hosts.cluster.store
    for topic in range(1, 11):
        await store.put(keys.trash(FileId(topic)), b"{}")
        await store.put(keys.tail(FileId(topic)).start + b"left", b"")
    largest, read = 0, store.range

    async def noted(*args: Any, **kwargs: Any) -> etcd.RangeResult:
        nonlocal largest
        found = await read(*args, **kwargs)
        largest = max(largest, len(found.kvs))
        return found

    monkeypatch.setattr(store, "range", noted)
    mock_clock.autojump_threshold = 0
    await Sweeper(store, keys).sweep_all()
    assert largest == 3
    part = keys.all_trash
    assert (await read(part.start, part.end)).kvs == []
    assert (await read(keys.all_tails.start, keys.all_tails.end)).kvs == []
