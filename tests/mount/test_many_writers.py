"""The main job under load: three hosts, eight writers each, 100,000 lines of real logs, one topic."""

import random
import subprocess
import sys
from collections import Counter
from itertools import islice
from pathlib import Path

from tests.mount.conftest import MakeMount

HOSTS = 3
WRITERS = 8
"""On each host."""
LINES = 100_000
"""Of all writers together."""

FEEDER = """
import os, sys
source, target, block = sys.argv[1], sys.argv[2], int(sys.argv[3])
fd = os.open(target, os.O_WRONLY | os.O_APPEND)
with open(source, "rb") as file:
    pieces = file if block == 0 else iter(lambda: file.read(block), b"")
    for piece in pieces:
        while piece:
            piece = piece[os.write(fd, piece):]
os.close(fd)
"""


def real_log_lines(count: int) -> list[bytes]:
    """Return lines of the machine's logs, from the start again (numbered) when they are used up."""
    files = sorted(Path("/var/log").rglob("*.log"))
    lines = [line for path in files if path.is_file() for line in path.read_bytes().splitlines()]
    if len(lines) < 1000:
        listing = subprocess.run(["dpkg-query", "-L", "libc6", "coreutils"], capture_output=True, check=False)
        lines += listing.stdout.splitlines() or [b"a machine without logs"]
    rounds = (b"%d %b" % (number, line) for number in range(count) for line in lines)
    return list(islice(rounds, count))


def commands(name: str, number: int, source: Path, topic: Path) -> list[str]:
    """Return how writer `number` of a host pushes: by lines, by blocks of many sizes, by the shell."""
    if number in (0, 1):
        return ["bash", "-c", f"cat {source} >> {topic}"]
    if number == 2:
        return ["dd", f"if={source}", f"of={topic}", "bs=4093", "oflag=append", "conv=notrunc", "status=none"]
    block = {3: 65_536, 4: 65_536, 5: 4096, 6: 1000}.get(number, 0)
    return [sys.executable, "-c", FEEDER, str(source), str(topic), str(block)]


def test_a_hundred_thousand_lines_by_24_writers_on_three_hosts(mount: MakeMount, tmp_path: Path) -> None:
    hosts = [mount(start=False) for _ in range(HOSTS)]
    for host in hosts:
        host.launch()
    for host in hosts:
        host.wait_ready()
    (hosts[0].path / "log").touch()
    lines = real_log_lines(LINES)
    names = [f"h{host}w{writer}" for host in range(HOSTS) for writer in range(WRITERS)]
    # Line by line costs a commit each: those writers get fewer lines.
    weights = [3 if number % WRITERS == WRITERS - 1 else 6 for number in range(len(names))]
    shares = random.Random(5).choices(range(len(names)), weights, k=LINES)
    written: dict[str, list[bytes]] = {name: [] for name in names}
    for share, line in zip(shares, lines, strict=True):
        own = written[names[share]]
        own.append(b"%b %d %b\n" % (names[share].encode(), len(own), line))
    writers = []
    for index, name in enumerate(names):
        source = tmp_path / name
        source.write_bytes(b"".join(written[name]))
        topic = hosts[index // WRITERS].path / "log"
        writers.append(subprocess.Popen(commands(name, index % WRITERS, source, topic)))
    assert [writer.wait() for writer in writers] == [0] * len(writers)

    contents = [subprocess.check_output(["cat", host.path / "log"]) for host in hosts]
    assert contents[0] == contents[1] == contents[2], "byte-identical on every host"
    assert {(host.path / "log").stat().st_size for host in hosts} == {len(contents[0])}
    found: dict[str, list[bytes]] = {name: [] for name in names}
    for line in contents[0].splitlines(keepends=True):
        found.setdefault(line.split(b" ", 1)[0].decode(), []).append(line)
    assert Counter(map(len, found.values())) == Counter(map(len, written.values()))
    for name in names:
        assert found[name] == written[name], f"{name}: a line torn, lost, doubled or out of order"
    assert found.keys() == written.keys()
