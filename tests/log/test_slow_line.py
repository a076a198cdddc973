"""An etcd that answers, but takes longer than a call has unless somebody says otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import trio
from trio.testing import MockClock

from dnpipefs import etcd
from dnpipefs.core import generation
from dnpipefs.core.batch import Chunk, encode
from dnpipefs.core.keys import KeySchema
from dnpipefs.core.names import FileId, Revision, SessionId
from dnpipefs.core.records import encode_time
from dnpipefs.core.sealing import Policy
from dnpipefs.core.tails import Tails
from dnpipefs.log.clock import SystemClock
from dnpipefs.log.content import Content
from dnpipefs.log.sealer import Sealer
from dnpipefs.log.staleness import Staleness
from dnpipefs.log.views import Views
from tests.support.memory_etcd import MemoryClient, MemoryEtcd

KEYS, TOPIC, SESSION = KeySchema(), FileId(7), SessionId(9)
TAKES_S: Final = 12.0
OP_TIMEOUT_S: Final = 30.0


class SlowLine(MemoryClient):
    """Whose answers take TAKES_S."""

    async def transaction(
        self,
        compare: Sequence[etcd.Compare],
        success: Sequence[etcd.Op],
        failure: Sequence[etcd.Op] = (),
        *,
        timeout: float | None = None,
    ) -> etcd.TransactionResult:
        limit = 5.0 if timeout is None else timeout
        await trio.sleep(min(limit, TAKES_S))
        if limit < TAKES_S:
            raise etcd.Ambiguous("no answer in time")
        return await super().transaction(compare, success, failure)


async def topic_with_a_line() -> SlowLine:
    client = SlowLine(MemoryEtcd())
    quick = MemoryClient(client.store)
    writes = generation.begin(KEYS, TOPIC, 1)
    began = await quick.transaction((), [etcd.put(key, value) for key, value in writes])
    raw = encode(
        [Chunk.of_lines(b"line\n")],
        generation=Revision(began.revision),
        time_ns=1,
        session=SESSION,
        sequence=1,
    )
    batch = etcd.put(KEYS.batch(TOPIC, SESSION, 1, 5, 1), raw)
    await quick.transaction((), [batch, etcd.put(KEYS.last(TOPIC), encode_time(1))])
    return client


def content(client: SlowLine) -> Content:
    return Content(client, KEYS, op_timeout=OP_TIMEOUT_S)


async def test_a_topic_is_read_in_the_time_of_an_operation(autojump_clock: MockClock) -> None:
    client = await topic_with_a_line()
    views = Views(client, KEYS, content(client), Tails(10), Staleness(allowed=False), op_timeout=OP_TIMEOUT_S)
    async with trio.open_nursery() as nursery:
        await nursery.start(views.run)
        async with views.using(TOPIC) as live:
            assert live.view is not None
            assert live.view.end == 5
        nursery.cancel_scope.cancel()


async def test_a_topic_is_sealed_all_the_same(autojump_clock: MockClock) -> None:
    client = await topic_with_a_line()
    sealer = Sealer(client, KEYS, SystemClock(), content(client), lambda _: Policy())
    view = await sealer.seal(TOPIC)
    assert (len(view.entries), view.end) == (0, 5)
