"""Reading ahead of stats: what is asked of etcd while a directory is listed the way programs do it."""

from collections.abc import AsyncIterator
from itertools import count
from typing import Any

import pytest
import trio

from dnpipefs import etcd
from dnpipefs.bench.fill import fill_directory
from dnpipefs.cluster import Cluster, Settings, open_cluster
from dnpipefs.core.names import ROOT, FileId, Kind
from dnpipefs.log.log import TopicStat
from dnpipefs.vfs import Attributes, FileSystem, listings
from dnpipefs.vfs.listings import (
    AHEAD,
    BY_NAME,
    FEWEST,
    PAGE,
    PAGE_FRESH_S,
    RECENT_LISTINGS,
    RECENT_S,
    WINDOW,
    Listings,
)
from tests.etcd.conftest import server, shared_server
from tests.support.etcd_process import EtcdProcess

__all__ = ["server", "shared_server"]

TOPICS = BY_NAME + PAGE
READS_OF_ALL = 2 * (TOPICS // PAGE + 2)
"""A look and a measure for each page is more than a survey takes; a read for each topic were 1,250."""

_numbers = count()


@pytest.fixture
async def cluster(shared_server: EtcdProcess) -> AsyncIterator[Cluster]:
    settings = Settings(endpoints=(shared_server.endpoint,), prefix=f"/listings/{next(_numbers)}/")
    async with open_cluster(settings) as cluster:
        yield cluster


@pytest.fixture
async def sizes(cluster: Cluster) -> dict[FileId, int]:
    """Make a directory `d` with topics, and return their sizes."""
    return await fill_directory(cluster, b"d", count=TOPICS)


class Reads:
    """How many reads of etcd there were."""

    def __init__(self) -> None:
        self.count = 0


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    reads = Reads()
    transaction = etcd.Client.transaction

    async def counted(self: etcd.Client, *args: Any, **kwargs: Any) -> etcd.TransactionResult:
        reads.count += 1
        return await transaction(self, *args, **kwargs)

    monkeypatch.setattr(etcd.Client, "transaction", counted)
    return reads


async def pages(files: FileSystem, directory: FileId) -> AsyncIterator[list[tuple[bytes, Attributes]]]:
    listing = await files.open_directory(directory)
    shown = 0
    while page := list(await files.page(listing, shown)):
        yield page
        shown += len(page)


async def directory_of(files: FileSystem) -> FileId:
    return (await files.lookup(ROOT, b"d")).id


async def test_names_alone_ask_nothing_of_each_topic(
    cluster: Cluster, sizes: dict[FileId, int], reads: Reads
) -> None:
    files = FileSystem(cluster)
    directory = await directory_of(files)
    reads.count = 0
    names = [name async for page in pages(files, directory) for name, _ in page]
    assert len(names) == TOPICS
    assert reads.count <= 1, "one barrier"


async def test_the_control_directory_lists_all_of_a_large_one(
    cluster: Cluster, sizes: dict[FileId, int], reads: Reads
) -> None:
    files = FileSystem(cluster)
    control = await files.lookup(ROOT, b".dnp")
    names = sorted(cluster.namespace.tree.children(await directory_of(files)))
    for root, directories in ((b"topics", False), (b"groups", True)):
        above = await files.lookup(control.id, root)
        directory = await files.lookup(above.id, b"d")
        reads.count = 0
        shown = [entry async for page in pages(files, directory.id) for entry in page]
        assert [name for name, _ in shown] == names
        assert {attributes.is_directory for _, attributes in shown} == {directories}
        assert reads.count <= 1, "one barrier"


async def test_stats_in_the_order_of_the_listing_are_answered_by_few_reads(
    cluster: Cluster, sizes: dict[FileId, int], reads: Reads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ls -l does it: each name is looked at right after its page has come."""
    monkeypatch.setattr(listings, "PAGE_FRESH_S", 5.0)  # on a busy machine, too
    files = FileSystem(cluster)
    directory = await directory_of(files)
    reads.count = 0
    shown: dict[FileId, int] = {}
    with_page = 0
    async for page in pages(files, directory):
        for _, attributes in page:
            with_page += attributes.exact
            current = attributes if attributes.exact else await files.attributes(attributes.id)
            shown[current.id] = current.size
    assert shown == sizes
    assert with_page >= TOPICS - 2 * PAGE, "from the second page on they bring their sizes"
    assert reads.count <= READS_OF_ALL


async def test_what_was_read_ahead_is_read_again_when_it_is_old(
    cluster: Cluster, sizes: dict[FileId, int], reads: Reads
) -> None:
    """And for a reader so slow nothing is read ahead any more."""
    listing = Listings(cluster.log).open(cluster.namespace.tree, await directory_of(FileSystem(cluster)), 0)
    listing.stats_follow = True

    async def read_for(start: int, now: float) -> bool:
        reads.count = 0
        assert len(await listing.page(start, now)) == PAGE - start % PAGE
        for _, survey in listing._pages.values():
            await survey.wait()
        return reads.count > 0

    assert await read_for(0, 1.0)
    assert not await read_for(7, 1.0 + PAGE_FRESH_S / 2), "a kernel with small buffers comes for the rest"
    assert await read_for(PAGE, 1.0 + PAGE_FRESH_S / 2), "one page further ahead"
    for second in range(2, 3 + AHEAD):
        assert await read_for(0, float(second))
    assert set(listing._pages) == {0}


async def test_stats_after_the_listing_are_answered_by_few_reads(
    cluster: Cluster, sizes: dict[FileId, int], reads: Reads
) -> None:
    """As du does it: the directory is read first."""
    files = FileSystem(cluster)
    directory = await directory_of(files)
    listed = [attributes.id async for page in pages(files, directory) for _, attributes in page]
    reads.count = 0
    assert {topic: (await files.attributes(topic)).size for topic in listed} == sizes
    assert reads.count <= 5 * READS_OF_ALL, "some are old before they are asked for"


async def test_who_reads_each_file_after_its_stat_has_few_read_ahead(
    cluster: Cluster, sizes: dict[FileId, int]
) -> None:
    """As grep -r does it: what would be old before it is asked for is not read."""
    listing = Listings(cluster.log).open(cluster.namespace.tree, await directory_of(FileSystem(cluster)), 0)

    async def read_ahead(index: int, now: float) -> range:
        await listing.expect_stats(listing.entries[index], now)
        return range(listing._window.first, listing._window.first + listing._window.length)

    soon = PAGE_FRESH_S / 2
    assert await read_ahead(0, 1.0) == range(FEWEST)
    assert await read_ahead(FEWEST, 1.0 + soon) == range(FEWEST, 3 * FEWEST), "all used in time"
    assert await read_ahead(3 * FEWEST, 1.0 + 2 * soon) == range(3 * FEWEST, 7 * FEWEST)
    slow = 4 * FEWEST + FEWEST // 2
    assert await read_ahead(slow, 2.0) == range(slow, slow + FEWEST + FEWEST // 2), "as many as were used"
    assert await read_ahead(slow + 1, 3.0) == range(slow + 1, slow + 1 + FEWEST), "hardly any was used"
    assert await read_ahead(1, 3.0 + soon) == range(1, 1 + FEWEST), "somewhere else"
    index, now = 1, 4.0
    while listing._window.length < WINDOW:
        index, now = index + listing._window.length, now + soon
        await read_ahead(index, now)
    assert index < TOPICS
    assert listing._window.length == WINDOW
    assert listing.shown_at == now, "who still stats what it shows still uses it"


async def test_a_size_read_ahead_of_a_stat_is_not_asked_for_again(
    cluster: Cluster, sizes: dict[FileId, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long reading ahead took."""

    async def asked(*_: object) -> TopicStat:
        raise AssertionError("its size was read")

    monkeypatch.setattr(listings, "PAGE_FRESH_S", 5.0)
    files = FileSystem(cluster)
    listed = [each.id async for page in pages(files, await directory_of(files)) for _, each in page]
    monkeypatch.setattr(cluster.log, "stat", asked)
    assert (await files.attributes(listed[0])).size == sizes[listed[0]]


async def test_a_lone_stat_reads_its_topic_alone(
    cluster: Cluster, sizes: dict[FileId, int], reads: Reads
) -> None:
    files = FileSystem(cluster)
    topic = next(iter(sizes))
    reads.count = 0
    await files.attributes(topic)
    assert reads.count == 1


async def test_listings_are_remembered_for_a_while_and_not_too_many(cluster: Cluster) -> None:
    namespace = cluster.namespace
    recent = Listings(cluster.log)
    now = trio.current_time()
    made = []
    for number in range(RECENT_LISTINGS + 1):
        name = b"directory%d" % number
        directory = await namespace.create(ROOT, name, Kind.DIRECTORY, mode=0o755, uid=0, gid=0)
        made.append(await namespace.create(directory.id, b"t", Kind.TOPIC, mode=0o644, uid=0, gid=0))
        recent.open(namespace.tree, directory.id, now)
    assert len(recent) == RECENT_LISTINGS
    assert recent.showing(made[0], now) is None
    assert recent.showing(made[1], now + RECENT_S) is not None
    assert recent.showing(made[1], now + 1.01 * RECENT_S) is None
    recent.open(namespace.tree, made[0].parent, now + 1.01 * RECENT_S)
    assert len(recent) == 1
