"""What Tab offers, and what real shells make of it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from dnpipefs import etcd
from dnpipefs.cli import program
from dnpipefs.cli.completion import _for_bash
from dnpipefs.core.config import SETTINGS
from dnpipefs.core.keys import KeySchema
from dnpipefs.core.names import ROOT, FileId, Kind
from dnpipefs.core.records import Inode
from tests.cli.conftest import WITHIN_S, Capture, Command
from tests.support.etcd_process import EtcdProcess
from tests.support.shells import TAB, InteractiveShell
from tests.support.waiting import eventually

Offered = Callable[[str], list[str]]

INODE = Inode(FileId(0xAB), Kind.TOPIC, 0o644, 0, 0, 1, 1)
PROGRAMS = f"{Path(sys.executable).parent}:{os.environ['PATH']}"


def needs(shell: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(shell) is None, reason=f"no {shell}: apt-get install {shell}")


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch, capfdbinary: Capture) -> Offered:
    """What is offered at the end of a line, as zsh is told it."""

    def ask(line: str) -> list[str]:
        with monkeypatch.context() as patch:
            patch.setenv(program.COMPLETING, "zsh_complete")
            patch.setenv("_DNPIPEFS_LINE", line)
            with pytest.raises(SystemExit) as ended:
                program.run([])
        assert ended.value.code == 0
        lines = capfdbinary.readouterr().out.decode().splitlines()
        return [candidate.split("\t")[1] for candidate in lines if candidate]

    return ask


@pytest.fixture
def named(dnp: Command) -> str:
    """Options that name a cluster with topics, directories and groups."""
    for topic in ("jobs", "journal", "my topic", "it's", "new\nline", b"\xff"):
        dnp.out("push", topic, "one")
    for group in ("mail", "workers"):
        dnp.out("pull", "jobs", "--no-wait", "--group", group)
    return " ".join(dnp.options)


def test_commands_and_options(offered: Offered) -> None:
    assert offered("dnpipefs ") == list(program.COMMANDS)
    assert offered("dnpipefs pu") == ["push", "pull"]
    assert {"--endpoints", "--group", "--from"} <= set(offered("dnpipefs pull --"))
    assert offered("dnpipefs pull --fo") == ["--follow", "--format"]
    assert offered("dnpipefs pull --format ") == ["raw", "json"]
    assert offered("dnpipefs pull --format=j") == ["--format=json"]
    assert offered("dnpipefs pull t --from l") == ["last"]
    assert offered("dnpipefs completion ") == ["bash", "zsh", "fish"]


def test_settings(offered: Offered) -> None:
    assert offered("dnpipefs config-topic t ") == [f"{name}=" for name in SETTINGS]
    assert offered("dnpipefs config-topic t framing=line ack=") == [
        *("ack=exit-status", "ack=next-read", "ack=delivery")
    ]
    assert offered("dnpipefs config-topic t retention.age=") == ["retention.age=none"]
    assert offered("dnpipefs config-topic t batch=") == []
    assert offered("dnpipefs config-topic t nonsense=") == []
    assert offered("dnpipefs config-topic t --unset ret") == [
        *("retention.bytes", "retention.age", "retention.messages")
    ]


def test_topics_one_level_at_a_time(offered: Offered, dnp: Command, named: str) -> None:
    assert offered(f"dnpipefs pull {named} j") == ["jobs", "journal"]
    assert offered(f"dnpipefs pull {named} /j") == ["/jobs", "/journal"]
    assert offered(f"dnpipefs fsck {named} jobs jou") == ["journal"]
    assert offered(f"dnpipefs pull {named} nothing") == []
    assert offered(f"dnpipefs pull {named} nothing/j") == []
    assert offered(f"dnpipefs pull {named} ") == ["it's", "jobs", "journal", "my topic"], "what can be typed"


async def test_an_entry_that_cannot_be_read_hides_itself_only(
    offered: Offered, dnp: Command, named: str, client: etcd.Client
) -> None:
    keys = KeySchema(dnp.options[-1])
    await client.put(keys.entry(ROOT, b"jobs"), b"nonsense")
    directory = replace(INODE, kind=Kind.DIRECTORY)
    await client.put(keys.entry(ROOT, b"jars"), directory.encode())
    await client.put(keys.entry(directory.id, b"jam"), INODE.encode())
    assert await trio.to_thread.run_sync(offered, f"dnpipefs pull {named} j") == ["jars/", "journal"]
    assert await trio.to_thread.run_sync(offered, f"dnpipefs pull {named} jars/") == ["jars/jam"]


def test_groups_of_the_topic(offered: Offered, named: str) -> None:
    assert offered(f"dnpipefs pull {named} jobs --group ") == ["mail", "workers"]
    assert offered(f"dnpipefs seek {named} jobs w") == ["workers"]
    assert offered(f"dnpipefs redrive {named} journal ") == []
    assert offered(f"dnpipefs pull {named} --group ") == [], "of which topic?"


def test_what_is_no_cluster_has_no_topics(offered: Offered, tmp_path: Path) -> None:
    assert offered("dnpipefs pull --prefix no-slash ") == []
    (tmp_path / "file").touch()
    assert offered(f"dnpipefs pull --data-dir {tmp_path}/file ") == []


def test_an_etcd_of_ones_own_is_looked_at_and_never_started(offered: Offered, embedded: Command) -> None:
    data_dir = Path(embedded.options[1])
    line = f"dnpipefs pull {' '.join(embedded.options)} "
    assert offered(line) == []
    assert not data_dir.exists()
    embedded.out("push", "before", "one")
    assert offered(line) == [], "it has stopped again"
    with embedded.start("push", "jobs") as user:
        assert user.stdin is not None
        user.stdin.write(b"one\n")
        user.stdin.flush()
        eventually(lambda: offered(line) == ["before", "jobs"])
        user.stdin.close()
    assert user.returncode == 0


def test_an_etcd_that_does_not_answer_is_given_up(server: EtcdProcess) -> None:
    """Long before the time that a command waits."""
    server.pause()
    done = subprocess.run(
        [sys.executable, "-m", "dnpipefs"],
        env={
            **os.environ,
            program.COMPLETING: "fish_complete",
            "_DNPIPEFS_LINE": f"dnpipefs pull --op-timeout 600 --endpoints {server.endpoint} j",
        },
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
        check=False,
    )
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == "dnpipefs: etcd does not answer within 1 s\n"


@pytest.mark.parametrize(
    ("line", "value", "expected"),
    [
        ("dnp pull ", "jobs", "jobs"),
        ("dnp pull my", "my topic", r"my\ topic"),
        (r"dnp pull my\ t", "my topic", r"my\ topic"),
        ("dnp pull 'my t", "my topic", "my topic"),
        ('dnp pull "a"b', "ab c", r"b\ c"),
        ("dnp pull --format=", "--format=json", "json"),
        ("dnp pull http://a:1 b", "b@c", "b@c"),
        ("dnp pull b@", "b@c", "c"),
        (r"dnp pull b\@", "b@c", "b@c"),
        ("dnp pull 'b@", "b@c", "b@c"),
        ("dnp pull ", "~$HOME;*é", r"\~\$HOME\;\*é"),
    ],
)
def test_what_bash_puts_in(line: str, value: str, expected: str) -> None:
    assert _for_bash(value, line, " \t\n\"'@><=;|&(:") == expected


@pytest.fixture(params=[pytest.param("bash", marks=needs("bash")), pytest.param("zsh", marks=needs("zsh"))])
def shell(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[InteractiveShell]:
    """A shell that was told what `dnpipefs completion` says to tell it."""
    started = InteractiveShell(request.param, tmp_path, {**os.environ, "PATH": PROGRAMS})
    try:
        if request.param == "zsh":
            started.run("bindkey -e; autoload -Uz compinit && compinit -D")
        started.run(f'eval "$(dnpipefs completion {request.param})"')
        yield started
    finally:
        started.close()


def test_at_a_terminal(shell: InteractiveShell, named: str, tmp_path: Path) -> None:
    """Endpoints have colons, at which bash cuts."""
    typed, words = f"dnpipefs pull {named} ".encode(), ["dnpipefs", "pull", *named.split()]
    (tmp_path / "authority.pem").touch()
    assert shell.after(b"dnpipefs pul" + TAB + b"--fol" + TAB + b"x") == ["dnpipefs", "pull", "--follow", "x"]
    assert shell.after(typed + b"j" + TAB) == [*words, "jo"], "as far as it goes"
    assert shell.after(typed + b"my" + TAB + b"x") == [*words, "my topic", "x"]
    assert shell.after(typed + b"jobs --group w" + TAB + b"x") == [*words, "jobs", "--group", "workers", "x"]
    assert shell.after(typed + b"--format=j" + TAB + b"x") == [*words, "--format=json", "x"]
    assert shell.after(typed + b"--cacert auth" + TAB + b"x") == [*words, "--cacert", "authority.pem", "x"]
    changes = b"dnpipefs config-topic jobs fr" + TAB + b"w" + TAB + b"x"
    assert shell.after(changes) == ["dnpipefs", "config-topic", "jobs", "framing=write", "x"]


@needs("zsh")
def test_zsh_loads_it_by_itself(tmp_path: Path) -> None:
    shell = InteractiveShell("zsh", tmp_path, {**os.environ, "PATH": PROGRAMS})
    try:
        shell.run("bindkey -e; mkdir functions; dnpipefs completion zsh > functions/_dnpipefs")
        shell.run("fpath=($PWD/functions $fpath); autoload -Uz compinit && compinit -D")
        assert shell.after(b"dnpipefs pul" + TAB + b"x") == ["dnpipefs", "pull", "x"]
    finally:
        shell.close()


@needs("fish")
def test_in_fish(named: str, tmp_path: Path) -> None:
    (tmp_path / "authority.pem").touch()
    lines = (
        "dnpipefs pul",
        f"dnpipefs pull {named} jo",
        f"dnpipefs pull {named} my",
        f"dnpipefs pull {named} jobs --group ",
        "dnpipefs config-topic jobs framing=",
        "dnpipefs pull --format=j",
        "dnpipefs pull --cacert auth",
    )
    script = "dnpipefs completion fish | source\n" + "".join(f'complete -C "{line}"\n' for line in lines)
    said = subprocess.run(
        ["fish", "--no-config", "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PATH": PROGRAMS, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
        check=True,
    )
    assert said.stderr == ""
    assert said.stdout.splitlines() == [
        *("pull\tPrint the messages of a topic.", "jobs", "journal", "my topic", "mail", "workers"),
        *("framing=line", "framing=write", "--format=json", "authority.pem"),
    ]
