"""A cluster's data on a real etcd, laid down as hosts do, with nobody left who would change it."""

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest
import trio

import dnpipefs
from dnpipefs import Dnp, etcd
from dnpipefs.cluster import Cluster, Settings, open_cluster
from dnpipefs.core.append import Fence
from dnpipefs.core.batch import Chunk, Payload
from dnpipefs.core.keys import KeyRange, KeySchema, prefix_range
from dnpipefs.core.names import ROOT, FileId, Revision, SessionId, parse_path
from dnpipefs.core.records import Head, encode_session, encode_time
from dnpipefs.core.sealing import Policy, Retention
from dnpipefs.fsck import Checker, Report, Verdict
from dnpipefs.log.clock import SystemClock
from dnpipefs.log.content import Content
from dnpipefs.log.sealer import Sealer
from tests.etcd.conftest import server, shared_server
from tests.support.etcd_process import EtcdProcess

__all__ = ["server", "shared_server"]

CALL_TIMEOUT_S = 20.0
LINES = 100
LARGE_BYTES = 300_000
MANY_PARTS_BYTES = 3_000_000
SEALED_AT_ONCE = 7
ONE_MESSAGE_A_SEGMENT = Policy(Retention(messages=8))
"""If no more than that are sealed at once: what retention removes anyway is merged."""

_numbers = itertools.count()


@dataclass
class Checked:
    """What a run of fsck came to."""

    report: Report
    verdicts: list[Verdict] = field(default_factory=list)

    @property
    def left(self) -> list[str]:
        """The rules that are broken."""
        return sorted({found.finding.rule.code for found in self.verdicts if not found.mended})

    @property
    def mended(self) -> list[str]:
        return sorted({found.finding.rule.code for found in self.verdicts if found.mended})

    def what(self, code: str) -> Verdict:
        """Return the one finding of a rule."""
        [found] = [verdict for verdict in self.verdicts if verdict.finding.rule.code == code]
        return found


class Lab:
    """The keys of one prefix, to be read and damaged."""

    def __init__(self, client: etcd.Client, endpoint: str, prefix: str) -> None:
        self.client = client
        self.keys = KeySchema(prefix)
        self.settings = Settings((endpoint,), prefix, Path("/nowhere"), op_timeout=CALL_TIMEOUT_S)
        self.topic = FileId(0)
        self.messages: list[bytes] = []
        """What the topic `t` holds."""

    async def check(self, *paths: str, repair: bool = False) -> Checked:
        checked = Checked(Report())

        async def tell(verdict: Verdict) -> None:
            checked.verdicts.append(verdict)
            await trio.lowlevel.checkpoint()  # as what is written waits for its reader

        clock = SystemClock()
        checker = Checker(
            self.client, self.keys, clock, tell, repair=repair, op_timeout=self.settings.op_timeout
        )
        checked.report = await checker.run([parse_path(path) for path in paths])
        return checked

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Dnp]:
        async with dnpipefs.connect(self.settings.endpoints, prefix=self.settings.prefix) as dnp:
            yield dnp

    async def pull(self, topic: str = "t") -> list[bytes]:
        async with self.connect() as dnp:
            return [message.data async for message in dnp.pull(topic)]

    async def id_of(self, cluster: Cluster, name: bytes) -> FileId:
        return (await cluster.namespace.lookup(ROOT, name)).id

    def sealer(self, policy: Policy = ONE_MESSAGE_A_SEGMENT) -> Sealer:
        content = Content(self.client, self.keys, op_timeout=CALL_TIMEOUT_S)
        return Sealer(self.client, self.keys, SystemClock(), content, lambda _: policy)

    # ------------------------------------------------------------------ reading and damaging

    @property
    def everything(self) -> KeyRange:
        return prefix_range(self.keys.prefix)

    async def value(self, key: bytes) -> bytes:
        found = await self.client.get(key)
        assert found is not None, key
        return found.value

    async def all(self, part: KeyRange) -> list[etcd.KeyValue]:
        return (await self.client.range(part.start, part.end)).kvs

    async def generation(self) -> Revision:
        epoch = await self.client.get(self.keys.epoch(self.topic))
        assert epoch is not None
        return Revision(epoch.mod_revision)

    async def head(self) -> Head:
        key = self.keys.head(self.topic)
        return Head.decode(key, await self.value(key))

    async def batches(self) -> list[etcd.KeyValue]:
        """Return the batches of the tail in their order."""
        found = await self.all(self.keys.tail(self.topic))
        batches = [kv for kv in found if kv.key != self.keys.mark(self.topic)]
        return sorted(batches, key=lambda kv: kv.mod_revision)

    async def put(self, key: bytes, value: bytes) -> None:
        """Put something by hand, and what every change of a topic puts, so that only the value is wrong."""
        operations = [etcd.put(key, value)]
        if key != self.keys.last(self.topic):
            operations.append(etcd.touch(self.keys.last(self.topic)))
        await self.client.transaction((), operations)

    async def delete(self, key: bytes) -> None:
        assert (await self.client.delete(key)).deleted == 1, key

    async def flip(self, key: bytes, at: int = -1) -> None:
        """Flip one bit of a value."""
        value = bytearray(await self.value(key))
        value[at] ^= 0x10
        await self.put(key, bytes(value))

    # ------------------------------------------------------------------ a host of the test's own

    async def begin_session(self) -> SessionId:
        lease = await self.client.lease_grant(60)
        session = SessionId(lease.id)
        value = encode_session(host="lab", pid=1, mountpoint=None, version="0")
        await self.client.put(self.keys.session(session), value, lease=lease.id)
        return session

    async def append(self, session: SessionId, sequence: int, data: bytes) -> bytes:
        """Append as a host does, without a word to anybody; return the key of the batch."""
        keys, topic, generation = self.keys, self.topic, await self.generation()
        payload = Payload.of([Chunk.of_message(data)])
        raw = payload.encode(generation=generation, time_ns=1, session=session, sequence=sequence)
        key = keys.batch(topic, session, sequence, payload.size, payload.messages)
        writer = keys.writer(topic, session)
        result = await self.client.transaction(
            [
                etcd.compare_mod_revision(keys.epoch(topic)) == generation,
                etcd.compare_version(writer) == sequence - 1,
            ],
            [
                etcd.put(writer, Fence(generation, sequence, 1).encode(), lease=session),
                etcd.put(key, raw),
                etcd.put(keys.last(topic), encode_time(1)),
            ],
        )
        assert result.succeeded
        self.messages.append(data)
        return key


async def push(lab: Lab, cluster: Cluster, chunk: Chunk) -> None:
    await cluster.log.append(lab.topic, chunk, born=await lab.generation())
    lab.messages += (
        Payload.of([chunk]).body.splitlines(keepends=True) if chunk.lengths is None else [chunk.data]
    )


async def push_and_seal(lab: Lab, cluster: Cluster, lines: int) -> None:
    """Push lines, most of which become a segment each."""
    for number in range(lines):
        await push(lab, cluster, Chunk.of_lines(b"line %d\n" % number))
        if (number + 1) % SEALED_AT_ONCE == 0:
            await lab.sealer().seal(lab.topic)


async def lay_down(lab: Lab, lines: int = LINES) -> None:
    """Make `t`: many segments and a large batch in the index, then lines and large batches in the tail."""
    random = Random(1)
    async with open_cluster(lab.settings) as cluster:
        dnp = Dnp(cluster)
        await dnp.mkdir("team")
        await dnp.push("team/other", "another topic")
        await dnp.push("t", "first")
        lab.topic, lab.messages = await lab.id_of(cluster, b"t"), [b"first\n"]
        await push_and_seal(lab, cluster, lines)
        await push(lab, cluster, Chunk.of_message(random.randbytes(LARGE_BYTES)))
        await push(lab, cluster, Chunk.of_message(b"two\nlines\n"))
        await lab.sealer().seal(lab.topic)
        for number in range(3):
            await push(lab, cluster, Chunk.of_lines(b"tail %d\n" % number))
        await push(lab, cluster, Chunk.of_message(random.randbytes(LARGE_BYTES)))
        await push(lab, cluster, Chunk.of_message(random.randbytes(MANY_PARTS_BYTES)))
        await push(lab, cluster, Chunk.of_lines(b"the end\n"))


@pytest.fixture
async def bare(shared_server: EtcdProcess) -> AsyncIterator[Lab]:
    """A prefix with nothing in it."""
    async with etcd.open_client([shared_server.endpoint], timeout=CALL_TIMEOUT_S) as client:
        yield Lab(client, shared_server.endpoint, f"/fsck/{next(_numbers)}/")


@pytest.fixture
async def lab(bare: Lab) -> Lab:
    await lay_down(bare)
    assert (await bare.check()).verdicts == []
    return bare
