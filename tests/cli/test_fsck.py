"""fsck as a command: what it prints, and its exit statuses. What it finds: tests/fsck."""

import json
import os
import re
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest
import trio

from dnpipefs.cli import program
from dnpipefs.core.keys import KeySchema
from dnpipefs.core.names import FileId
from dnpipefs.etcd import Client, open_client
from tests.cli.conftest import WITHIN_S, Command
from tests.etcd.test_security import ROOT
from tests.support.etcd_process import EtcdProcess

T = TypeVar("T")


class Etcd:
    """The keys of the command's cluster, from outside. Not asynchronous: the command runs trio itself."""

    def __init__(self, dnp: Command) -> None:
        self._endpoint = dnp.options[1]
        self.keys = KeySchema(dnp.options[3])

    def do(self, act: Callable[[Client], Awaitable[T]]) -> T:
        async def connected() -> T:
            async with open_client([self._endpoint], timeout=WITHIN_S) as client:
                return await act(client)

        return trio.run(connected)

    def put(self, key: bytes, value: bytes) -> None:
        self.do(lambda client: client.put(key, value))

    def delete(self, key: bytes) -> None:
        assert self.do(lambda client: client.delete(key)).deleted == 1

    def topic(self) -> FileId:
        """Return the id of the cluster's one topic."""
        heads = self.do(lambda client: client.get_prefix(self.keys.prefix + b"head/", keys_only=True))
        [head] = heads.kvs
        return FileId(int(head.key.rpartition(b"/")[2], 16))


@pytest.fixture
def etcd(dnp: Command) -> Etcd:
    return Etcd(dnp)


def test_a_sound_cluster(dnp: Command) -> None:
    dnp.out("push", "t", "one", "two")
    assert re.fullmatch(
        rb"1 topics, 1 directories, \d+ bytes read: 0 errors, 0 warnings, 0 notes; 0 mended\n",
        dnp.out("fsck"),
    )
    assert dnp.out("fsck", "t").startswith(b"1 topics, 0 directories")


def test_what_can_be_mended(dnp: Command, etcd: Etcd) -> None:
    dnp.out("push", "t", "one")
    keys, topic = etcd.keys, etcd.topic()
    etcd.delete(keys.mark(topic))
    found = dnp.run("fsck")
    assert (found.returncode, found.stderr) == (4, b"")
    line, summary = found.stdout.decode().splitlines()
    assert line == (
        f"error T5: mark is missing or says something else in topic t (id {topic:x}): "
        f"{keys.mark(topic).decode()}: it is missing: hosts do not learn of the next reset [--repair: put it]"
    )
    assert summary.endswith("1 errors, 0 warnings, 0 notes; 0 mended")
    mended = dnp.run("fsck", "--repair", "t")
    assert (mended.returncode, mended.stderr) == (1, b"")
    assert mended.stdout.decode().splitlines()[0].endswith("[mended: put it]")
    assert b" 0 errors, 0 warnings, 0 notes; 1 mended" in mended.stdout
    assert dnp.out("fsck")
    assert dnp.out("pull", "t") == b"one\n"


def test_what_cannot_be_mended(dnp: Command, etcd: Etcd) -> None:
    dnp.out("push", "t", "one")
    keys, topic = etcd.keys, etcd.topic()
    tail = keys.tail(topic)
    found = etcd.do(lambda client: client.range(tail.start, tail.end)).kvs
    [kv] = [kv for kv in found if kv.key != keys.mark(topic)]
    etcd.put(kv.key, kv.value[:-1] + b"?")
    etcd.put(keys.last(topic), b'{"time":1}')
    for options in ([], ["--repair"]):
        done = dnp.run("fsck", *options, "--format", "json")
        assert (done.returncode, done.stderr) == (4, b"")
        finding, summary = (json.loads(line) for line in done.stdout.splitlines())
        assert finding == {
            "rule": "B2",
            "name": "batch damaged",
            "severity": "error",
            "topic": "t",
            "id": f"{topic:x}",
            "key": kv.key.decode(),
            "what": finding["what"],
            "lost": [0, 4],
            "repair": None,
            "mended": False,
        }
        assert finding["what"].endswith("the data in etcd is damaged: bytes 0 to 4 are lost")
        assert summary.keys() == {
            *("topics", "directories", "bytes", "errors", "warnings", "notes", "mended"),
        }
        assert (summary["topics"], summary["errors"], summary["mended"]) == (1, 1, 0)


def test_a_note_is_no_error(dnp: Command, etcd: Etcd) -> None:
    dnp.out("push", "t", "one")
    etcd.put(etcd.keys.prefix + b"later", b"?")
    line = dnp.out("fsck").decode().splitlines()[0]
    assert line.startswith(f"note U1: unknown key: {etcd.keys.prefix.decode()}later: ")


def test_only_what_is_named_is_checked(dnp: Command, etcd: Etcd) -> None:
    dnp.out("push", "bad", "one")
    etcd.delete(etcd.keys.mark(etcd.topic()))
    dnp.out("push", "good", "one")
    assert dnp.out("fsck", "good").startswith(b"1 topics")
    assert dnp.run("fsck", "good", "bad").returncode == 4
    assert dnp.run("fsck", "/").returncode == 4


def test_what_cannot_be_checked(dnp: Command) -> None:
    assert "there is nothing below /cli/" in dnp.fails(8, "fsck")
    dnp.out("push", "t", "one")
    assert "no topic or directory 'missing'" in dnp.fails(8, "fsck", "missing")
    gone = Command(["--endpoints", "http://127.0.0.1:1", "--op-timeout", "0.5"])
    assert "127.0.0.1:1" in gone.fails(8, "fsck")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("--frobnicate", "No such option"),
        ("--format xml", "'xml' is not one of"),
        ("--op-timeout 0", "above 0"),
        ("--user root", "--user and --password-file go together"),
        ("--endpoints localhost:1 a/../b", "'..'"),
    ],
)
def test_usage(capsys: pytest.CaptureFixture[str], arguments: str, text: str) -> None:
    assert program.run(["fsck", *arguments.split()]) == 16
    out, err = capsys.readouterr()
    assert out == ""
    assert text in err
    assert err.count("\n") == 1


async def test_a_user_that_can_only_read_is_enough(guarded: EtcdProcess, tmp_path: Path) -> None:
    def etcdctl(*arguments: str) -> None:
        user = ("--user", f"{ROOT.user}:{ROOT.password}", "--endpoints", guarded.endpoint)
        env = {**os.environ, "ETCDCTL_API": "3"}
        subprocess.run(["etcdctl", *user, *arguments], env=env, stdout=subprocess.DEVNULL, check=True)

    etcdctl("role", "add", "looks")
    etcdctl("role", "grant-permission", "looks", "--prefix=true", "read", "/dnp/")
    etcdctl("user", "add", "looker:secret")
    etcdctl("user", "grant-role", "looker", "looks")
    password = tmp_path / "password"
    password.touch(mode=0o600)
    to = ["--endpoints", guarded.endpoint, "--password-file", str(password), "--user"]
    password.write_text(ROOT.password)
    Command([*to, ROOT.user]).out("push", "t", "x")
    password.write_text("secret")
    assert b" 0 errors, 0 warnings" in Command([*to, "looker"]).out("fsck")


def test_an_etcd_of_its_own(embedded: Command) -> None:
    embedded.out("push", "t", "one")
    assert b"0 errors" in embedded.out("fsck")
