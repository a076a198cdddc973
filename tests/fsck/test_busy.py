"""A sound cluster breaks no rule at any moment, whatever goes on in it; nor does a check disturb it."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from random import Random
from typing import cast

import pytest
import trio
import trio.testing

from dnpipefs import Dnp, TopicGone, etcd
from dnpipefs.cluster import Cluster, open_cluster
from dnpipefs.core.batch import Chunk
from dnpipefs.core.keys import KeySchema
from dnpipefs.core.names import FileId, Revision
from dnpipefs.core.sealing import Policy, Retention
from dnpipefs.errors import NotFound
from dnpipefs.fsck.run import TRIES
from tests.etcd.conftest import CALL_TIMEOUT_S
from tests.fsck.conftest import Lab
from tests.fsck.faults import NOBODY
from tests.fsck.faults_of_leftovers import plant_pending
from tests.support.etcd_process import EtcdProcess

CHECKS = 12
STEPS = 5
"""What everybody does in a check."""
WITHIN_S = 120.0


class Life:
    """Hosts that do all that hosts do, as fast as they can; what each has done is counted."""

    def __init__(self, lab: Lab, cluster: Cluster, seed: int) -> None:
        self.lab = lab
        self.cluster = cluster
        self.dnp = Dnp(cluster)
        self.random = Random(seed)
        self.name = f"{seed}"
        self.counts: dict[str, int] = {}
        self.turns: dict[str, trio.Semaphore] = {}
        """How much is wanted: unpaced this process would do nothing else, and etcd be full in a minute."""

    async def forever(self, what: str, act: Callable[[int], Awaitable[None]]) -> None:
        number = 0
        turns = self.turns[what] = trio.Semaphore(0)
        while True:
            await turns.acquire()
            with suppress(TopicGone, NotFound):  # another was faster
                await act(number)
            number += 1
            self.counts[what] = number

    def go_on(self, steps: int) -> None:
        """Let everybody take some more steps."""
        for turns in self.turns.values():
            for _ in range(steps):
                turns.release()

    async def pushes(self, number: int) -> None:
        await self.dnp.push(f"shared/{number % 3}", *[f"{self.name} {number}"] * self.random.randrange(1, 50))

    async def pushes_large(self, number: int) -> None:
        topic = await self.topic(f"shared/{number % 3}".encode())
        size = self.random.choice((300_000, 2_000_000))
        data = self.random.randbytes(size)
        await self.cluster.log.append(
            topic, Chunk.of_message(data), born=self.cluster.namespace.tree.revision
        )

    async def seals_and_trims(self, number: int) -> None:
        topic = await self.topic(f"shared/{number % 3}".encode())
        sealer = self.lab.sealer(Policy(Retention(bytes=2_000_000)))
        await sealer.seal(topic, down_to=self.random.randrange(5))
        await sealer.trim(topic)

    async def resets(self, number: int) -> None:
        await self.dnp.reset(f"shared/{number % 3}")

    async def renames(self, number: int) -> None:
        here, there = f"of{self.name}-{number}", f"of{self.name}-{number + 1}"
        await self.dnp.mkdir(here)
        await self.dnp.push(f"{here}/t", "x" * 100)
        await self.dnp.rename(here, there)
        await self.dnp.rename(f"{there}/t", "moved")  # replaces what another host has moved there
        await self.dnp.remove(there)

    async def deletes(self, number: int) -> None:
        name = f"brief{self.name}"
        await self.dnp.push(name, "1", "2")
        await self.dnp.remove(name)

    async def works(self, number: int) -> None:
        """Take what there is, and give some of it back."""
        async with self.dnp.consumer("queue", f"group{number % 2}") as consumer:
            while (job := await consumer.take_now()) is not None:
                if self.random.random() < 0.2:
                    consumer.give_back(job)
                    break
                consumer.acknowledge(job)

    async def waits(self, number: int) -> None:
        """Claim what is still to come, sometimes in vain."""
        async with self.dnp.consumer("queue", f"group{number % 2}") as consumer:
            with trio.move_on_after(0.05):
                consumer.acknowledge(await consumer.take())

    async def queues(self, number: int) -> None:
        await self.dnp.push("queue", *[f"{self.name} {number}"] * self.random.randrange(1, 9))

    async def rewinds(self, number: int) -> None:
        if number % 3:
            await self.dnp.seek("queue", f"group{number % 2}", "first")
        else:
            await self.dnp.reset("queue")

    async def topic(self, path: bytes) -> FileId:
        directory, _, name = path.partition(b"/")
        parent = await self.lab.id_of(self.cluster, directory)
        return (await self.cluster.namespace.lookup(parent, name)).id


async def test_a_busy_cluster_is_sound(server: EtcdProcess) -> None:
    async with etcd.open_client([server.endpoint], timeout=CALL_TIMEOUT_S) as client:
        lab = Lab(client, server.endpoint, "/busy/")
        async with open_cluster(lab.settings) as one, open_cluster(lab.settings) as two:
            first, second = Life(lab, one, 1), Life(lab, two, 2)
            await first.dnp.mkdir("shared")
            for number in range(3):
                await first.dnp.push(f"shared/{number}", "to begin with")
            with trio.fail_after(WITHIN_S):
                async with trio.open_nursery() as nursery:
                    for life in (first, second):
                        for act in (life.pushes, life.pushes_large, life.renames, life.deletes):
                            nursery.start_soon(life.forever, act.__name__, act)
                    nursery.start_soon(first.forever, "seals", first.seals_and_trims)
                    nursery.start_soon(second.forever, "resets", second.resets)
                    checks = 0
                    while checks < CHECKS or not all(done(life) for life in (first, second)):
                        for life in (first, second):
                            life.go_on(STEPS)
                        checked = await lab.check(repair=checks % 2 == 1)
                        assert checked.verdicts == []
                        assert checked.report.topics >= 3
                        checks += 1
                    nursery.cancel_scope.cancel()
        assert first.counts["seals"] > 5
        assert second.counts["resets"] > 5
        assert (await lab.check()).verdicts == []


async def test_busy_groups_are_sound(server: EtcdProcess) -> None:
    async with etcd.open_client([server.endpoint], timeout=CALL_TIMEOUT_S) as client:
        lab = Lab(client, server.endpoint, "/groups/")
        async with open_cluster(lab.settings) as one, open_cluster(lab.settings) as two:
            lives = [Life(lab, one, 1), Life(lab, two, 2)]
            await lives[0].dnp.push("queue", "to begin with")
            with trio.fail_after(WITHIN_S):
                async with trio.open_nursery() as nursery:
                    for life in lives:
                        for act in (life.works, life.waits, life.queues):
                            nursery.start_soon(life.forever, act.__name__, act)
                    nursery.start_soon(lives[0].forever, "rewinds", lives[0].rewinds)
                    checks = 0
                    while checks < CHECKS or not all(life.counts.get("works", 0) > 5 for life in lives):
                        for life in lives:
                            life.go_on(2)
                        checked = await lab.check(repair=checks % 2 == 1)
                        assert checked.verdicts == []
                        checks += 1
                    nursery.cancel_scope.cancel()
        assert lives[0].counts["rewinds"] > 2
        assert (await lab.check()).verdicts == []


def done(life: Life) -> bool:
    wanted = {"pushes", "pushes_large", "renames", "deletes"}
    return wanted <= life.counts.keys() and all(count >= 3 for count in life.counts.values())


async def test_parts_of_a_session_that_lives_are_no_finding(lab: Lab) -> None:
    session = await lab.begin_session()
    await plant_pending(lab, lab.topic, session)
    await plant_pending(lab, FileId(5), session)  # which was deleted a moment ago
    now = await lab.client.put(lab.keys.session(session), b"{}", lease=session)
    await plant_pending(lab, lab.topic, session, Revision(now))  # it does not know the epoch
    assert (await lab.check()).verdicts == []
    await lab.client.lease_revoke(session)
    assert [found.finding.rule.code for found in (await lab.check()).verdicts] == ["L5"] * 3


async def test_what_is_ordered_to_be_removed_is_no_finding(lab: Lab) -> None:
    async with open_cluster(lab.settings) as cluster:
        cluster.log.sweeper.sweep_all = nothing  # type: ignore[method-assign]
        await Dnp(cluster).reset("t")
        await Dnp(cluster).remove("team/other")
        assert len(await lab.all(lab.keys.all_trash)) == 2
        assert (await lab.check()).verdicts == []
        assert (await lab.check(repair=True)).verdicts == []


async def nothing() -> None:
    """Be a sweeper that has no time."""


async def test_a_writer_at_work_and_one_whose_appends_were_sealed_fit(lab: Lab) -> None:
    session = await lab.begin_session()
    for sequence in (1, 2, 3):
        await lab.append(session, sequence, b"line\n")
        if sequence == 2:
            await lab.sealer().seal(lab.topic)
        assert (await lab.check()).verdicts == []
    async with lab.connect() as dnp:
        await dnp.reset("t")
    assert (await lab.check()).verdicts == []
    await lab.append(session, 4, b"line\n")
    assert (await lab.check()).verdicts == []
    await lab.client.lease_revoke(session)


class Compacts:
    """The client, in an etcd that forgets what was before each of the next reads at a moment."""

    def __init__(self, client: etcd.Client, keys: KeySchema, times: int) -> None:
        self._client = client
        self._other = keys.session(NOBODY)
        self.left = times

    async def transaction(self, compare: object, success: list[etcd.Op], **options: object) -> object:
        if self.left and success[0].request_range.revision:
            self.left -= 1
            await self._client.compact(await self._client.put(self._other, b"{}"))
        return await self._client.transaction((), success, **options)  # type: ignore[arg-type]


async def test_what_is_compacted_meanwhile_is_read_again(server: EtcdProcess) -> None:
    async with etcd.open_client([server.endpoint], timeout=CALL_TIMEOUT_S) as client:
        lab = Lab(client, server.endpoint, "/compacted/")
        async with lab.connect() as dnp:
            await dnp.push("t", "1")
        for times in (1, TRIES - 1):
            compacts = Compacts(client, lab.keys, times)
            lab.client = cast("etcd.Client", compacts)
            checked = await lab.check()
            assert (checked.report.topics, checked.verdicts, compacts.left) == (1, [], 0)
        lab.client = cast("etcd.Client", Compacts(client, lab.keys, TRIES))
        with pytest.raises(etcd.Compacted, match="have it keep more"):
            await lab.check()
