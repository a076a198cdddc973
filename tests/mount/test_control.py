"""The control directory: what its files say, who may read them, and that nobody can change them."""

import errno
import json
import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from dnpipefs.cluster import VERSION
from dnpipefs.mount import mount_status
from dnpipefs.vfs.reports import RATE_S
from tests.mount.conftest import MakeMount
from tests.support.etcd_process import EtcdProcess
from tests.support.mounts import Mount, Mounts
from tests.support.programs import Programs
from tests.support.refusal import refused
from tests.support.waiting import eventually

NOBODY = 65534
HOSTILE = [
    b"\xff\xfe not utf-8 \x80",
    b"new\nline",
    "Grüße ☃".encode(),
    b"x" * 255,
    b" ",
    b"-rf",
    b"\\",
    b'"quoted"',
    b"status",
    b"topics",
    b"\x1b[31m\x07",
]


@pytest.fixture
def control(here: Path) -> Path:
    return here.parent / ".dnp"


@pytest.fixture
def topics(control: Path, here: Path) -> Path:
    """Where the topics of the test's directory are told about."""
    return control / "topics" / here.name


@pytest.fixture
def groups(control: Path, here: Path) -> Path:
    return control / "groups" / here.name


def told(file: Path | bytes) -> dict[str, Any]:
    with open(file, "rb") as opened:
        found: dict[str, Any] = json.load(opened)
    return found


def test_it_is_there_and_listed_nowhere(here: Path, control: Path) -> None:
    assert ".dnp" not in os.listdir(here.parent)
    assert control.is_dir()
    assert sorted(os.listdir(control)) == ["groups", "hosts", "metrics", "status", "topics"]
    assert not (here / ".dnp").exists(), "in the root only"
    with refused(errno.EINVAL):
        (here / ".dnp").mkdir()
    with refused(errno.ENOENT):
        (control / "other").stat()
    with refused(errno.ENOTDIR):
        (control / "status" / "x").stat()
    for name in ("status", "hosts", "metrics"):
        found = (control / name).stat()
        assert (stat.S_IMODE(found.st_mode), found.st_size) == (0o444, 0)
        assert (control / name).read_bytes()


def test_the_status_is_that_of_the_command(
    shared_mounts: tuple[Mounts, Mount, Mount], here: Path, control: Path
) -> None:
    host = shared_mounts[1]
    status = told(control / "status")
    other = mount_status(host.path).told
    assert other is not None
    assert status.keys() == other.keys()
    for name in ("version", "host", "pid", "prefix", "op_timeout", "session", "read_stale", "stale_since"):
        assert status[name] == other[name]
    assert (status["version"], status["pid"], status["prefix"]) == (VERSION, host.pid, "/shared/")
    assert status["session"]["healthy"]
    [member] = status["etcd"]["members"]
    assert status["etcd"]["answers"]
    assert status["etcd"]["leader"] == member["name"]
    assert 0 < member["in_use"] <= member["size"] < member["quota"]
    assert status["caches"]["names"] >= 2


def test_hosts_are_the_mounts_of_the_cluster(
    shared_mounts: tuple[Mounts, Mount, Mount], control: Path
) -> None:
    """The onlooker of other tests, which has no mount, is none."""
    lines = [line.split(" ") for line in (control / "hosts").read_text().splitlines()]
    assert {(int(line[1]), line[2]) for line in lines} == {
        (host.pid, str(host.path)) for host in shared_mounts[1:]
    }
    assert all(len(line) == 6 and line[3] == VERSION for line in lines)


def test_a_topic(here: Path, there: Path, topics: Path) -> None:
    (here / "topic").write_bytes(b"one\n")
    (there / "topic").write_bytes(b"three\n")
    with open(here / "topic", "ab"), open(here / "topic", "rb"), open(here / "topic", "rb"):
        found = told(topics / "topic")
        assert found["here"] == {"readers": 2, "writers": 1}
    assert (found["topic"], found["end_offset"], found["first_offset"]) == (f"{here.name}/topic", 10, 0)
    assert (found["messages"], found["messages_removed"]) == (2, 0)
    assert found["messages_per_second"] == round(2 / RATE_S, 3)
    assert (found["segments"], found["tail"]) == (0, {"batches": 2, "bytes": 10})
    assert found["stored_bytes"] > 10
    for name in ("id", "generation", "revision"):
        assert str(found[name]) == os.getxattr(here / "topic", f"user.dnp.{name}").decode()
    assert told(topics / "topic")["here"] == {"readers": 0, "writers": 0}
    (here / "topic").write_bytes(b"more\n")
    os.truncate(there / "topic", 0)
    found = told(topics / "topic")
    assert (found["end_offset"], found["messages"], found["messages_per_second"]) == (0, 0, 0)


def test_a_group(here: Path, there: Path, groups: Path) -> None:
    (here / "topic").write_bytes(b"1\n2\n3\n")
    assert os.listdir(groups / "topic") == []
    with refused(errno.ENOENT):
        (groups / "topic" / "w").read_bytes()
    with open(there / "topic@w", "rb", buffering=0) as reader:
        assert reader.read(100) == b"1\n"
        assert os.listdir(groups / "topic") == ["w"]
        found = told(groups / "topic" / "w")
        assert (found["topic"], found["group"]) == (f"{here.name}/topic", "w")
        assert (found["lag"], found["pending"], len(found["members"])) == (3, 1, 1)
        assert found["here"] == {"readers": 0}, "it is the other host's reader"
        with open(here / "topic@w", "rb"):
            assert told(groups / "topic" / "w")["here"] == {"readers": 1}
        assert reader.read(100) == b"2\n"
    eventually(lambda: told(groups / "topic" / "w")["pending"] == 0)
    (here / "topic@w").unlink()
    assert os.listdir(groups / "topic") == []
    with refused(errno.ENOENT):
        (groups / "topic" / "w").read_bytes()


def test_it_has_the_tree_of_the_topics(here: Path, there: Path, control: Path) -> None:
    (here / "a" / "b").mkdir(parents=True)
    (here / "a" / "b" / "topic").touch()
    for root in ("topics", "groups"):
        below = control / root / here.name
        assert os.listdir(below) == ["a"]
        assert os.listdir(below / "a" / "b") == ["topic"]
        assert (below / "a" / "b").is_dir()
        assert (below / "a" / "b" / "..").samefile(below / "a")
        assert (control / root / "..").samefile(control)
        assert (below / "a" / "b" / "topic").is_dir() == (root == "groups")
    with open(control / "topics" / here.name / "a" / "b" / "topic", "rb") as opened:
        (there / "a" / "b" / "topic").rename(there / "moved")
        assert json.loads(opened.read())["topic"] == f"{here.name}/a/b/topic", "as it was at the open"
    eventually(lambda: os.listdir(control / "topics" / here.name / "a" / "b") == [])
    assert told(control / "topics" / here.name / "moved")["topic"] == f"{here.name}/moved"
    (there / "moved").unlink()
    eventually(lambda: not (control / "topics" / here.name / "moved").exists())


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names(here: Path, control: Path, name: bytes) -> None:
    directory, roots = os.fsencode(here), [os.fsencode(control / root) for root in ("topics", "groups")]
    topic = directory + b"/" + name
    with open(topic, "wb") as file:
        file.write(b"line\n")
    group = name[:253] if len(name) > 253 else name
    inside = [root + b"/" + os.fsencode(here.name) for root in roots]
    assert [os.listdir(each) for each in inside] == [[name], [name]]
    found = told(inside[0] + b"/" + name)
    assert os.fsencode(found["topic"]) == os.fsencode(here.name) + b"/" + name
    if len(name) + 1 + len(group) <= 255:
        descriptor = os.open(topic + b"@" + group, os.O_RDONLY)
        assert os.read(descriptor, 100) == b"line\n"
        os.close(descriptor)
        assert os.listdir(inside[1] + b"/" + name) == [group]
        assert os.fsencode(told(inside[1] + b"/" + name + b"/" + group)["group"]) == group


def changes(control: Path, topics: Path, topic: Path) -> dict[str, Callable[[], object]]:
    status = control / "status"
    return {
        "write": lambda: status.open("wb"),
        "append": lambda: status.open("ab"),
        "read and write": lambda: status.open("r+b"),
        "truncate": lambda: os.truncate(status, 0),
        "topic": lambda: (topics / "topic").open("ab"),
        "create": lambda: (control / "new").open("xb"),
        "create below": lambda: (topics / "new").open("xb"),
        "mknod": lambda: os.mknod(topics / "new"),
        "mkdir": lambda: (topics / "new").mkdir(),
        "unlink": status.unlink,
        "unlink a topic's": (topics / "topic").unlink,
        "rmdir": topics.rmdir,
        "rmdir itself": control.rmdir,
        "chmod": lambda: status.chmod(0o777),
        "chown": lambda: os.chown(topics / "topic", NOBODY, NOBODY),
        "utime": lambda: os.utime(control),
        "rename": lambda: status.rename(control / "other"),
        "rename out": lambda: (topics / "topic").rename(topic.parent / "other"),
        "rename in": lambda: topic.rename(topics / "other"),
        "rename itself": lambda: control.rename(topic.parent / "other"),
        "setxattr": lambda: os.setxattr(topics / "topic", "user.dnp.framing", b"write"),
        "removexattr": lambda: os.removexattr(topics / "topic", "user.dnp.framing"),
    }


@pytest.mark.parametrize("change", changes(Path(), Path(), Path()))
def test_nobody_can_change_it(change: str, here: Path, control: Path, topics: Path) -> None:
    """Root least of all: the kernel lets it pass where modes would stop others."""
    topic = here / "topic"
    topic.write_bytes(b"line\n")
    with refused(errno.EACCES):
        changes(control, topics, topic)[change]()
    with refused(errno.EEXIST):
        control.mkdir()
    assert os.listdir(here) == ["topic"]
    assert topic.read_bytes() == b"line\n"
    assert told(topics / "topic")["messages"] == 1
    assert os.listxattr(topics / "topic") == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else")
def test_who_may_not_read_a_topic_is_not_told_about_it(here: Path, topics: Path, groups: Path) -> None:
    for name, mode in (("private", 0o600), ("public", 0o644)):
        (here / name).write_bytes(b"line\n")
        (here / name).chmod(mode)
        with open(here / f"{name}@w", "rb", buffering=0) as reader:
            reader.read(100)
    (here / "closed").mkdir(mode=0o700)
    (here / "closed" / "topic").touch(mode=0o644)

    def may_read(file: Path) -> bool:
        command = ["cat" if file.is_file() else "ls", str(file.relative_to(here.parent))]
        done = subprocess.run(command, cwd=here.parent, user=NOBODY, group=NOBODY, capture_output=True)
        return done.returncode == 0

    for told_at in (topics / "public", groups / "public", groups / "public" / "w"):
        assert may_read(told_at), told_at
    for hidden in (
        topics / "private",
        groups / "private",
        groups / "private" / "w",
        topics / "closed",
        topics / "closed" / "topic",
        groups / "closed" / "topic",
    ):
        assert not may_read(hidden), hidden


def test_programs_read_it(here: Path, topics: Path, programs: Programs, tmp_path: Path) -> None:
    (here / "topic").write_bytes(b"line\n")
    file = topics / "topic"
    whole = file.read_text().splitlines()
    assert programs.run(["cat", file]) == whole
    assert programs.run(["tail", "-n", "3", file]) == whole[-3:]
    assert programs.run(["tail", "-c", "2", file]) == ["}"]
    assert programs.run(["head", "-n", "2", file]) == whole[:2]
    assert programs.run(["sed", "-n", "2p", file]) == whole[1:2]
    assert programs.run(["grep", "-r", '"messages"', topics]) == [f'{file}:  "messages": 1,']
    assert programs.run(["find", topics, "-type", "f"]) == [str(file)]
    assert programs.run(f"wc -l < '{file}'") == [str(len(whole))]
    assert programs.run(f"while read -r line; do echo \"$line\"; done < '{file}' | tail -n 1") == ["}"]
    programs.run(["cp", file, tmp_path / "copy"])
    assert (tmp_path / "copy").read_text().splitlines() == whole
    [line] = programs.run(["ls", "-l", file])
    assert line.startswith("-r--r--r-- 1 ")
    if shutil.which("jq") is not None:  # scripts/setup.sh --tests installs it
        assert programs.run(["jq", ".messages", file]) == ["1"]


def test_a_reader_sees_one_moment(here: Path, topics: Path) -> None:
    (here / "topic").write_bytes(b"line\n")
    with open(topics / "topic", "rb", buffering=0) as opened:
        first = opened.read(20)
        (here / "topic").write_bytes(b"more\n" * 1000)
        assert json.loads(first + opened.read())["messages"] == 1
        opened.seek(0)
        assert opened.read(20) == first


def test_many_readers(here: Path, control: Path, topics: Path) -> None:
    names = [f"topic{number}" for number in range(5)]
    for name in names:
        (here / name).write_bytes(b"line\n")

    def read(number: int) -> bool:
        status, topic = told(control / "status"), told(topics / names[number % len(names)])
        metrics = (control / "metrics").read_text()
        return status["session"]["healthy"] and topic["messages"] == 1 and metrics.endswith("\n")

    with ThreadPoolExecutor(20) as pool:
        assert all(pool.map(read, range(60)))


def test_while_etcd_does_not_answer(mount: MakeMount, own_etcd: EtcdProcess) -> None:
    host = mount(endpoint=own_etcd.endpoint, op_timeout=1.5)
    control = host.path / ".dnp"
    (host.path / "topic").write_bytes(b"line\n")
    assert told(control / "topics" / "topic")["messages"] == 1
    own_etcd.pause()
    try:
        status = told(control / "status")
        assert not status["etcd"]["answers"]
        assert status["etcd"]["members"] is None
        assert status["pid"] == host.pid
        assert b"dnpipefs_pushed_messages_total 1.0\n" in (control / "metrics").read_bytes()
        assert (control / "topics" / "topic").stat().st_size == 0, "a name that this host knows"
        reads: list[Callable[[], object]] = [
            (control / "topics" / "topic").read_bytes,
            (control / "hosts").read_bytes,
            lambda: os.listdir(control / "topics"),
            lambda: os.listdir(control / "groups" / "topic"),
            (control / "groups" / "topic" / "w").stat,
        ]
        with ThreadPoolExecutor(len(reads)) as pool:  # at once: all of them wait
            for attempt in [pool.submit(read) for read in reads]:
                with refused(errno.ETIMEDOUT):
                    attempt.result()
    finally:
        own_etcd.resume()
    eventually(lambda: told(control / "status")["etcd"]["answers"], within_s=40)
    assert told(control / "topics" / "topic")["messages"] == 1
    assert (control / "hosts").read_text().count("\n") == 1
