"""Hostile values under every kind of key, put by hand in etcd below live mounts.

The kinds are the rows of the table of keys in docs/format.md, so that a new one cannot be forgotten. For each
and for each kind of damage: the mounts live on, without a traceback; what the key is about fails with a clear
errno or does without it; everything else is served; the log stays short; and fsck names the key.
"""

import errno
import os
import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import pytest
import trio

from dnpipefs import Dnp, etcd
from dnpipefs.cluster import open_cluster
from dnpipefs.core.batch import Chunk
from dnpipefs.core.group import Cursor, Held, Returned, Term
from dnpipefs.core.group_records import encode_cursor, encode_held, encode_returned
from dnpipefs.core.intervals import Stretch, Stretches
from dnpipefs.core.keys import Beside, BodyKey
from dnpipefs.core.names import ROOT, SessionId
from dnpipefs.errors import CorruptData, UnsupportedFormat
from tests.docs.documents import FORMAT
from tests.fsck.conftest import CALL_TIMEOUT_S, Lab, push, push_and_seal
from tests.support.etcd_process import EtcdProcess
from tests.support.mounts import Mount, Mounts

PREFIX = "/hostile/"
NOBODY = SessionId(0x77)
LINES_AT_MOST = 25
"""Of the log of one host, for all that is tried of one damage."""
NAMED = {"entry", "root", "head", "index_page", "cursor", "returned"}
"""Kinds that the log has to name by their key; of batches and segments it names the topic."""
WAITING = {"last_namespace", "last", "epoch"}
"""Kinds of keys that promise a change, for which hosts wait in vain."""
SLOW = ("garbage", "oversized")
"""Damages that are tried of these: one is like the other."""
T = TypeVar("T")


def hostile(good: bytes) -> dict[str, bytes]:
    """Return values to take the place of a good one."""
    later = re.sub(rb'"kind":"\w+"', b'"kind":"later"', good.replace(b'"format":1', b'"format":2'))
    values = {
        "garbage": b"\xff\xfe{}\0garbage",
        "truncated": good[: len(good) // 2],
        "oversized": b'{"id":"' + b"9" * 1_000_000,
        "of other types": b'{"id":[],"time":{},"offset":"","stretches":{},"kind":7,"generation":-1}',
        "of a later version": later if good.startswith(b"{") else bytes([99]) + good[1:],
    }
    return {damage: value for damage, value in values.items() if value != good}


Find = Callable[[Lab], Awaitable[bytes]]


@dataclass(frozen=True)
class Case:
    """A kind of key, and what damage to it may come to."""

    find: Find
    """Returns a key of the victim that is there, or puts one."""
    rules: frozenset[str]
    """Of fsck, one of which names the key, whatever the damage; none: it says nothing to anybody."""
    errnos: frozenset[str] = frozenset()
    """What may come of calls on the victim besides success."""
    of_its_group: frozenset[str] = frozenset()
    """Likewise of reading from the group `bad` only."""


CASES: dict[str, Case] = {}


def case(
    name: str, *rules: str, errnos: Sequence[str] = (), of_its_group: Sequence[str] = ()
) -> Callable[[Find], Find]:
    def register(find: Find) -> Find:
        CASES[name] = Case(find, frozenset(rules), frozenset(errnos), frozenset(of_its_group))
        return find

    return register


@case("meta", "refused")
async def meta(lab: Lab) -> bytes:
    return lab.keys.meta


@case("root", "N2")
async def root(lab: Lab) -> bytes:
    return lab.keys.root


@case("last_namespace", "N7")
async def last_namespace(lab: Lab) -> bytes:
    return lab.keys.last_namespace


@case("entry", "N2", errnos=["EIO"])
async def entry(lab: Lab) -> bytes:
    return lab.keys.entry(ROOT, b"victim")


@case("epoch", "T6", errnos=["ETIMEDOUT", "EIO"])
async def epoch(lab: Lab) -> bytes:
    return lab.keys.epoch(lab.topic)


@case("head", "T4", errnos=["EIO"])
async def head(lab: Lab) -> bytes:
    return lab.keys.head(lab.topic)


@case("last", "T2", errnos=["ETIMEDOUT", "EIO"])
async def last(lab: Lab) -> bytes:
    return lab.keys.last(lab.topic)


@case("batch", "B2", "B3", errnos=["EIO"])
async def batch(lab: Lab) -> bytes:
    return (await lab.batches())[0].key


@case("mark", "T5", errnos=["EIO"])
async def mark(lab: Lab) -> bytes:
    return lab.keys.mark(lab.topic)


@case("body_parts", "S7", errnos=["EIO"])
async def body_parts(lab: Lab) -> bytes:
    return (await lab.all(lab.keys.bodies(lab.topic)))[0].key


@case("segment", "S5", errnos=["EIO"])
async def segment(lab: Lab) -> bytes:
    return (await lab.all(lab.keys.segments(lab.topic)))[0].key


@case("index_page", "S1", errnos=["EIO"])
async def index_page(lab: Lab) -> bytes:
    return (await lab.all(lab.keys.index(lab.topic)))[0].key


@case("writer", "B5")
async def writer(lab: Lab) -> bytes:
    """Of a session that ended long ago: of one that lives nobody may put it but its host."""
    await lab.client.put(key := lab.keys.writer(lab.topic, NOBODY), b"1:1")
    return key


@case("session")
async def session(lab: Lab) -> bytes:
    await lab.client.put(key := lab.keys.session(NOBODY), b"{}")
    return key


@case("pending")
async def pending(lab: Lab) -> bytes:
    """The key says it all: the value is nothing to anybody. Of a session that lives, so that it stays."""
    await session(lab)
    key = lab.keys.pending(lab.topic, await lab.generation(), BodyKey(NOBODY, 1, Beside(1, 5)))
    await lab.client.put(key, b"{}")
    return key


@case("trash")
async def trash(lab: Lab) -> bytes:
    """Likewise."""
    await lab.client.put(key := lab.keys.trash(lab.topic), b'{"time":1}')
    return key


@case("probe")
async def probe(lab: Lab) -> bytes:
    await lab.client.put(key := lab.keys.probe(1), b"")
    return key


async def plant_group(lab: Lab) -> Term:
    """Lay down a group that has 2 before it, and what was returned of a host that lives."""
    term = Term(await lab.generation())
    await session(lab)
    await lab.client.put(lab.keys.cursor(lab.topic, b"bad"), encode_cursor(Cursor(term, 2)))
    await lab.client.put(
        lab.keys.returned(lab.topic, b"bad"),
        encode_returned(Returned(term, Stretches([Stretch(0, 1, 0)]))),
    )
    return term


@case("cursor", "G1", of_its_group=["EIO"])
async def cursor(lab: Lab) -> bytes:
    await plant_group(lab)
    return lab.keys.cursor(lab.topic, b"bad")


@case("returned", "G2", of_its_group=["EIO"])
async def returned(lab: Lab) -> bytes:
    await plant_group(lab)
    return lab.keys.returned(lab.topic, b"bad")


@case("member", "G2", of_its_group=["EIO"])
async def member(lab: Lab) -> bytes:
    term = await plant_group(lab)
    key = lab.keys.member(lab.topic, b"bad", NOBODY)
    await lab.client.put(key, encode_held(Held(term, Stretches([Stretch(1, 2, 0)]))))
    return key


@case("dead_letter", "G8")
async def dead_letter(lab: Lab) -> bytes:
    term = await plant_group(lab)
    key = lab.keys.dead_letter(lab.topic, b"bad", term.generation, 1)
    await lab.client.put(key, b"{}")
    return key


def kinds() -> set[str]:
    """Return the kinds of keys, as docs/format.md names them."""
    found = (re.search(r"^`[^`]+` \(`(\w+)`", row[0]) for row in FORMAT.rows)
    return {match[1] for match in found if match is not None}


def test_all_kinds_of_keys_are_here() -> None:
    assert kinds() == set(CASES)


@pytest.fixture(scope="module")
def hosts_of_victims(
    shared_etcd: EtcdProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Mounts, Mount, Mount]]:
    mounts = Mounts(tmp_path_factory.mktemp("mounts"))
    pair = [mounts.make(endpoints=[shared_etcd.endpoint], prefix=PREFIX, op_timeout=3) for _ in range(2)]
    try:
        for host in pair:
            host.start()
        yield mounts, pair[0], pair[1]
        assert [host.stop() for host in pair] == [0, 0]
    finally:
        mounts.clear()


def in_lab(endpoint: str, action: Callable[[Lab], Awaitable[T]]) -> T:
    async def run() -> T:
        async with etcd.open_client([endpoint], timeout=CALL_TIMEOUT_S) as client:
            return await action(Lab(client, endpoint, PREFIX))

    return trio.run(run)


async def lay_down(lab: Lab) -> None:
    """Make `victim`: pages, segments and a large batch that are sealed, and lines in the tail."""
    async with open_cluster(lab.settings) as cluster:
        for name in ("other", "victim"):
            await Dnp(cluster).push(name, "line 0")
        lab.topic = await lab.id_of(cluster, b"victim")
        await push_and_seal(lab, cluster, 70)
        await push(lab, cluster, Chunk.of_message(os.urandom(300_000)))
        await lab.sealer().seal(lab.topic)
        for number in range(3):
            await push(lab, cluster, Chunk.of_lines(b"tail %d\n" % number))


def attempt(call: Callable[[], object]) -> str:
    """Return the name of the errno that a call ends with, or "ok"."""
    try:
        call()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "ok"


def append(path: Path, data: bytes) -> None:
    with path.open("ab", buffering=0) as file:
        file.write(data)


def read_view(path: Path) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return os.read(fd, 1000)
    finally:
        os.close(fd)


class Outcome(NamedTuple):
    """What came of each thing that was tried on one host: "ok", or the name of an errno."""

    read: str
    stat: str
    push: str
    list: str
    other: str
    bad_group: str
    good_group: str


def try_all(host: Path) -> Outcome:
    victim = host / "victim"
    return Outcome(
        attempt(lambda: len(victim.read_bytes())),
        attempt(lambda: victim.stat().st_size),
        attempt(lambda: append(victim, b"pushed\n")),
        attempt(lambda: len(os.listdir(host))),
        attempt(lambda: len((host / "other").read_bytes())),
        attempt(lambda: len(read_view(host / "victim@bad"))),
        attempt(lambda: len(read_view(host / "victim@good"))),
    )


async def findings(lab: Lab, key: bytes) -> set[str]:
    """Return the rules that fsck says are broken at a key; the error if it cannot check anything."""
    try:
        checked = await lab.check()
    except (CorruptData, UnsupportedFormat) as error:
        return {"refused"} if str(key)[1:] in str(error) or "format version" in str(error) else {str(error)}
    return {found.finding.rule.code for found in checked.verdicts if found.finding.key == key}


@pytest.mark.parametrize("kind", CASES)
def test_a_hostile_value(
    kind: str, hosts_of_victims: tuple[Mounts, Mount, Mount], shared_etcd: EtcdProcess
) -> None:
    mounts, live, cold = hosts_of_victims
    found, endpoint = CASES[kind], shared_etcd.endpoint

    async def prepare(lab: Lab) -> tuple[bytes, bytes]:
        await lay_down(lab)
        key = await found.find(lab)
        return key, await lab.value(key)

    async def restore(lab: Lab) -> None:
        await lab.client.put(key, good)

    with mounts.guarded():
        key, good = in_lab(endpoint, prepare)
        with (live.path / "victim").open("rb") as follower:
            assert follower.read(7) == b"line 0\n"
            for damage, value in hostile(good).items():
                if kind in WAITING and damage not in SLOW:
                    continue
                before = mounts.logs()

                async def plant(lab: Lab, value: bytes = value) -> set[str]:
                    await lab.client.put(key, value)
                    return await findings(lab, key)

                rules = in_lab(endpoint, plant)
                assert rules & found.rules or not found.rules, (damage, rules)
                for host in (live, cold):
                    judge(kind, damage, try_all(host.path))
                for name, log in mounts.logs().items():
                    new = log[len(before[name]) :]
                    assert " ERROR " not in new, new
                    assert "Traceback" not in new, new
                    assert len(new.splitlines()) < LINES_AT_MOST, new
        if kind in NAMED:
            assert any(name_in_log(key) in log for log in mounts.logs().values())
        in_lab(endpoint, restore)
        in_lab(endpoint, end)
    assert live.alive
    assert cold.alive


def judge(kind: str, damage: str, seen: Outcome) -> None:
    """Assert that a host did all it could."""
    found = CASES[kind]
    assert seen.other == "ok", (damage, seen)
    fine = {"ok"} | found.errnos
    assert {seen.read, seen.stat, seen.push, seen.good_group} <= fine, (damage, seen)
    assert seen.list == "ok", (damage, seen)
    assert seen.bad_group in fine | found.of_its_group, (damage, seen)


def name_in_log(key: bytes) -> str:
    return str(key)[2:-1]


async def end(lab: Lab) -> None:
    async with open_cluster(lab.settings) as cluster:
        await Dnp(cluster).remove("victim")
    for lone in (lab.keys.session(NOBODY), lab.keys.probe(1)):
        await lab.client.delete(lone)


@pytest.mark.parametrize("kind", ["cursor", "returned"])
def test_a_group_that_is_read_when_it_breaks(
    kind: str, hosts_of_victims: tuple[Mounts, Mount, Mount], shared_etcd: EtcdProcess
) -> None:
    """Its readers are told; those of another group, and of the topic, notice nothing."""
    mounts, live, _ = hosts_of_victims
    endpoint = shared_etcd.endpoint

    async def prepare(lab: Lab) -> bytes:
        await lay_down(lab)
        return (
            lab.keys.cursor(lab.topic, b"bad") if kind == "cursor" else lab.keys.returned(lab.topic, b"bad")
        )

    async def plant(lab: Lab) -> None:
        await lab.client.put(key, b"garbage")

    with mounts.guarded():
        key = in_lab(endpoint, prepare)
        try:
            before = live.log
            readers_hear_of_it(live.path / "victim", lambda: in_lab(endpoint, plant))
            new = live.log[len(before) :]
            assert name_in_log(key) in new
            assert "Traceback" not in new
            (live.path / "victim@bad").unlink()
            assert read_view(live.path / "victim@bad") == b"line 0\n", "begins anew"
        finally:
            in_lab(endpoint, end)


def readers_hear_of_it(victim: Path, plant: Callable[[], None]) -> None:
    with (
        open(f"{victim}@bad", "rb", buffering=0) as bad,
        open(f"{victim}@good", "rb", buffering=0) as good,
    ):
        assert bad.read(100) == good.read(100) == b"line 0\n"
        plant()
        outcomes = (attempt(lambda: bad.read(100)) for _ in range(100))
        assert next(outcome for outcome in outcomes if outcome != "ok") == "EIO"
        assert good.read(100) == b"line 0\n"
        append(victim, b"pushed\n")
        assert victim.read_bytes().endswith(b"pushed\n")
