"""What can be done to a group besides reading it, and the settings it heeds, on a real mount."""

import errno
import os
import select
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dnpipefs.vfs.xattrs import GROUP_FACTS
from tests.mount.conftest import Hosts
from tests.support.onlooker import Onlooker
from tests.support.programs import Programs
from tests.support.waiting import WITHIN_S, eventually

NOTHING = "EAGAIN"
NOBODY = 65534


def push(topic: Path, *messages: object) -> None:
    topic.write_text("".join(f"{message}\n" for message in messages))


class Reader:
    """One open file."""

    def __init__(self, view: Path, flags: int = os.O_NONBLOCK) -> None:
        self.fd = os.open(view, os.O_RDONLY | flags)

    def read(self, size: int = 1 << 16) -> str:
        try:
            return os.read(self.fd, size).decode()
        except BlockingIOError:
            return NOTHING

    def gets(self) -> str:
        """Wait for a message."""
        return eventually(lambda: self.read().replace(NOTHING, ""))


@contextmanager
def reading(view: Path, flags: int = os.O_NONBLOCK) -> Iterator[Reader]:
    reader = Reader(view, flags)
    try:
        yield reader
    finally:
        os.close(reader.fd)


def configure(topic: Path, **settings: str) -> None:
    topic.touch()
    for name, value in settings.items():
        os.setxattr(topic, f"user.dnp.{name}", value.encode())


# Names


def test_views_are_not_listed(topic: Path, here: Path) -> None:
    push(topic, 1)
    with reading(here / "topic@w"), reading(here / "topic@"):
        assert os.listdir(here) == ["topic"]


def test_a_view_looks_like_a_file_of_its_topic(topic: Path, here: Path, there: Path) -> None:
    push(topic, 1)
    topic.chmod(0o640)
    for name in ("topic@", "topic@w"):
        seen = (here / name).stat()
        assert stat.S_ISREG(seen.st_mode)
        assert stat.S_IMODE(seen.st_mode) == 0o640
        assert (seen.st_size, seen.st_uid) == (0, topic.stat().st_uid)
        assert seen.st_ino == (there / name).stat().st_ino
    assert (here / "topic@").stat().st_ino != (here / "topic@w").stat().st_ino
    assert not (here / "nothing@w").exists()


@pytest.mark.parametrize("name", ["a@b", "a@", "@", "@b", "a@b@c"])
def test_no_topic_has_a_views_name(here: Path, name: str) -> None:
    for make in (Path.touch, Path.mkdir):
        with pytest.raises(OSError, match="Invalid argument") as refused:
            make(here / name)
        assert refused.value.errno == errno.EINVAL
    push(here / "a", 1)
    if name not in ("a@b", "a@"):
        with pytest.raises(OSError, match="Invalid argument"):
            (here / "a").rename(here / name)
    assert os.listdir(here) == ["a"]


def test_pushing_to_a_view_fails(topic: Path, programs: Programs) -> None:
    push(topic, 1)
    for view in ("topic@w", "topic@"):
        [said] = programs.run(f"echo x > {view}", 1)
        assert "Permission denied" in said
    assert topic.read_text() == "1\n"


# Reads


def test_nothing_to_read_and_no_wait(topic: Path, here: Path) -> None:
    push(topic)
    with reading(here / "topic@w") as reader:
        assert reader.read() == NOTHING
        push(topic, "one")
        assert reader.read() == "one\n", "at once: the push had returned"
        assert reader.read() == NOTHING


def test_the_rest_of_a_message_comes_with_the_next_read(topic: Path, here: Path, onlooker: Onlooker) -> None:
    push(topic, "a long message", "another")
    with reading(here / "topic@w") as reader:
        assert [reader.read(6), reader.read(6), reader.read(6)] == ["a long", " messa", "ge\n"]
        assert onlooker.lag(here / "topic@w") == 2, "not acknowledged before the next read"
        assert reader.read() == "another\n"
        eventually(lambda: onlooker.lag(here / "topic@w") == 1)
        assert os.lseek(reader.fd, -8, os.SEEK_CUR) == 15
        assert reader.read(3) == "ano", "what is in hand can be read again"


def test_two_groups_do_not_care_for_each_other(topic: Path, here: Path, onlooker: Onlooker) -> None:
    push(topic, 1, 2)
    with reading(here / "topic@one") as one, reading(here / "topic@two") as two:
        assert [one.read(), two.read(), one.read(), two.read()] == ["1\n", "1\n", "2\n", "2\n"]
        os.truncate(here / "topic@one", 0)
        assert [one.read(), two.read()] == ["1\n", NOTHING]
    assert onlooker.leftovers(here / "topic@two") == []


@pytest.mark.parametrize("how", ["poll", "select", "epoll"])
def test_a_view_is_readable_when_a_read_would_return(topic: Path, here: Path, how: str) -> None:
    push(topic)

    def ready(fd: int, seconds: float) -> bool:
        if how == "select":
            return bool(select.select([fd], [], [], seconds)[0])
        poll = select.poll() if how == "poll" else select.epoll()
        poll.register(fd, select.POLLIN)
        return bool(poll.poll(seconds * 1000 if how == "poll" else seconds))

    for view in ("topic@", "topic@w"):
        with reading(here / view) as reader:
            while reader.read() != NOTHING:
                pass
            assert not ready(reader.fd, 0)
            pushing = threading.Timer(0.05, push, [topic, view])
            pushing.start()
            try:
                assert ready(reader.fd, WITHIN_S)
            finally:
                pushing.join()
            assert reader.read() == f"{view}\n"
            assert not ready(reader.fd, 0)


@pytest.mark.parametrize("how", ["poll", "select"])
def test_who_only_looks_sees_what_a_read_would_get(topic: Path, here: Path, there: Path, how: str) -> None:
    """Nobody waits, so nothing is claimed before the look."""
    push(topic)

    def ready(fd: int) -> bool:
        if how == "select":
            return bool(select.select([fd], [], [], 0)[0])
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return bool(poll.poll(0))

    for view in ("topic@", "topic@w"):
        with reading(here / view) as reader:
            while reader.read() != NOTHING:
                pass
            assert not ready(reader.fd)
            push(there / "topic", view)
            eventually(lambda fd=reader.fd: ready(fd))  # type: ignore[misc]
            assert reader.read() == f"{view}\n"
            assert not ready(reader.fd)


@pytest.mark.parametrize("view", ["topic@", "topic@w"])
def test_who_reads_until_there_is_nothing_is_told_of_the_next(topic: Path, here: Path, view: str) -> None:
    """With EPOLLET, as event loops do: they do not ask again."""
    push(topic)
    with reading(here / view) as reader, select.epoll() as epoll:
        epoll.register(reader.fd, select.EPOLLIN | select.EPOLLET)
        for message in range(3):
            while reader.read() != NOTHING:
                pass
            push(topic, message)
            assert [fd for fd, _ in epoll.poll(WITHIN_S)] == [reader.fd]
            assert reader.read() == f"{message}\n"


# Settings


def test_a_batch(topic: Path, here: Path, onlooker: Onlooker) -> None:
    configure(topic, batch="3")
    push(topic, *range(10))
    with reading(here / "topic@w", 0) as reader:
        seen: list[str] = []
        while sum(len(data) for data in seen) < 20:
            seen.append(reader.read())
        assert "".join(seen) == "".join(f"{n}\n" for n in range(10))
        assert max(len(data) for data in seen) <= 6
    assert onlooker.leftovers(here / "topic@w") == []


@pytest.mark.parametrize(
    ("ack", "command", "left"),
    [
        ("exit-status", "exit 0", ["2"]),
        ("exit-status", "exit 3", ["1", "2"]),
        ("next-read", "exit 0", ["1", "2"]),
        ("next-read", "exec 3<&-", ["1", "2"]),
        ("next-read", "read -r j <&3; exit 0", ["2"]),
        ("delivery", "exit 3", ["2"]),
        ("delivery", "kill -9 $$", ["2"]),
    ],
)
def test_what_acknowledges(
    topic: Path, programs: Programs, onlooker: Onlooker, ack: str, command: str, left: list[str]
) -> None:
    configure(topic, ack=ack)
    push(topic, 1, 2)
    programs.run(f"exec 3< topic@w; read -r j <&3; {command}", None)
    assert sorted(onlooker.leftovers(topic.parent / "topic@w")) == left


@pytest.mark.parametrize("start", ["first", "last"])
def test_where_a_group_starts(topic: Path, here: Path, start: str) -> None:
    configure(topic, start=start)
    push(topic, "old")
    with reading(here / "topic@w") as reader:
        assert reader.read() == ("old\n" if start == "first" else NOTHING)
        push(topic, "new")
        assert reader.read() == "new\n"


def test_a_reader_that_takes_too_long_loses_its_message(topic: Path, here: Path, onlooker: Onlooker) -> None:
    configure(topic, visibility_timeout="300ms")
    push(topic, 1, 2)
    with reading(here / "topic@w") as slow, reading(here / "topic@w") as other:
        assert slow.read() == "1\n"
        assert other.gets() == "2\n"
        assert other.gets() == "1\n", "after the timeout"
        slow.read()  # acknowledges what is another's now
        assert onlooker.lag(here / "topic@w") > 0
    assert onlooker.leftovers(here / "topic@w") == []


def test_dead_letters(topic: Path, here: Path, programs: Programs, onlooker: Onlooker) -> None:
    configure(topic, max_deliveries="2")
    push(topic, "poison", "good")
    seen = []
    while "good" not in seen:
        seen += programs.run("read -r j < topic@w; echo $j; [ $j = good ]", None)
        eventually(lambda: (group := onlooker.group(here / "topic@w")) is not None and not group.pending)
    assert seen.count("poison") == 2
    assert (
        eventually(lambda: (here / "topic.dead").exists() and (here / "topic.dead").read_text()) == "poison\n"
    )
    assert onlooker.leftovers(here / "topic@w") == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else")
def test_dead_letters_go_only_where_the_topics_owner_may_push(
    here: Path, programs: Programs, onlooker: Onlooker
) -> None:
    """Else whoever owns a topic could push wherever the daemon can."""
    (here / "closed").mkdir(mode=0o700)
    for private in (here / "closed" / "topic", here / "private"):
        private.touch(mode=0o600)
    for topic, target in (("a", "closed/topic"), ("b", "private"), ("c", "new"), ("d", "open/new")):
        configure(here / topic, max_deliveries="1", dead_letter=f"{here.name}/{target}")
        os.chown(here / topic, NOBODY, NOBODY)
    (here / "open").mkdir()
    (here / "open").chmod(0o777)
    here.chmod(0o755)
    for topic in "abcd":
        push(here / topic, "poison")
        programs.run(f"read -r x < {topic}@w; exit 1", 1)
    with reading(here / "d@w") as reader:
        eventually(lambda: reader.read() == NOTHING and (here / "open" / "new").exists())
        assert (here / "open" / "new").read_text() == "poison\n"
    for topic in "abc":
        with reading(here / f"{topic}@w") as reader:
            assert reader.read() == NOTHING, "it is tried again and again"
            assert onlooker.lag(here / f"{topic}@w") == 1
    assert (here / "closed" / "topic").read_text() == (here / "private").read_text() == ""
    assert not (here / "new").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else")
def test_where_dead_letters_go_is_for_the_owner_to_say(here: Path) -> None:
    configure(here / "topic")
    (here / "topic").chmod(0o666)

    def says(user: int, what: str) -> bytes:
        command = [sys.executable, "-c", f"import os; os.{what}"]
        return subprocess.run(
            command, cwd=here, user=user, group=user, extra_groups=[], capture_output=True
        ).stderr

    setting = "'topic', 'user.dnp.dead_letter'"
    for change in (f"setxattr({setting}, b'x')", f"removexattr({setting})"):
        assert b"Operation not permitted" in says(NOBODY, change)
        os.chown(here / "topic", NOBODY, 0)
        assert says(NOBODY, change) == b""
        os.chown(here / "topic", 0, 0)
    assert says(NOBODY, "setxattr('topic', 'user.dnp.batch', b'5')") == b"", "as any who may push"


def test_dead_letters_go_where_the_topic_says(
    hosts: Hosts, here: Path, programs: Programs, onlooker: Onlooker
) -> None:
    configure(here / "topic", max_deliveries="1", dead_letter=f"{here.name}/graves")
    push(here / "topic", "poison")
    programs.run("read -r j < topic@w; exit 3", 3)
    assert onlooker.leftovers(here / "topic@w") == []
    assert eventually(lambda: (here / "graves").exists() and hosts.read_there("graves")) == b"poison\n"


# Rewinding, deleting, resetting


@pytest.mark.parametrize(
    ("size", "first"), [(0, "1"), (1, "2"), (2, "2"), (4, "3"), (5, NOTHING), (6, NOTHING), (999, NOTHING)]
)
def test_truncate_rewinds(topic: Path, here: Path, programs: Programs, size: int, first: str) -> None:
    push(topic, 1, 2, 3)
    with reading(here / "topic@w") as reader:
        assert [reader.read(), reader.read(), reader.read(), reader.read()] == ["1\n", "2\n", "3\n", NOTHING]
        programs.run(["truncate", "-s", str(size), "topic@w"])
        assert reader.read().rstrip() == first
    assert topic.read_text() == "1\n2\n3\n"


def test_the_read_after_a_rewind_gets_nothing_from_before(here: Path, programs: Programs) -> None:
    """Fast readers have messages in stock, and changes under way."""
    push(here / "jobs", *range(10))
    for _ in range(20):
        script = "truncate -s 0 jobs@w; head -n1 jobs@w; truncate -s 5 jobs@w; head -n1 jobs@w"
        assert programs.run(script) == ["0", "3"]


def test_what_was_in_hand_at_a_rewind_is_not_acknowledged(
    topic: Path, here: Path, onlooker: Onlooker
) -> None:
    push(topic, 1, 2)
    with reading(here / "topic@w") as reader:
        assert reader.read() == "1\n"
        os.truncate(here / "topic@w", 0)
    assert onlooker.leftovers(here / "topic@w") == ["1", "2"]


def test_a_subscription_cannot_be_rewound(topic: Path, here: Path) -> None:
    push(topic, 1)
    with pytest.raises(OSError, match="Invalid argument"):
        os.truncate(here / "topic@", 0)
    assert topic.read_text() == "1\n"


@pytest.mark.parametrize("what", ["topic@w", "topic"])
@pytest.mark.parametrize("view", ["topic@w", "topic@"])
def test_what_is_removed_while_a_reader_waits(topic: Path, programs: Programs, what: str, view: str) -> None:
    if (what, view) == ("topic@w", "topic@"):
        pytest.skip("a subscription has nothing to do with groups")
    push(topic)
    reader = programs.reading(["cat", view])
    programs.run(["rm", what])
    assert reader.communicate(timeout=WITHIN_S)[0] == f"cat: {view}: Stale file handle\n"


def test_a_group_that_was_removed_begins_anew(topic: Path, here: Path) -> None:
    push(topic, 1, 2)
    with reading(here / "topic@w") as reader:
        assert [reader.read(), reader.read()] == ["1\n", "2\n"]
    (here / "topic@w").unlink()
    with pytest.raises(FileNotFoundError):
        (here / "topic@w").unlink()
    with reading(here / "topic@w") as reader:
        assert reader.read() == "1\n"


def test_a_reset_while_a_worker_has_a_message(topic: Path, here: Path, onlooker: Onlooker) -> None:
    push(topic, "old", "older")
    with reading(here / "topic@w") as reader:
        assert reader.read() == "old\n"
        os.truncate(topic, 0)
        push(topic, "new", "newer")
        assert reader.gets() == "new\n"
    assert onlooker.leftovers(here / "topic@w") == ["newer"]


def test_retention_passes_the_cursor(topic: Path, here: Path, onlooker: Onlooker) -> None:
    configure(topic, **{"retention.messages": "10"})
    with reading(here / "topic@w") as reader:
        push(topic, 0)
        assert reader.read() == "0\n"
        for n in range(1, 30):  # many segments: retention removes whole ones
            topic.write_text("".join(f"{n} {'x' * 1000} {line}\n" for line in range(400)))
        eventually(lambda: int(os.getxattr(topic, "user.dnp.first_offset")) > 0)
        first = topic.read_text().split("\n")[0] + "\n"
        assert reader.read() >= first
        assert onlooker.lag(here / "topic@w") <= int(os.getxattr(topic, "user.dnp.messages"))


def test_what_is_known_of_a_group(here: Path) -> None:
    topic, view = here / "topic", here / "topic@w"
    topic.write_bytes(b"1\n2\n3\n")
    assert os.listxattr(view) == [], "nobody has read it: there is no such group yet"
    with view.open("rb", buffering=0) as file:
        assert file.read(100) == b"1\n"
        known = {name: int(os.getxattr(view, f"user.dnp.{name}")) for name in GROUP_FACTS}
        assert (known["lag"], known["pending"], known["members"]) == (3, 1, 1)
        assert (known["offset"], known["message"]) == (2, 1)
    assert set(os.listxattr(view)) == {f"user.dnp.{name}" for name in GROUP_FACTS}
    eventually(lambda: os.getxattr(view, "user.dnp.lag") == b"2")
    os.setxattr(view, "user.dnp.seek", b"first")
    assert os.getxattr(view, "user.dnp.lag") == b"3"
    os.setxattr(view, "user.dnp.seek", b"2999-01-01")
    assert os.getxattr(view, "user.dnp.lag") == b"0"
    for name, value, code in (
        ("lag", b"0", errno.EPERM),
        ("seek", b"soon", errno.EINVAL),
        ("batch", b"2", errno.EPERM),
    ):
        with pytest.raises(OSError, match=os.strerror(code)):
            os.setxattr(view, f"user.dnp.{name}", value)
    assert os.listxattr(here / "topic@") == []
