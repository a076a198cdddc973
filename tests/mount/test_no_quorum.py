"""An etcd that answers nobody for a while: what waits, what fails, and that everything goes on by itself."""

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.mount.conftest import MakeMount
from tests.support.mounts import Mount
from tests.support.outage import OUTAGES, Outage, outage
from tests.support.programs import Programs, blocked, readers
from tests.support.refusal import refused
from tests.support.waiting import WITHIN_S, eventually
from tests.support.writers import Follower, Writer, history, observe, progress, running

GOES_ON_S = 40.0
"""How long clients may back off after an outage, on a machine that has other things to do."""


@pytest.fixture(params=OUTAGES)
def etcd(request: pytest.FixtureRequest, tmp_path: Path, etcd_binary: str) -> Iterator[Outage]:
    with outage(request.param, tmp_path, etcd_binary) as made:
        yield made


class Handles:
    """Programs that have a topic open, each in its own way, before the outage and after it."""

    def __init__(self, programs: Programs, topic: Path) -> None:
        self._topic = topic
        self._heard: dict[str, bytes] = {}
        self.tail = programs.start(["tail", "-n", "+1", "-f", topic])
        self.subscriber = programs.reading(["cat", f"{topic}@"])
        self.worker = programs.reading(f"while read -r line; do echo \"$line\"; done < '{topic}@w'")
        self.reading = os.open(topic, os.O_RDONLY)
        self.writing = os.open(topic, os.O_WRONLY | os.O_APPEND)

    @property
    def followers(self) -> list[subprocess.Popen[str]]:
        return [self.tail, self.subscriber, self.worker]

    def all_show(self, line: str) -> None:
        """Wait until every program that follows the topic has printed a line; none has ended."""
        for follower in self.followers:
            assert follower.stdout is not None
            while (printed := follower.stdout.readline()) != f"{line}\n":
                assert printed, (follower.args, follower.poll())

    def close(self) -> None:
        for descriptor in (self.reading, self.writing):
            with suppress(OSError):
                os.close(descriptor)


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    programs = Programs(tmp_path)
    try:
        yield programs
    finally:
        programs.clear()


def topic_of(host: Mount) -> Path:
    return host.path / "topic"


def stopped_cat(programs: Programs, topic: Path) -> subprocess.Popen[str]:
    """Return a program that has a topic open, and prints it once it is told to go on."""
    script = f"exec 3< '{topic}'; kill -STOP $$; cat <&3; echo \"status $?\""
    program = programs.start(script)
    eventually(lambda: Path(f"/proc/{program.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
    return program


def test_who_waits_is_answered_when_etcd_is_back(mount: MakeMount, etcd: Outage, programs: Programs) -> None:
    host = mount(endpoint=etcd.endpoint, op_timeout=60.0)
    topic = topic_of(host)
    topic.write_bytes(b"before\n")
    handles = Handles(programs, topic)
    try:
        os.write(handles.writing, b"first\n")
        handles.all_show("first")
        cat = stopped_cat(programs, topic)
        etcd.begin()
        os.kill(cat.pid, 18)
        assert cat.stdout is not None
        assert [cat.stdout.readline() for _ in range(2)] == ["before\n", "first\n"], "what the view holds"
        eventually(lambda: readers(cat.pid))
        echo = programs.start(f"echo during >> '{topic}'; echo \"status $?\"")
        opened = programs.start(["cat", topic])
        listed = programs.start(["ls", host.path])
        for program in (echo, opened, listed):
            eventually(lambda program=program: blocked(program.pid))  # type: ignore[misc]
        assert topic.stat().st_size == len(b"before\nfirst\n"), "as the view has it"
        assert all(program.poll() is None for program in (cat, echo, opened, listed))
        etcd.end()
        # The end of file is confirmed once etcd answers: in front of what `echo` pushes, or behind it.
        assert cat.communicate(timeout=GOES_ON_S)[0] in ("status 0\n", "during\nstatus 0\n")
        assert echo.communicate(timeout=GOES_ON_S)[0] == "status 0\n"
        assert opened.communicate(timeout=GOES_ON_S)[0] in ("before\nfirst\n", "before\nfirst\nduring\n")
        assert listed.communicate(timeout=GOES_ON_S)[0] == "topic\n"
        handles.all_show("during")
        os.write(handles.writing, b"after\n")
        handles.all_show("after")
        assert os.read(handles.reading, 1 << 16) == topic.read_bytes() == b"before\nfirst\nduring\nafter\n"
    finally:
        handles.close()


def test_who_waits_too_long_is_told_and_goes_on_all_the_same(
    mount: MakeMount, etcd: Outage, programs: Programs
) -> None:
    host = mount(endpoint=etcd.endpoint, op_timeout=1.0)
    topic = topic_of(host)
    topic.write_bytes(b"before\n")
    handles = Handles(programs, topic)
    try:
        os.write(handles.writing, b"first\n")
        handles.all_show("first")
        cat = stopped_cat(programs, topic)
        etcd.begin()
        os.kill(cat.pid, 18)
        printed = cat.communicate(timeout=WITHIN_S)[0]
        assert printed.startswith("before\nfirst\n")
        assert printed.endswith("Connection timed out\nstatus 1\n"), "no end of file that nobody knows of"
        [said] = programs.run(f"echo during >> '{topic}'", 1)
        assert said.endswith("Connection timed out")
        with refused(errno.ETIMEDOUT):
            os.write(handles.writing, b"meanwhile\n")
        assert os.pread(handles.reading, 100, 0) == b"before\nfirst\n"
        with refused(errno.ETIMEDOUT):
            os.pread(handles.reading, 100, len(b"before\nfirst\n"))
        with refused(errno.ETIMEDOUT):
            os.open(topic, os.O_RDONLY)
        with refused(errno.ETIMEDOUT):
            os.listdir(host.path)
        with refused(errno.ETIMEDOUT):
            (host.path / "missing").stat()
        assert all(follower.poll() is None for follower in handles.followers)
        etcd.end()
        eventually(lambda: pushed(topic, b"after\n"), within_s=GOES_ON_S)
        handles.all_show("after")
        lines = topic.read_bytes().splitlines()
        assert os.read(handles.reading, 1 << 16).splitlines() == lines
        os.write(handles.writing, b"last\n")
        handles.all_show("last")
        assert lines[:2] == [b"before", b"first"]
        for uncertain in (b"during", b"meanwhile"):
            assert lines.count(uncertain) <= 1, "at most once"
    finally:
        handles.close()


def pushed(topic: Path, line: bytes) -> bool:
    """Push a line; tell whether that was acknowledged."""
    try:
        topic.write_bytes(line)
    except TimeoutError:
        return False
    return True


def test_invariants_1_and_2_through_an_outage(mount: MakeMount, etcd: Outage) -> None:
    hosts = [mount(endpoint=etcd.endpoint, op_timeout=1.0) for _ in range(2)]
    topic_of(hosts[0]).touch()
    writers = [Writer(f"writer{n}", topic_of(host)) for n, host in enumerate(hosts)]
    follower = Follower("follower", topic_of(hosts[1]))
    with running(*writers, follower):
        eventually(lambda: follower.data)  # it is open: it may not be during an outage
        for _ in range(2):
            progress(writers, 20)
            etcd.begin()
            for writer in writers:
                known = len(writer.errors)
                eventually(lambda writer=writer, known=known: len(writer.errors) > known)  # type: ignore[misc]
            etcd.end()
        progress(writers, 20)
        before = len(follower.data)
        eventually(lambda: len(follower.data) > before, within_s=GOES_ON_S)
    errors = follower.errors + [error for writer in writers for error in writer.errors]
    assert {error.errno for error in errors} == {errno.ETIMEDOUT}
    seen = [observe(host.path.parent.name, topic_of(host)) for host in hosts]
    assert history(writers, [*seen, follower.observed()]).check() == []


def test_a_name_that_cannot_be_confirmed_is_waited_for_once(
    mount: MakeMount, tmp_path: Path, etcd_binary: str
) -> None:
    with outage("frozen", tmp_path, etcd_binary) as etcd:
        host, other = (mount(endpoint=etcd.endpoint, op_timeout=1.0) for _ in range(2))
        topic_of(other).touch()
        topic_of(host).stat()  # the kernel knows it from now on, and asks whether it is still so
        topic_of(other).unlink()
        eventually(lambda: os.listdir(host.path) == [])
        etcd.begin()
        with refused(errno.ETIMEDOUT):
            topic_of(host).stat()
        etcd.end()
        told = [line for line in host.log.splitlines() if "lookup: " in line]
        assert len(told) == 2
        assert "the kernel asked again" in told[1]
