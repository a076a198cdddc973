"""Listing directories of many topics through the kernel: sizes as each stat shows them, none too old."""

import os
import random
import subprocess
from pathlib import Path

import pytest
import trio

from dnpipefs.bench.fill import fill_directory
from dnpipefs.cluster import Settings, open_cluster
from dnpipefs.vfs.listings import BY_NAME
from tests.mount.conftest import MakeMount
from tests.support.mounts import Mount
from tests.support.waiting import eventually

FEW, MANY = 300, BY_NAME + 300


@pytest.fixture(params=[FEW, MANY], ids=["few", "many"])
def hosts(request: pytest.FixtureRequest, mount: MakeMount) -> tuple[Path, Path]:
    """A directory of topics, some with messages, on two hosts."""
    first, second = mount(), mount()
    trio.run(_fill, first, request.param)
    return first.path / "d", second.path / "d"


async def _fill(host: Mount, count: int) -> None:
    async with open_cluster(Settings(endpoints=host.endpoints, prefix=host.prefix)) as cluster:
        await fill_directory(cluster, b"d", count=count)


def long_listing(directory: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of the last push, as ls -l shows them."""
    environment = {**os.environ, "TIME_STYLE": "+%s%N"}
    output = subprocess.run(
        ["ls", "-l", directory], env=environment, check=True, capture_output=True, text=True
    ).stdout
    rows = [line.split() for line in output.splitlines()[1:]]
    return {row[6]: (int(row[4]), int(row[5])) for row in rows}


def each_by_itself(directory: Path, names: list[str]) -> dict[str, tuple[int, int]]:
    stats = {name: (directory / name).stat() for name in names}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


def test_ls_shows_what_stat_shows(hosts: tuple[Path, Path]) -> None:
    here, there = hosts
    dice = random.Random(5)
    names = sorted(os.listdir(here))
    assert long_listing(here) == each_by_itself(there, names)
    changed = dice.sample(names, 20)
    for name in changed[:10]:
        with (there / name).open("a") as topic:
            topic.write("a line more\n")
    for name in changed[10:15]:
        os.truncate(there / name, 0)
    for name in changed[15:]:
        (there / name).unlink()
    names = sorted(os.listdir(here))
    eventually(lambda: long_listing(here) == each_by_itself(there, names))
    assert len(long_listing(here)) == len(names) > 250


def test_this_hosts_own_pushes_show_at_once_in_the_middle_of_a_listing(hosts: tuple[Path, Path]) -> None:
    here, _ = hosts
    dice = random.Random(6)
    expected = {name: size for name, (size, _) in long_listing(here).items()}
    pushed = 0
    with os.scandir(here) as entries:
        for entry in entries:
            if dice.random() < 0.1:
                for name in {entry.name, dice.choice(list(expected))}:
                    with (here / name).open("a") as topic:
                        topic.write("line\n")
                    expected[name] += 5
                    pushed += 1
            found = os.stat(entry.path)
            assert (found.st_size, found.st_blksize) == (expected[entry.name], 1 << 20)
    assert pushed > 20
    assert {name: size for name, (size, _) in long_listing(here).items()} == expected


def test_an_open_for_reading_shows_pushes_that_a_listing_just_before_it_could_not(
    hosts: tuple[Path, Path],
) -> None:
    here, there = hosts
    name = sorted(os.listdir(here))[0]
    for _ in range(30):
        long_listing(here)
        with (there / name).open("a") as topic:
            topic.write("line\n")
        with (here / name).open("rb") as topic:
            assert os.fstat(topic.fileno()).st_size == len(topic.read())


def test_a_directory_may_be_read_first_and_looked_at_then(hosts: tuple[Path, Path]) -> None:
    here, there = hosts
    sizes = {name: size for name, (size, _) in each_by_itself(there, os.listdir(there)).items()}
    found = subprocess.run(
        ["find", here, "-type", "f", "-size", "+0", "-printf", "%f\n"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    assert sorted(found) == sorted(name for name, size in sizes.items() if size)
