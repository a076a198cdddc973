"""A large topic is walked in little memory, and all of it is read."""

import subprocess
import sys
from random import Random

import pytest

from dnpipefs import Dnp
from dnpipefs.cluster import open_cluster
from dnpipefs.core.batch import Chunk
from dnpipefs.core.findings import Finding, Repair, Rule
from dnpipefs.core.keys import KeySchema
from dnpipefs.core.sealing import Policy
from dnpipefs.fsck.run import Checker, Verdict
from dnpipefs.log.clock import SystemClock
from tests.cli.test_topics import MEASURE_PEAK
from tests.fsck.conftest import Lab, push

SEGMENTS_BYTES = 48 << 20
BODIES = 6
TAIL = 1_000
MANY = 300
RESIDENT_LIMIT_KB = 100_000
"""Above what Python with gRPC takes (some 55 MB) and what is under way, below that and what is stored."""


async def test_a_large_topic_in_little_memory(bare: Lab) -> None:
    random = Random(1)
    async with open_cluster(bare.settings) as cluster:
        await Dnp(cluster).push("t", "first")
        bare.topic = await bare.id_of(cluster, b"t")
        for _ in range(SEGMENTS_BYTES // 200_000):
            await push(bare, cluster, Chunk.of_message(random.randbytes(200_000)))
        for _ in range(BODIES):
            await push(bare, cluster, Chunk.of_message(random.randbytes(4 << 20)))
        await bare.sealer(Policy()).seal(bare.topic)
    session = await bare.begin_session()
    for sequence in range(1, TAIL + 1):
        await bare.append(session, sequence, b"line\n")
    stored = sum(len(message) for message in bare.messages)
    done = subprocess.run(
        [
            *(sys.executable, "-c", MEASURE_PEAK, sys.executable, "-m", "dnpipefs", "fsck"),
            *("--endpoints", bare.settings.endpoints[0], "--prefix", bare.settings.prefix),
        ],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    said, peak = done.stdout.splitlines()
    assert "0 errors, 0 warnings" in said
    assert int(said.split(", ")[2].split()[0]) > stored > (RESIDENT_LIMIT_KB << 10) * 0.7
    assert int(peak) < RESIDENT_LIMIT_KB
    await bare.client.lease_revoke(session)


async def test_findings_are_not_compared_pair_by_pair(bare: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which took minutes when there were very many to be mended."""
    findings = [
        Finding(Rule.DEAD_PENDING, b"%d" % number, "", repair=Repair("", deletes=(b"none/%d" % number,)))
        for number in range(MANY)
    ]
    looks = iter([findings, []])
    compared, told = 0, 0
    equal = Repair.__eq__

    def counting(self: Repair, other: object) -> bool:
        nonlocal compared
        compared += 1
        return equal(self, other)

    async def look() -> list[Finding]:
        return next(looks)

    async def tell(verdict: Verdict) -> None:
        nonlocal told
        told += verdict.mended

    monkeypatch.setattr(Repair, "__eq__", counting)
    keys = KeySchema(bare.settings.prefix)
    checker = Checker(bare.client, keys, SystemClock(), tell, repair=True, op_timeout=10)
    await checker._settle(look, lambda: None)  # type: ignore[arg-type, return-value]
    assert told == MANY
    assert compared < MANY
