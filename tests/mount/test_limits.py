"""Limits of a host, reached on a real mount: nothing is dropped, and the daemon stays small."""

import mmap
import os
import threading
from pathlib import Path

from dnpipefs.vfs.intake import WRITES_LIMIT
from tests.mount.conftest import MakeMount
from tests.mount.test_semantics import opened, write_all
from tests.support.etcd_process import EtcdProcess
from tests.support.mounts import Mount
from tests.support.programs import FUSE_WAITS
from tests.support.waiting import eventually

MIB = 1 << 20


def resident(mount: Mount) -> int:
    """Return how much memory the daemon has, bytes."""
    pages = int(Path(f"/proc/{mount.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def most_resident(mount: Mount) -> int:
    """Return how much memory the daemon had at most, bytes."""
    status = Path(f"/proc/{mount.pid}/status").read_text()
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM"))


def test_replaying_much_more_than_the_cache_holds_keeps_the_daemon_small(mount: MakeMount) -> None:
    """Invariant 7, and P7 in small: several readers, some of them slow, of data that compresses well."""
    here = mount()
    line = b"%07d " + b"compresses well " * 60 + b"\n"
    with opened(here.path / "t") as fd:
        for part in range(40):
            write_all(fd, b"".join(line % number for number in range(part * 8000, (part + 1) * 8000)))
    size = os.stat(here.path / "t").st_size
    assert size > 290 * MIB
    reader = mount()
    before = resident(reader)
    counts: list[int] = []

    def read(chunk: int) -> None:
        with open(reader.path / "t", "rb", buffering=0) as file:
            count = 0
            while data := file.read(chunk):
                count += len(data)
        counts.append(count)

    slow = open(reader.path / "t", "rb", buffering=0)  # noqa: SIM115 - closed below, after the others
    slow.read(1000)
    threads = [threading.Thread(target=read, args=(chunk,)) for chunk in (MIB, 700_000, 128 << 10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == [size] * 3
    assert len(slow.read(1000)) == 1000
    slow.close()
    assert resident(reader) - before < 200 * MIB


def test_pushes_beyond_what_may_wait_wait_their_turn(mount: MakeMount) -> None:
    """More bytes at once than QUEUE_LIMIT: all are stored, each message whole."""
    here = mount()
    message = b"x" * (6 * MIB - 1) + b"\n"
    failures: list[BaseException] = []

    def push(number: int) -> None:
        try:
            with opened(here.path / f"t{number}") as fd:
                write_all(fd, message)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=push, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    for number in range(16):
        assert (here.path / f"t{number}").read_bytes() == message
    assert resident(here) < 400 * MIB


def test_writes_beyond_what_may_be_under_way_wait_in_the_kernel(
    mount: MakeMount, own_etcd: EtcdProcess
) -> None:
    """Invariant 7: each takes two to three times its size in the daemon, so only WRITES_LIMIT are taken.

    Aligned to a page, so that the kernel hands each over at once.
    """
    here = mount(endpoint=own_etcd.endpoint, op_timeout=60.0)
    message = mmap.mmap(-1, MIB)
    message.write(b"x" * (MIB - 1) + b"\n")
    ready, start = threading.Barrier(401), threading.Event()
    written: list[int] = []

    def push(number: int) -> None:
        with opened(here.path / f"t{number}") as fd:
            ready.wait()
            start.wait()
            written.append(os.write(fd, message))

    threads = [threading.Thread(target=push, args=(number,)) for number in range(ready.parties - 1)]
    for thread in threads:
        thread.start()
    ready.wait()
    own_etcd.pause()
    start.set()
    for thread in threads:
        assert thread.native_id is not None
        wait = Path(f"/proc/{thread.native_id}/wchan")
        eventually(lambda wait=wait: wait.read_text() in FUSE_WAITS)  # type: ignore[misc]
    eventually(lambda: resident(here) > WRITES_LIMIT)
    own_etcd.resume()
    for thread in threads:
        thread.join()
    assert sum(written) == MIB * len(threads)
    assert most_resident(here) < 3 * WRITES_LIMIT + 100 * MIB
