"""What is said, in one line, and with which exit status, when something is wrong."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import dnpipefs
from dnpipefs.cli import listing, program
from dnpipefs.core.config import DEFAULTS
from dnpipefs.core.keys import KeySchema
from dnpipefs.etcd import Client, open_client
from tests.cli.conftest import WITHIN_S, Command, cluster_options
from tests.etcd.test_security import ROOT
from tests.support.etcd_process import EtcdProcess, free_port


def said(capsys: pytest.CaptureFixture[str], code: int, *arguments: str) -> str:
    """Run a command line in this process: for failures that come before any connection."""
    assert program.run(arguments) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("dnpipefs: ")
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("", "Missing command"),
        ("frobnicate", "No such command 'frobnicate'"),
        ("push", "Missing argument 'TOPIC'"),
        ("pull t --from nowhere", "neither 'first', 'last', an offset in bytes nor a time"),
        ("pull t --from -1", "neither 'first'"),
        ("pull t --from 0001-01-01T00:00+01:00", "neither 'first'"),
        ("pull t --from 2026-13-01", "neither 'first'"),
        ("pull t --count 0", "'--count'"),
        ("pull t --format xml", "'xml' is not one of 'raw', 'json'"),
        ("pull t --frobnicate", "No such option"),
        ("ls a b", "unexpected extra argument (b)"),
        ("ls --op-timeout 0", "above 0"),
        ("ls --op-timeout nan", "above 0"),
        ("ls --op-timeout inf", "above 0"),
        ("ls --op-timeout soon", "'soon' is not a valid float"),
        ("ls --endpoints ,", "one or more addresses"),
        ("ls --prefix dnp", "must end with '/'"),
        (f"ls --prefix /{os.fsdecode(bytes([255]))}/", "'--prefix': the value is not text"),
        (f"ls --endpoints {os.fsdecode(bytes([255]))}:1", "'--endpoints': the value is not text"),
        ("ls --log-level loud", "'loud' is not one of"),
        ("ls --cacert /no/such/file", "File '/no/such/file' does not exist"),
        ("ls --cert /etc/passwd", "--cert and --key go together"),
        ("ls --user root", "--user and --password-file go together"),
        ("ls --user root --password-file /no/such/file", "does not exist"),
        ("ls --data-dir /etc/passwd", "is a file"),
        ("mount", "Missing argument 'MOUNTPOINT'"),
    ],
)
def test_usage(capsys: pytest.CaptureFixture[str], arguments: str, text: str) -> None:
    line = said(capsys, 2, *arguments.split())
    assert text in line
    assert "--help)" in line


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.run(["--version"]) == 0
    assert capsys.readouterr().out == f"dnpipefs, version {dnpipefs.__version__}\n"
    assert program.run(["--help"]) == 0
    text = capsys.readouterr().out
    assert "Exit status:" in text
    for name in program.COMMANDS:
        assert name in text
        assert program.run([name, "--help"]) == 0
        assert "Usage: dnpipefs " + name in capsys.readouterr().out


@pytest.mark.parametrize("command", ["--help", "--version", "config", "completion bash", "status"])
def test_output_that_cannot_be_written(command: str) -> None:
    """Of commands that need no cluster; a failure of the others is told in the same place."""
    line = [sys.executable, "-m", "dnpipefs", *command.split()]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(line, stdout=full, stderr=subprocess.PIPE, timeout=WITHIN_S, check=False)
    said = b"dnpipefs: cannot write to standard output: No space left on device\n"
    assert (done.returncode, done.stderr) == (1, said)
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as unread:
        done = subprocess.run(line, stdout=unread, stderr=subprocess.PIPE, timeout=WITHIN_S, check=False)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


def test_streams_that_are_closed(dnp: Command) -> None:
    """Their numbers are given to no file or socket, where messages would be written then."""
    done = dnp.shell("dnp push t one >&- 2>&- <&- && dnp pull t 2>&-")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"one\n", b"")
    done = dnp.shell("dnp pull t >&-")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr == b"dnpipefs: cannot write to standard output: Bad file descriptor\n"
    done = dnp.shell("dnp push t <&-")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr == b"dnpipefs: cannot read standard input: Bad file descriptor\n"
    assert dnp.out("pull", "t") == b"one\n"


def test_a_fault_of_ours(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(*_: object) -> None:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(listing, "run_connected", faulty)
    line = said(capsys, 70, "ls")
    assert "unexpected ZeroDivisionError: planted; --log-level debug" in line


def test_no_etcd(embedded: Command, no_programs: dict[str, str]) -> None:
    line = embedded.fails(1, "push", "t", "x", env=no_programs)
    assert "apt-get install etcd-server" in line
    assert "--endpoints" in line


def test_endpoints_where_nobody_listens() -> None:
    command = Command(["--endpoints", f"http://127.0.0.1:{free_port()},127.0.0.1:{free_port()}"])
    assert "check that etcd runs and listens there" in command.fails(1, "pull", "t")


def test_an_endpoint_that_does_not_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        command = Command(["--endpoints", f"http://127.0.0.1:{deaf.getsockname()[1]}"])
        assert "no etcd endpoint is usable" in command.fails(1, "ls")


def test_an_address_that_is_none() -> None:
    for nonsense in ("nonsense", "http://127.0.0.1:99999", "127.0.0.1:0", "127.0.0.1:٣"):
        assert "write host:port" in Command(["--endpoints", nonsense]).fails(1, "ls")


def test_an_etcd_that_stops_answering(server: EtcdProcess) -> None:
    command = Command([*cluster_options(server), "--op-timeout", "0.5"])
    command.out("push", "t", "x")
    push = command.start("push", "t")
    assert push.stdin is not None
    push.stdin.write(b"committed\n")
    follower = command.start("pull", "--from", "2", "--follow", "t")
    assert follower.stdout is not None
    assert follower.stdout.readline() == b"committed\n"
    server.pause()
    _, err = push.communicate(b"not committed\n")
    server.resume()
    assert push.returncode == 3
    lines = err.decode().splitlines()
    assert "no answer from etcd within 0.5 s" in lines[-1]
    assert lines[-1].startswith("dnpipefs: ")
    command.end()


async def test_passwords(guarded: EtcdProcess, tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.touch(mode=0o600)
    password.write_text(ROOT.password + "\n")
    command = Command(
        ["--endpoints", guarded.endpoint, "--user", ROOT.user, "--password-file", str(password)]
    )
    command.out("push", "t", "x")
    password.write_text("wrong")
    line = command.fails(1, "pull", "t")
    assert f"refuses user {ROOT.user!r}: check user and password" in line
    assert "wrong" not in line
    password.write_bytes(b"\xff")
    assert "it is not text" in command.fails(1, "pull", "t")
    password.write_text(ROOT.password)
    password.chmod(0o644)
    done = command.run("pull", "t")
    assert (done.returncode, done.stdout) == (0, b"x\n")
    assert b"chmod 600" in done.stderr


async def test_an_unknown_format(shared_server: EtcdProcess) -> None:
    command = Command(cluster_options(shared_server))
    async with open_client([shared_server.endpoint]) as client:
        await client.put(KeySchema(command.options[3]).meta, b'{"cluster":"x","format":99}')
    assert "has format version 99, this release knows 1" in command.fails(1, "pull", "t")


async def test_a_damaged_namespace(shared_server: EtcdProcess, client: Client) -> None:
    command = Command(cluster_options(shared_server))
    command.out("push", "t", "x")
    keys = KeySchema(command.options[3])
    await client.delete(keys.root)
    assert "has no root directory" in command.fails(1, "pull", "t")


@pytest.mark.parametrize(
    ("code", "arguments", "text"),
    [
        (2, ["push", "jobs@workers", "x"], "'@' is reserved"),
        (2, ["pull", "jobs@workers"], "views (topic@, topic@group) are files of a mount"),
        (2, ["push", ".dnp", "x"], "'.dnp' is reserved"),
        (2, ["push", "x" * 256, "x"], "name of 256 bytes; at most 255"),
        (1, ["push", "no/where", "x"], "no directory 'no'; make it first"),
        (1, ["push", "", "x"], "is a directory"),
        (1, ["push", "t", "x" * (65536)], None),
    ],
)
def test_topics_that_cannot_be(dnp: Command, code: int, arguments: list[str], text: str | None) -> None:
    if text is None:
        assert dnp.out(*arguments) == b""
    else:
        assert text in dnp.fails(code, *arguments)


def test_too_large_a_message(dnp: Command) -> None:
    given = b"before\n" + b"x" * (DEFAULTS.max_message + 1) + b"\nbehind\n"
    assert f"larger than {DEFAULTS.max_message} bytes" in dnp.fails(1, "push", "t", given=given)
    assert dnp.out("pull", "t") == b"before\n"


def test_standard_input_that_cannot_be_read(dnp: Command) -> None:
    done = dnp.shell("dnp push t 0> /dev/null")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr == b"dnpipefs: cannot read standard input: Bad file descriptor\n"


def test_the_traceback_is_there_for_who_asks(shared_server: EtcdProcess) -> None:
    done = Command(cluster_options(shared_server)).run("pull", "missing", "--log-level", "debug")
    assert done.returncode == 1
    assert b"Traceback" in done.stderr


def test_mount_points_that_cannot_be(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for command in ("mount", "mount -f"):
        assert "does not exist; make it: mkdir -p" in said(
            capsys, 1, *command.split(), str(tmp_path / "missing")
        )
        assert "is not a directory" in said(capsys, 1, *command.split(), str(file))
    assert "no dnpipefs is mounted on" in said(capsys, 1, "umount", str(tmp_path))


def test_the_program_is_installed() -> None:
    script = Path(sys.executable).parent / "dnpipefs"
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"dnpipefs, version {dnpipefs.__version__}\n"
    assert os.access(script, os.X_OK)
