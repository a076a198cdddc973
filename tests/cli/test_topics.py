"""push, pull, reset and ls: real input in, the same bytes out."""

import base64
import json
import re
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.cli.conftest import WITHIN_S, Command

PUSHED_BYTES = 128 << 20
RESIDENT_LIMIT_KB = 150_000
"""Above what Python with gRPC takes (some 52 MB), below that and half of what is pushed."""


def test_messages_as_arguments(dnp: Command) -> None:
    assert dnp.out("push", "t", "one", "two words", "", "--", "--not-an-option", b"\xff") == b""
    assert dnp.out("pull", "t") == b"one\ntwo words\n\n--not-an-option\n\xff\n"


def test_lines_of_standard_input(dnp: Command) -> None:
    given = b"one\n\0two\xff\xfe\r\n\n" + b"x" * 200_000 + b"\nno newline at the end"
    assert dnp.out("push", "t", given=given) == b""
    assert dnp.out("pull", "t") == given
    assert dnp.out("push", "empty", given=b"") == b""
    assert dnp.out("ls") == b"empty\nt\n"


def test_a_hundred_thousand_lines_through_a_pipe(dnp: Command) -> None:
    lines = b"".join(b"%06d a line of a log file that somebody wants to keep\n" % n for n in range(100_000))
    dnp.out("push", "t", given=lines)
    assert dnp.out("pull", "t") == lines


# A process's peak begins with that of the one it was forked from, so a small one stands between.
MEASURE_PEAK = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def test_what_is_pushed_does_not_pile_up_in_memory(dnp: Command) -> None:
    """Empty lines are the worst case: a million messages a megabyte."""
    source = subprocess.Popen(["head", "-c", str(PUSHED_BYTES), "/dev/zero"], stdout=subprocess.PIPE)
    lines = subprocess.Popen(["tr", "\\0", "\\n"], stdin=source.stdout, stdout=subprocess.PIPE)
    with source, lines:
        done = subprocess.run(
            [sys.executable, "-c", MEASURE_PEAK, *dnp.line("push", "t")],
            stdin=lines.stdout,
            stdout=subprocess.PIPE,
            timeout=WITHIN_S,
            check=True,
        )
    assert int(done.stdout) < RESIDENT_LIMIT_KB
    assert dnp.out("ls", "-l").split()[3] == b"%d" % PUSHED_BYTES


def test_push_commits_as_lines_come(dnp: Command) -> None:
    dnp.out("push", "t", given=b"")
    push, pull = dnp.start("push", "t"), dnp.start("pull", "t", "--follow")
    assert push.stdin is not None
    assert pull.stdout is not None
    for line in (b"one\n", b"two\n"):
        push.stdin.write(line)
        assert pull.stdout.readline() == line
    push.stdin.close()
    assert push.wait(WITHIN_S) == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_following_without_a_word(dnp: Command, number: int, code: int) -> None:
    dnp.out("push", "t", "x")
    pull = dnp.start("pull", "--follow", "t")
    assert pull.stdout is not None
    assert pull.stdout.readline() == b"x\n"
    pull.send_signal(number)
    out, err = pull.communicate(timeout=WITHIN_S)
    assert (pull.returncode, out, err) == (code, b"", b"")


def test_ctrl_c_ends_a_push_that_waits_for_input(dnp: Command) -> None:
    dnp.out("push", "t", given=b"")
    push = dnp.start("push", "t")
    assert push.stdin is not None
    push.stdin.write(b"whole\nhalf")
    pull = dnp.start("pull", "--follow", "t")
    assert pull.stdout is not None
    assert pull.stdout.readline() == b"whole\n"
    push.send_signal(signal.SIGINT)
    assert push.wait(WITHIN_S) == 130
    assert dnp.out("pull", "t") == b"whole\n"


def test_a_reader_of_the_output_that_leaves_ends_pull_quietly(dnp: Command) -> None:
    dnp.out("push", "t", given=b"a line\n" * 200_000)
    done = dnp.shell("dnp pull t | head -1")
    assert (done.returncode, done.stdout, done.stderr) == (141, b"a line\n", b"")
    done = dnp.shell("dnp pull --follow t | head -1")  # though nothing more comes
    assert (done.returncode, done.stdout, done.stderr) == (141, b"a line\n", b"")


def test_a_full_disk_is_told(dnp: Command) -> None:
    dnp.out("push", "t", "x")
    done = dnp.shell("dnp pull t > /dev/full")
    assert done.returncode == 1
    assert done.stderr == b"dnpipefs: cannot write to standard output: No space left on device\n"


def test_count(dnp: Command) -> None:
    dnp.out("push", "t", "one", "two", "three")
    assert dnp.out("pull", "t", "--count", "2") == b"one\ntwo\n"
    assert dnp.out("pull", "t", "-n", "9") == b"one\ntwo\nthree\n"
    assert dnp.out("pull", "--follow", "t", "-n", "3") == b"one\ntwo\nthree\n"


def test_where_pull_begins(dnp: Command) -> None:
    dnp.out("push", "t", "one", "two", "three")
    for start, expected in [
        ("first", b"one\ntwo\nthree\n"),
        ("last", b""),
        ("4", b"two\nthree\n"),
        ("5", b"three\n"),
        ("1999-12-31", b"one\ntwo\nthree\n"),
        ("2999-12-31T23:59:59+01:00", b""),
    ]:
        assert dnp.out("pull", "t", "--from", start) == expected, start


def test_json(dnp: Command) -> None:
    before = datetime.now(UTC)
    dnp.out("push", "t", "ümläut", b"\xff")
    first, second = (json.loads(line) for line in dnp.out("pull", "t", "--format", "json").splitlines())
    assert first.keys() == {"offset", "time", "data"}
    assert (first["offset"], first["data"]) == (0, "ümläut\n")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", first["time"])
    assert abs((datetime.fromisoformat(first["time"]) - before).total_seconds()) < WITHIN_S
    assert (second["offset"], base64.b64decode(second["data_base64"])) == (9, b"\xff\n")
    # What JSON shows as an offset or a time is a place to begin.
    for start in (str(second["offset"]), second["time"]):
        assert dnp.out("pull", "t", "--from", start).endswith(b"\xff\n")


def test_reset(dnp: Command) -> None:
    dnp.out("push", "t", "x")
    assert dnp.out("reset", "t") == b""
    assert dnp.out("pull", "t") == b""
    assert "no topic or directory 'missing'" in dnp.fails(1, "reset", "missing")


def test_ls(dnp: Command) -> None:
    assert dnp.out("ls") == b""
    script = """
import sys, trio, dnpipefs
async def main():
    async with dnpipefs.connect(sys.argv[1], prefix=sys.argv[2]) as dnp:
        await dnp.mkdir("team", 0o750)
        await dnp.push("team/t", "12345678")
        await dnp.push(b"\\xff")
trio.run(main)
"""
    endpoint, prefix = dnp.options[1], dnp.options[3]
    subprocess.run([sys.executable, "-c", script, endpoint, prefix], check=True)
    assert dnp.out("ls") == b"team/\n\xff\n"
    assert dnp.out("ls", "team") == dnp.out("ls", "/team/t") == b"t\n"
    lines = dnp.out("ls", "-l").decode(errors="surrogateescape").splitlines()
    assert re.fullmatch(r"drwxr-x--- \w+ +\w+ +0 \d{4}-\d\d-\d\d \d\d:\d\d team/", lines[0])
    assert re.fullmatch(r"-rw-.{6} \w+ +\w+ +0 \d{4}-\d\d-\d\d \d\d:\d\d \udcff", lines[1])
    assert re.search(r" 9 \d{4}-.* t$", dnp.out("ls", "-l", "team").decode().rstrip())
    assert "no topic or directory 'missing'" in dnp.fails(1, "ls", "missing")


def test_an_etcd_of_its_own_serves_all_commands_and_keeps_the_data(embedded: Command) -> None:
    embedded.out("push", "t", "before")
    follower = embedded.start("pull", "--follow", "t")
    assert follower.stdout is not None
    assert follower.stdout.readline() == b"before\n"
    embedded.out("push", "t", "meanwhile")
    assert follower.stdout.readline() == b"meanwhile\n"
    follower.send_signal(signal.SIGTERM)
    assert follower.wait(WITHIN_S) == 143
    assert embedded.out("pull", "t") == b"before\nmeanwhile\n"
    assert not (Path(embedded.options[1]) / "etcd.pid").exists(), "the last to leave stops the server"
