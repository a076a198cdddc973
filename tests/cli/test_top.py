"""`dnpipefs top --once`, and what `top` refuses. The screen is in tests/top."""

import json
import shlex

from tests.cli.conftest import Command
from tests.docs.documents import TOP


def test_once(dnp: Command) -> None:
    dnp.out("push", "jobs", "one", "two")
    dnp.out("pull", "--group", "w", "--no-wait", "-n", "1", "jobs")
    lines = dnp.out("top", "--once", "--interval", "0").decode().splitlines()
    assert lines[0].endswith(": 1 topic, 1 group, 1 host")
    assert lines[1].startswith("etcd: 1 of 1 member answers, default leads, a read takes ")
    assert lines[4].split()[:7] == ["jobs", "2", "8", "-", "-", "0", "8"]
    assert lines[7].split()[:3] == ["jobs", "w", "1"]
    told = json.loads(dnp.out("top", "--once", "--interval", "0", "--format", "json"))
    assert told["interval_s"] is None
    (topic,) = told["topics"]
    assert (topic["topic"], topic["messages"], topic["messages_per_s"]) == ("jobs", 2, None)
    assert [group["lag"] for group in told["groups"]] == [1]
    assert [member["answers"] for member in told["etcd"]["members"]] == [True]


def test_rates_are_measured_over_the_interval(dnp: Command) -> None:
    dnp.out("push", "b", "x")
    dnp.out("push", "a", "x")
    told = json.loads(dnp.out("top", "--once", "--interval", "0.2", "--format", "json"))
    assert told["interval_s"] >= 0.2
    assert [(topic["topic"], topic["messages_per_s"], topic["bytes_per_s"]) for topic in told["topics"]] == [
        ("a", 0.0, 0.0),
        ("b", 0.0, 0.0),
    ]


def test_filter_and_order(dnp: Command) -> None:
    for topic, size in (("a", 1), ("b", 5), ("c", 3), ("other", 9)):
        dnp.out("push", topic, "x" * size)

    def names(*arguments: str) -> list[str]:
        told = dnp.out("top", "--once", "--interval", "0", "--format", "json", *arguments)
        return [topic["topic"] for topic in json.loads(told)["topics"]]

    assert names() == ["a", "b", "c", "other"]
    assert names("--sort", "size") == ["other", "b", "c", "a"]
    assert names("--sort", "size", "--reverse", "--filter", "?") == ["a", "c", "b"]
    assert names("--filter", "TH") == ["other"]


def test_what_is_no_terminal_is_told_so(dnp: Command) -> None:
    line = dnp.fails(2, "top", given=b"")
    assert "no terminal that can be drawn on: use --once" in line


def test_the_commands_of_the_document(dnp: Command) -> None:
    dnp.out("push", "jobs", *["x"] * 1002)
    dnp.out("pull", "--group", "w", "--no-wait", "-n", "1", "jobs")
    for line in "".join(TOP.of_kind("sh")).splitlines():
        if "|" in line:
            done = dnp.shell(line.replace("dnpipefs top", "dnp top"))
            assert (done.stderr, done.stdout) == (b"", b"jobs@w\n")
            continue
        _, command, *arguments = shlex.split(line)
        if "--interval" not in arguments:
            arguments += ["--interval", "0.2"]
        if "--once" in arguments:
            assert b"jobs" in dnp.out(command, *arguments)
        else:
            assert "no terminal" in dnp.fails(2, command, *arguments), "which is said of what has a meaning"


def test_what_has_no_meaning(dnp: Command) -> None:
    assert "--format needs --once" in dnp.fails(2, "top", "--format", "json")
    assert "--interval 0 needs --once" in dnp.fails(2, "top", "--interval", "0")
    assert "from 0.2 on" in dnp.fails(2, "top", "--interval", "0.1")
    assert "from 0.2 on" in dnp.fails(2, "top", "--once", "--interval", "nan")
    assert "'--sort'" in dnp.fails(2, "top", "--sort", "colour")
