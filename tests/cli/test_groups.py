"""pull --group, groups, seek and redrive: real processes that share a queue."""

import json
import os
import signal
from pathlib import Path

import trio

from dnpipefs import connect
from dnpipefs.core.keys import KeySchema
from tests.cli.conftest import WITHIN_S, Command
from tests.support.etcd_process import EtcdProcess
from tests.support.waiting import eventually


def test_a_group_gets_each_message_once(dnp: Command) -> None:
    dnp.out("push", "jobs", "1", "2", "3")
    assert dnp.out("pull", "jobs", "--group", "w", "--count", "2") == b"1\n2\n"
    assert dnp.out("pull", "jobs", "--group", "w", "--no-wait") == b"3\n"
    assert dnp.out("pull", "jobs", "--group", "w", "--no-wait") == b""
    assert dnp.out("pull", "jobs", "--group", "v", "--no-wait") == b"1\n2\n3\n"
    assert dnp.out("pull", "jobs") == b"1\n2\n3\n", "nothing is removed"


def test_json(dnp: Command) -> None:
    dnp.out("push", "jobs", "one")
    shown = json.loads(dnp.out("pull", "jobs", "--group", "w", "--no-wait", "--format", "json"))
    assert (shown["offset"], shown["data"]) == (0, "one\n")


def test_a_command_for_each_message(dnp: Command, tmp_path: Path) -> None:
    dnp.out("push", "jobs", *map(str, range(20)))
    done = dnp.run(
        "pull", "jobs", "--group", "w", "--exec", f"cat >> {tmp_path}/done", "--jobs", "4", "--no-wait"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert sorted((tmp_path / "done").read_text().split(), key=int) == [str(n) for n in range(20)]
    assert json.loads(dnp.out("groups", "jobs", "--format", "json"))["lag"] == 0


def test_a_command_has_all_of_its_message_even_if_who_started_it_is_killed(
    dnp: Command, tmp_path: Path
) -> None:
    """It could not tell a message that was cut from a whole one."""
    line = b"x" * 500_000 + b"\n"
    dnp.out("push", "jobs", given=line)
    script = f"touch {tmp_path}/has; until [ -e {tmp_path}/go ]; do :; done; cat > {tmp_path}/had"
    puller = dnp.start("pull", "jobs", "--group", "w", "--exec", script)
    eventually((tmp_path / "has").exists)
    puller.kill()
    puller.wait(WITHIN_S)
    (tmp_path / "go").touch()
    eventually(lambda: (tmp_path / "had").exists() and (tmp_path / "had").read_bytes() == line)


def test_a_command_that_fails_gives_its_message_back(dnp: Command, tmp_path: Path) -> None:
    dnp.out("push", "jobs", "1", "2")
    failing = f"read -r job; echo $job >> {tmp_path}/tried; exit 3"
    done = dnp.run("pull", "jobs", "--group", "w", "--exec", failing, "--count", "1", "--no-wait")
    assert done.stderr == b"dnpipefs: the command ended with status 3: offset 0 goes back\n"
    (facts,) = [json.loads(line) for line in dnp.out("groups", "jobs", "--format", "json").splitlines()]
    assert (facts["lag"], facts["returned"], facts["members"]) == (2, 1, [])
    assert facts["redeliveries"] == 0
    assert dnp.out("pull", "jobs", "--group", "w", "--no-wait") == b"1\n2\n"
    assert (tmp_path / "tried").read_text() == "1\n"
    assert json.loads(dnp.out("groups", "jobs", "--format", "json"))["redeliveries"] == 1


def test_dead_letters_and_back(dnp: Command) -> None:
    dnp.out("push", "jobs", "bad", "good")
    dnp.out("config-topic", "jobs", "max_deliveries=2")
    for _ in range(2):
        dnp.run("pull", "jobs", "--group", "w", "--exec", "exit 1", "--count", "1", "--no-wait")
    assert dnp.out("pull", "jobs", "--group", "w", "--count", "1") == b"good\n"
    eventually(lambda: b"jobs.dead" in dnp.out("ls") and dnp.out("pull", "jobs.dead") == b"bad\n")
    assert b'"lag": 0' in dnp.out("groups", "jobs", "--format", "json")
    assert dnp.out("redrive", "jobs", "w") == b"1 messages go to jobs@w again\n"
    assert dnp.out("pull", "jobs", "--group", "w", "--no-wait") == b"bad\n"
    assert dnp.out("redrive", "jobs", "w") == b"0 messages go to jobs@w again\n"


def test_seek(dnp: Command) -> None:
    dnp.out("push", "jobs", "one", "two", "three")
    dnp.out("seek", "jobs", "w", "4")
    assert dnp.out("pull", "jobs", "--group", "w", "--no-wait") == b"two\nthree\n"
    dnp.out("seek", "jobs", "w", "first")
    assert dnp.out("pull", "jobs", "--group", "w", "--count", "1") == b"one\n"
    dnp.out("seek", "jobs", "w", "last")
    assert dnp.out("pull", "jobs", "--group", "w", "--no-wait") == b""
    dnp.out("seek", "jobs", "w", "2001-01-01T00:00:00Z")
    assert dnp.out("pull", "jobs", "--group", "w", "--no-wait") == b"one\ntwo\nthree\n"
    dnp.out("seek", "jobs", "w", "2999-01-01T00:00:00Z")
    assert dnp.out("pull", "jobs", "--group", "w", "--no-wait") == b""


def test_groups_as_a_table(dnp: Command) -> None:
    assert dnp.out("groups") == b""
    dnp.out("push", "jobs", "one", "two")
    dnp.out("pull", "jobs", "--group", "w", "--count", "1")
    assert dnp.out("groups") == (
        b"TOPIC  GROUP  LAG  PENDING  RETURNED  AGAIN  MEMBERS  OFFSET\n"
        b"jobs   w        1        0         0      0        0       4\n"
    )


def test_groups_of_all_topics(dnp: Command, shared_server: EtcdProcess) -> None:
    """Those below directories, too, whatever bytes their names have; none of topics that have no group."""

    async def make_directory() -> None:
        async with connect(
            shared_server.endpoint, prefix=dnp.options[dnp.options.index("--prefix") + 1]
        ) as api:
            await api.mkdir("team")

    trio.run(make_directory)
    strange = os.fsdecode(b"\xff")
    for topic in ("team/jobs", strange, "idle"):
        dnp.out("push", topic, "one")
        if topic != "idle":
            dnp.out("pull", topic, "--group", "w", "--no-wait")
    assert dnp.out("groups").splitlines()[1:] == [
        b"team/jobs  w        0        0         0      0        0       4",
        b"\xff          w        0        0         0      0        0       4",
    ]
    assert dnp.out("redrive", strange, "w") == b"0 messages go to \xff@w again\n"
    told = [json.loads(line) for line in dnp.out("groups", "--format", "json").splitlines()]
    assert [group["topic"] for group in told] == ["team/jobs", strange]


def test_groups_of_a_topic_that_cannot_be_read(dnp: Command, shared_server: EtcdProcess) -> None:
    """The others' are told, and that there is one more."""
    prefix = dnp.options[dnp.options.index("--prefix") + 1]
    for topic in ("bad", "good"):
        dnp.out("push", topic, "one")
        dnp.out("pull", topic, "--group", "w", "--no-wait")

    async def spoil() -> None:
        async with connect(shared_server.endpoint, prefix=prefix) as api:
            keys, config = KeySchema(prefix), await api.config("bad")
            await api._cluster.client.put(keys.head(config.id), b"{}")

    trio.run(spoil)
    done = dnp.run("groups")
    assert done.returncode == 1
    assert [line.split()[:2] for line in done.stdout.splitlines()[1:]] == [[b"good", b"w"]]
    assert b"what is stored of bad cannot be read: run dnpipefs fsck" in done.stderr


def test_one_that_waits_ends_with_a_signal_and_loses_nothing(dnp: Command) -> None:
    dnp.out("push", "jobs", "one")
    worker = dnp.start("pull", "jobs", "--group", "w", "--exec", "cat; exec sleep 1000")
    assert worker.stdout is not None
    assert worker.stdout.readline() == b"one\n"
    worker.send_signal(signal.SIGINT)
    assert worker.wait(WITHIN_S) == 130
    assert dnp.out("pull", "jobs", "--group", "w", "--no-wait") == b"one\n"


def test_what_makes_no_sense_is_refused(dnp: Command) -> None:
    dnp.out("push", "jobs", "one")
    for wrong in (
        ("pull", "jobs", "--exec", "true"),
        ("pull", "jobs", "--no-wait"),
        ("pull", "jobs", "--group", "w", "--follow"),
        ("pull", "jobs", "--group", "w", "--jobs", "0"),
        ("pull", "jobs", "--group", "a@b", "--no-wait"),
        ("seek", "jobs", "w", "yesterday"),
    ):
        assert dnp.run(*wrong).returncode == 2, wrong
    assert dnp.run("pull", "missing", "--group", "w", "--no-wait").returncode == 1
