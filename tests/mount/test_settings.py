"""Settings of topics as extended attributes, and what they do, on real mounts."""

import errno
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dnpipefs.core.config import MESSAGE_LIMIT, READ_ONLY, SETTINGS
from dnpipefs.vfs.handles import SPLIT_SIZE
from tests.mount.conftest import Hosts, MakeMount
from tests.mount.test_semantics import opened, write_all
from tests.support.etcd_process import EtcdProcess
from tests.support.mounts import Mount
from tests.support.refusal import refused
from tests.support.waiting import eventually

DEFAULTS = {
    "framing": "line",
    "retention.bytes": "none",
    "retention.age": "none",
    "retention.messages": "none",
    "max_message": "8MiB",
    "compression": "zstd",
    "start": "first",
    "ack": "exit-status",
    "batch": "1",
    "visibility_timeout": "none",
    "max_deliveries": "none",
    "dead_letter": "none",
}


def get(path: Path, name: str) -> str:
    return os.getxattr(path, f"user.dnp.{name}").decode()


def put(path: Path, name: str, value: str | bytes, flags: int = 0) -> None:
    os.setxattr(path, f"user.dnp.{name}", value.encode() if isinstance(value, str) else value, flags)


def remove(path: Path, name: str) -> None:
    os.removexattr(path, f"user.dnp.{name}")


def settings_of(path: Path) -> dict[str, str]:
    return {name: get(path, name) for name in SETTINGS}


def run(*command: str | Path) -> str:
    """Return the output of a program that succeeds and does not complain."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


# Extended attributes


def test_getfattr_shows_what_holds_and_what_is_so(topic: Path) -> None:
    topic.write_bytes(b"one\ntwo\n")
    shown = dict(
        re.findall(r'user\.dnp\.([a-z._]+)="(.*)"', run("getfattr", "--absolute-names", "-d", topic))
    )
    assert {name: shown.pop(name) for name in SETTINGS} == DEFAULTS
    assert shown.keys() == set(READ_ONLY)
    assert shown["id"] == f"{topic.stat().st_ino:016x}"
    assert (shown["messages"], shown["first_offset"], shown["end_offset"]) == ("2", "0", "8")
    assert 0 < int(shown["generation"]) < int(shown["revision"])


def test_facts_follow_what_happens_elsewhere(here: Path, there: Path) -> None:
    (here / "topic").write_bytes(b"one\n")
    generation, revision = (int(get(there / "topic", name)) for name in ("generation", "revision"))
    with opened(here / "topic") as fd:
        os.write(fd, b"two\n")
        newest = int(get(there / "topic", "revision"))
        assert newest > revision
        eventually(lambda: get(there / "topic", "end_offset") == "8")
        os.ftruncate(fd, 0)
    assert (
        int(get(there / "topic", "generation")) == int(get(there / "topic", "revision")) > newest > generation
    )
    eventually(lambda: get(there / "topic", "messages") == "0")


def test_setfattr_sets_for_everybody_and_removing_goes_back(here: Path, there: Path) -> None:
    (here / "topic").touch()
    run("setfattr", "-n", "user.dnp.retention.bytes", "-v", "10240KiB", here / "topic")
    assert get(here / "topic", "retention.bytes") == "10MiB"
    eventually(lambda: get(there / "topic", "retention.bytes") == "10MiB")
    put(there / "topic", "retention.age", "2w")
    eventually(lambda: get(here / "topic", "retention.age") == "14d")
    assert settings_of(here / "topic") == DEFAULTS | {"retention.bytes": "10MiB", "retention.age": "14d"}
    run("setfattr", "-x", "user.dnp.retention.bytes", here / "topic")
    put(here / "topic", "retention.age", "")
    remove(here / "topic", "framing")
    assert settings_of(here / "topic") == DEFAULTS


def test_hosts_that_set_different_settings_at_once_lose_none(here: Path, there: Path) -> None:
    (here / "topic").touch()
    for number in range(1, 20):
        put(here / "topic", "retention.messages", str(number))
        put(there / "topic", "max_message", str(number))
        put(here / "topic", "retention.age", f"{number}s")
    expected = DEFAULTS | {"retention.messages": "19", "max_message": "19", "retention.age": "19s"}
    for host in (here, there):
        eventually(lambda path=host / "topic": settings_of(path) == expected)  # type: ignore[misc]


@pytest.mark.parametrize("change", [lambda path, name: put(path, name, "1"), remove], ids=["set", "remove"])
def test_what_is_so_cannot_be_set(topic: Path, change: Callable[[Path, str], None]) -> None:
    topic.touch()
    for name in READ_ONLY:
        with refused(errno.EPERM):
            change(topic, name)
    with refused(errno.EPERM):
        change(topic.parent, "id")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("framing", "lines"),
        ("retention.bytes", "10M"),
        ("max_message", b"\xff"),
        ("frame", "line"),
        ("", "x"),
    ],
)
def test_bad_values_and_names_are_refused(topic: Path, name: str, value: str | bytes) -> None:
    topic.touch()
    with refused(errno.EINVAL):
        put(topic, name, value)
    assert settings_of(topic) == DEFAULTS


def test_the_log_says_what_would_be_allowed(mount: MakeMount) -> None:
    host = mount()
    (host.path / "topic").touch()
    for name, value, said in (
        ("retention.age", "7 days", "such as 30s, 15m, 12h, 7d or 2w"),
        ("retention.size", "1", "did you mean retention"),
    ):
        with refused(errno.EINVAL):
            put(host.path / "topic", name, value)
        assert [line for line in host.log.splitlines() if name in line and said in line]
    warnings = [line for line in host.log.splitlines() if " WARNING " in line and "setxattr" in line]
    assert len(warnings) == 2


def test_attributes_that_are_not_ours(topic: Path) -> None:
    topic.touch()
    for name in ("user.dnp.unknown", "user.other"):
        with refused(errno.ENODATA):
            os.getxattr(topic, name)
        with refused(errno.ENODATA):
            os.removexattr(topic, name)
    for name in ("user.other", "trusted.other", "security.other"):
        with refused(errno.EOPNOTSUPP):
            os.setxattr(topic, name, b"x")
    for name in ("security.capability", "security.selinux", "system.posix_acl_access", "trusted.other"):
        with refused(errno.EOPNOTSUPP):
            os.getxattr(topic, name)
    with refused(errno.ENODATA):
        get(topic.parent, "messages")
    assert get(topic.parent, "id") == f"{topic.parent.stat().st_ino:016x}"
    assert os.listxattr(topic.parent) == [f"user.dnp.{name}" for name in (*SETTINGS, "id")]


def test_create_and_replace_flags(topic: Path) -> None:
    """Every setting exists at all times."""
    topic.touch()
    with refused(errno.EEXIST):
        put(topic, "framing", "write", os.XATTR_CREATE)
    assert get(topic, "framing") == "line"
    put(topic, "framing", "write", os.XATTR_REPLACE)
    assert get(topic, "framing") == "write"
    with refused(errno.ENODATA):
        put(topic, "unknown", "1", os.XATTR_REPLACE)


def test_attributes_of_a_deleted_topic(here: Path, there: Path) -> None:
    (here / "topic").touch()
    with opened(there / "topic", os.O_RDONLY) as fd:
        (here / "topic").unlink()
        with refused(errno.ESTALE):
            os.setxattr(fd, "user.dnp.framing", b"write")
        with refused(errno.ESTALE):
            os.getxattr(fd, "user.dnp.revision")


# A directory's settings


def test_a_directory_hands_its_settings_down_to_what_comes_later(here: Path, there: Path) -> None:
    (here / "before").touch()
    put(here, "framing", "write")
    put(here, "retention.age", "7d")
    (here / "team" / "deep").mkdir(parents=True)
    (there / "team" / "deep" / "topic").touch()
    remove(here, "framing")
    (here / "after").touch()
    assert settings_of(here / "before") == DEFAULTS
    for path in (here / "team", here / "team" / "deep", there / "team" / "deep" / "topic"):
        assert settings_of(path) == DEFAULTS | {"framing": "write", "retention.age": "7d"}
    assert settings_of(here / "after") == DEFAULTS | {"retention.age": "7d"}
    (here / "before").rename(here / "team" / "before")
    assert settings_of(here / "team" / "before") == DEFAULTS


def test_settings_stay_through_rename_chmod_and_reset(topic: Path) -> None:
    topic.touch()
    put(topic, "max_message", "1KB")
    topic.chmod(0o600)
    os.truncate(topic, 0)
    moved = topic.rename(topic.with_name("moved"))
    assert get(moved, "max_message") == "1KB"


# Programs


def test_programs_that_ask_for_attributes_are_content(here: Path, tmp_path: Path) -> None:
    (here / "topic").write_bytes(b"line\n")
    put(here / "topic", "retention.messages", "9")
    run("ls", "-lZ", "--color=always", here)
    run("cp", "-a", here / "topic", tmp_path / "copy")
    run("cp", "-a", here / "topic", here / "twin")
    run("cp", "-a", tmp_path / "copy", here / "back")
    run("tar", "-C", here, "--xattrs", "-cf", tmp_path / "archive.tar", "topic")
    for name in ("twin", "back"):
        assert (here / name).read_bytes() == b"line\n"
    assert settings_of(here / "twin") == DEFAULTS | {"retention.messages": "9"}


def requests(host: Mount, act: Callable[[], object]) -> list[str]:
    """Return the kernel's requests that an action makes."""
    with opened(host.path, os.O_RDONLY | os.O_DIRECTORY) as root:
        before = len(host.log)
        act()
        os.statvfs(root)  # goes through the same queue, and only once
        return re.findall(r"opcode: (\w+)", host.log[before:].partition("opcode: STATFS")[0])


def shell(command: str, directory: Path) -> Callable[[], object]:
    return lambda: subprocess.run(
        ["bash", "-c", command], cwd=directory, check=True, stdout=subprocess.DEVNULL
    )


def test_pushing_asks_for_no_attributes(mount: MakeMount) -> None:
    """The kernel may want to know of capabilities on the file: it does not on a push, only after O_TRUNC."""
    host = mount(traced=True)
    with opened(host.path / "topic") as fd:
        os.write(fd, b"first\n")
        assert requests(host, lambda: [os.write(fd, b"line\n") for _ in range(5)]) == ["WRITE"] * 5
    appending = requests(host, shell("echo line >> topic", host.path))
    assert "WRITE" in appending
    assert "GETXATTR" not in appending
    assert requests(host, shell("echo line > topic", host.path)).count("GETXATTR") == 1


def test_ls_asks_for_attributes_once_and_not_for_each_topic(mount: MakeMount) -> None:
    host = mount(traced=True)
    for number in range(20):
        (host.path / f"topic{number}").touch()
    asked = requests(host, shell("ls -l --color=always", host.path))
    assert "READDIRPLUS" in asked
    assert 0 < asked.count("GETXATTR") <= 4


# What framing and limits do


MESSAGES = [b"two\nlines", b"\0\xff binary \n", b"no newline", b"\n", random.Random(1).randbytes(SPLIT_SIZE)]


def pulled(endpoint: str, prefix: str, topic: str) -> list[bytes]:
    """Return a topic's messages, as hexadecimal digits go through anything."""
    script = """
import sys, trio, dnpipefs
async def main():
    async with dnpipefs.connect(sys.argv[1], prefix=sys.argv[2]) as dnp:
        async for message in dnp.pull(sys.argv[3]):
            print(message.data.hex())
trio.run(main)
"""
    done = run(sys.executable, "-c", script, endpoint, prefix, topic)
    return [bytes.fromhex(line) for line in done.splitlines()]


def test_with_framing_write_each_write_is_a_message(mount: MakeMount, shared_etcd: EtcdProcess) -> None:
    host, other = mount(), mount()
    topic = host.path / "topic"
    topic.touch()
    put(topic, "framing", "write")
    eventually(lambda: get(other.path / "topic", "framing") == "write")
    for path in (topic, other.path / "topic"):
        with opened(path) as fd:
            for message in MESSAGES:
                assert os.write(fd, message) == len(message)
                assert os.write(fd, b"") == 0
            os.fsync(fd)
    assert topic.read_bytes() == b"".join(MESSAGES) * 2
    assert pulled(shared_etcd.endpoint, host.prefix, "topic") == MESSAGES * 2
    options = (
        "--endpoints",
        shared_etcd.endpoint,
        "--prefix",
        host.prefix,
        "--format",
        "json",
        "--count",
        "4",
    )
    shown = run(sys.executable, "-m", "dnpipefs", "pull", *options, "topic").splitlines()
    assert len(shown) == 4
    assert json.loads(shown[0])["data"] == "two\nlines"


def test_open_handles_follow_the_framing_from_the_next_write_on(
    mount: MakeMount, shared_etcd: EtcdProcess
) -> None:
    host = mount()
    topic = host.path / "topic"
    with opened(topic) as fd:
        os.write(fd, b"line\npart")
        put(topic, "framing", "write")
        os.write(fd, b"whole\nwrite")
        put(topic, "framing", "line")
        os.write(fd, b"part of ")
        os.write(fd, b"a line\nend")
    assert pulled(shared_etcd.endpoint, host.prefix, "topic") == [
        b"line\n",
        b"part",
        b"whole\nwrite",
        b"part of a line\n",
        b"end",
    ]


@pytest.mark.parametrize("size", [SPLIT_SIZE + 1, 1 << 20, (1 << 20) + 1, 3 << 20])
def test_a_write_that_the_kernel_may_cut_is_refused_as_a_whole(topic: Path, hosts: Hosts, size: int) -> None:
    topic.touch()
    put(topic, "framing", "write")
    with opened(topic) as fd:
        for data in (b"x" * size, memoryview(b"x" * (size + 7))[7:]):  # wherever in a page it begins
            with refused(errno.EMSGSIZE):
                os.write(fd, data)
        os.write(fd, b"life goes on")
    assert hosts.read_there() == b"life goes on"


def test_writev_of_some_buffers_is_one_message(topic: Path) -> None:
    topic.touch()
    put(topic, "framing", "write")
    buffers = [b"x" * 4096 for _ in range(128)]
    with opened(topic) as fd:
        assert os.writev(fd, buffers) == 128 * 4096
    assert get(topic, "messages") == "1"


@pytest.mark.parametrize("framing", ["line", "write"])
def test_max_message(topic: Path, hosts: Hosts, framing: str) -> None:
    topic.touch()
    put(topic, "framing", framing)
    with opened(topic) as fd:
        os.write(fd, b"9 letters\n")
        put(topic, "max_message", "8")
        with refused(errno.EMSGSIZE):
            os.write(fd, b"9 letters\n")
        os.write(fd, b"7 chars\n")
        put(topic, "max_message", "16MiB")
        with refused(errno.EMSGSIZE):
            write_all(fd, b"x" * MESSAGE_LIMIT + b"\n")
    assert hosts.read_there() == b"9 letters\n7 chars\n"


def test_many_lines_within_a_small_limit_go_in_few_batches(mount: MakeMount) -> None:
    topic = mount().path / "topic"
    topic.touch()
    put(topic, "max_message", "100")
    lines = b"".join(b"%d\n" % number for number in range(100_000))
    before = int(get(topic, "revision"))
    with opened(topic) as fd:
        write_all(fd, lines)
    assert topic.read_bytes() == lines
    assert int(get(topic, "revision")) - before < 10


# What is stored


def test_what_is_stored_and_cannot_be_leaves_the_topic_usable(
    mount: MakeMount, shared_etcd: EtcdProcess
) -> None:
    host = mount()
    topic = host.path / "topic"
    topic.touch()
    put(topic, "retention.bytes", "1MiB")
    key = f"{host.prefix}ns/{1:016x}/topic"
    etcdctl = ["etcdctl", "--endpoints", shared_etcd.endpoint]
    stored = json.loads(run(*etcdctl, "get", "--print-value-only", key))
    assert stored["config"] == {"retention.bytes": 1 << 20}
    stored["config"] |= {"framing": "record", "a_later_setting": [1]}
    run(*etcdctl, "put", key, json.dumps(stored))
    host.saw("setting framing is stored as 'record': line holds")
    with opened(topic) as fd:
        os.write(fd, b"line\nline\n")
    assert (get(topic, "framing"), get(topic, "messages"), get(topic, "retention.bytes")) == (
        "line",
        "2",
        "1MiB",
    )
    put(topic, "max_message", "1KiB")
    stored = json.loads(run(*etcdctl, "get", "--print-value-only", key))
    assert stored["config"] == {
        "a_later_setting": [1],
        "framing": "record",
        "max_message": 1024,
        "retention.bytes": 1 << 20,
    }
