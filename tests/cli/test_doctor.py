"""`dnpipefs doctor` on real clusters: sound, full, guarded, of three members, half dead."""

import json
import os
import time
from collections.abc import AsyncIterator, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import trio

from dnpipefs.core.batch import Chunk, encode
from dnpipefs.core.keys import KeySchema
from dnpipefs.core.names import FileId, Revision, SessionId
from dnpipefs.core.records import encode_session, encode_time
from dnpipefs.etcd import Client, Credentials, SpaceExceeded, open_client
from dnpipefs.etcd.endpoint import ALARM
from dnpipefs.etcd.proto import rpc_pb2 as pb
from tests.cli.conftest import Command, cluster_options
from tests.etcd.test_security import GUEST, ROOT
from tests.support.certificates import Authority
from tests.support.etcd_http import keys_below
from tests.support.etcd_process import EtcdProcess, ServerTls, free_port

QUOTA = 16 << 20
ENOUGH = 20.0


class Report:
    """What the doctor said."""

    def __init__(self, command: Command, *arguments: str, code: int | None = 0) -> None:
        done = command.run("doctor", "--format", "json", *arguments)
        assert done.stderr == b""
        said: dict[str, Any] = json.loads(done.stdout)
        self.fixed: list[str] = said["fixed"]
        self.findings: list[dict[str, str]] = said["findings"]
        assert code is None or done.returncode == code, said
        assert done.returncode == (1 if self.subjects("problem") else 0)

    def subjects(self, level: str) -> list[str]:
        return [finding["subject"] for finding in self.findings if finding["level"] == level]

    def meaning(self, subject: str) -> str:
        return "; ".join(finding["meaning"] for finding in self.findings if finding["subject"] == subject)


def small(directory: Path, binary: str, **more: Any) -> EtcdProcess:
    return EtcdProcess(directory, binary, arguments=["--quota-backend-bytes", str(QUOTA)], **more)


@pytest.fixture
def small_etcd(tmp_path: Path, etcd_binary: str) -> Iterator[EtcdProcess]:
    server = small(tmp_path / "etcd", etcd_binary)
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture
async def three(tmp_path: Path, etcd_binary: str) -> AsyncIterator[list[EtcdProcess]]:
    members = [small(tmp_path / name, etcd_binary, name=name) for name in ("a", "b", "c")]
    try:
        for member in members:
            member.cluster = members
            member.launch()
        for member in members:
            member.wait_ready()
        yield members
    finally:
        for member in members:
            member.kill()


async def fill(client: Client, prefix: bytes = b"large/") -> None:
    """Put until etcd refuses: in small pieces, so that hardly any of the file is free pages between them."""
    for number in range(1000):
        try:
            await client.put(prefix + b"%d" % number, b"x" * (1 << 16))
        except SpaceExceeded:
            return
    raise AssertionError("there is no end of it")


async def raise_alarm(client: Client, member: int) -> None:
    request = pb.AlarmRequest(action=pb.AlarmRequest.ACTIVATE, memberID=member, alarm=pb.NOSPACE)
    await client._pool.call(ALARM, request, ENOUGH, once=True)


def options_of(tmp_path: Path, server: EtcdProcess, who: Credentials, prefix: str) -> list[str]:
    password = tmp_path / who.user
    password.touch(mode=0o600)
    password.write_text(who.password)
    return [
        *("--endpoints", server.endpoint, "--prefix", prefix),
        *("--user", who.user, "--password-file", str(password)),
    ]


def test_a_sound_one(dnp: Command, shared_server: EtcdProcess) -> None:
    dnp.out("push", "t", "x")
    report = Report(dnp)
    assert report.subjects("problem") == []
    assert "may be read and written" in report.meaning(f"prefix {dnp.options[3]}")
    assert "a write" in report.meaning("latency")
    assert "within 2 s" in report.meaning("clocks of etcd")
    assert "of 2 GiB" in report.meaning(f"space of {shared_server.endpoint}")
    assert "none so far" in report.meaning(f"compaction of {shared_server.endpoint}")
    assert report.fixed == []
    assert keys_below(shared_server.endpoint, f"{dnp.options[3]}doctor/") == []
    assert Report(dnp, "--fix").fixed == [], "there is nothing to win"
    text = dnp.out("doctor").decode()
    assert f"ok       endpoint {shared_server.endpoint}: answers, etcd 3." in text
    assert text.splitlines()[-1].startswith("0 problems, ")


async def test_a_mount_point_of_any_bytes(shared_server: EtcdProcess) -> None:
    """Which any host has put there, is shown without harm to a terminal, and as JSON that others can read."""
    command = Command(cluster_options(shared_server))
    command.out("push", "t", "x")
    where = os.fsdecode(b"/\xff\x1b[2J\n")
    session = encode_session(host="host", pid=1, mountpoint=where, version="0.1.0")
    async with open_client([shared_server.endpoint], timeout=ENOUGH) as client:
        await client.put(KeySchema(command.options[3]).session(SessionId(5)), session)
    assert f"host:{where}" in Report(command).meaning("hosts")
    assert b"ok       hosts: 1 mount: host:/??[2J?; " in command.out("doctor")


def test_etcds_own_compaction_is_seen(tmp_path: Path, etcd_binary: str) -> None:
    arguments = ["--auto-compaction-mode=revision", "--auto-compaction-retention", "1000"]
    server = EtcdProcess(tmp_path / "etcd", etcd_binary, arguments=arguments)
    try:
        server.start()
        report = Report(Command(cluster_options(server)))
        assert "by itself (revision, 1000)" in report.meaning(f"compaction of {server.endpoint}")
        assert "holds nothing yet" in report.meaning(report.subjects("note")[-1])
    finally:
        server.kill()


async def test_a_full_one_is_fixed_when_something_was_removed(small_etcd: EtcdProcess) -> None:
    command = Command(cluster_options(small_etcd))
    command.out("push", "t", "x")
    async with open_client([small_etcd.endpoint], timeout=ENOUGH) as client:
        await fill(client)
        assert "alarm NOSPACE" in Report(command, code=1).subjects("problem")
        refused = Report(command, "--fix", code=1)
        assert "the alarm stays on, since" in refused.fixed[-1]
        assert "alarm NOSPACE" in refused.subjects("problem")
        assert "`dnpipefs doctor` says what else" in command.fails(1, "push", "t", "refused")
        await client.delete(b"large/", b"large0")
    report = Report(command, "--fix")
    assert [line.split()[0] for line in report.fixed] == ["compacted", "defragmented", "disarmed"]
    command.out("push", "t", "y")
    assert command.out("pull", "t") == b"x\ny\n"


async def test_three_members_of_which_one_is_named(three: list[EtcdProcess]) -> None:
    command = Command(cluster_options(three[0]))
    command.out("push", "t", "x")
    async with open_client([three[0].endpoint], timeout=ENOUGH) as client:
        await fill(client)
        await client.delete(b"large/", b"large0")
        statuses = {}
        for member in three:
            async with open_client([member.endpoint], timeout=ENOUGH) as one:
                statuses[member.endpoint] = await one.status()
    (leader,) = [name for name, status in statuses.items() if status.leader == status.member_id]
    report = Report(command, code=1)
    assert f"3, led by {leader}" in report.meaning("members")
    full = {subject.removeprefix("space of ") for subject in report.subjects("problem")} & statuses.keys()
    assert full, "at least the member that raised the alarm; others may lie a page below the quota"
    fixed = Report(command, "--fix").fixed
    order = [line.split()[1] for line in fixed if line.startswith("defragmented")]
    assert sorted(order) == sorted(statuses)
    assert order[-1] == leader
    command.out("push", "t", "y")


async def test_the_alarm_of_a_member_that_does_not_answer_stays_on(three: list[EtcdProcess]) -> None:
    command = Command(cluster_options(three[0]))
    async with open_client([three[0].endpoint, three[1].endpoint], timeout=ENOUGH) as client:
        ids = {member.name: member.id for member in await client.members()}
        for name in ("a", "c"):
            await raise_alarm(client, ids[name])
        three[2].kill()
        fixed = Report(command, "--fix", code=1).fixed
        assert fixed[-1].startswith("the alarm of c stays on, since it does not answer")
        assert [alarm.member_id for alarm in await client.alarms()] == [ids["c"]]


async def test_a_majority_that_is_gone(three: list[EtcdProcess]) -> None:
    for member in three[1:]:
        member.kill()
    command = Command([*cluster_options(three[0]), "--op-timeout", "3"])
    report = Report(command, code=1)
    (problem,) = [finding for finding in report.findings if finding["level"] == "problem"]
    if problem["subject"].startswith("prefix"):  # it takes a moment to notice that it is alone
        assert "a majority of etcd's members" in problem["advice"]
    else:
        assert "has no leader: is a majority of the members up?" in problem["meaning"]


def test_one_of_two_endpoints_is_dead(shared_server: EtcdProcess) -> None:
    dead = f"http://127.0.0.1:{free_port()}"
    options = cluster_options(shared_server)
    options[1] += "," + dead
    report = Report(Command(options), code=1)
    assert report.subjects("problem") == [f"endpoint {dead}"]
    assert "check that etcd runs and listens there" in report.meaning(f"endpoint {dead}")
    assert "may be read and written" in report.meaning(f"prefix {options[3]}")


async def test_a_user_with_a_role_on_the_prefix(guarded: EtcdProcess, tmp_path: Path) -> None:
    report = Report(Command(options_of(tmp_path, guarded, GUEST, "open/")))
    assert "may be read and written" in report.meaning("prefix open/")
    assert "lets 'guest' in" in report.meaning("user")
    assert "of 2 GiB" in report.meaning(f"space of {guarded.endpoint}")
    elsewhere = Report(Command(options_of(tmp_path, guarded, GUEST, "closed/")), code=1)
    assert elsewhere.subjects("problem") == ["prefix closed/"]
    assert "permission denied" in elsewhere.meaning("prefix closed/")
    nobody = Report(Command(["--endpoints", guarded.endpoint]), code=1)
    assert nobody.subjects("problem") != []
    wrong = Report(Command(options_of(tmp_path, guarded, Credentials("guest", "wrong"), "open/")), code=1)
    assert "refuses user 'guest'" in wrong.meaning(f"endpoint {guarded.endpoint}")


async def test_who_may_fix(guarded: EtcdProcess, tmp_path: Path) -> None:
    async with open_client([guarded.endpoint], credentials=ROOT, timeout=ENOUGH) as client:
        await raise_alarm(client, (await client.status()).member_id)
    refused = Report(Command(options_of(tmp_path, guarded, GUEST, "open/")), "--fix", code=1)
    assert "root role" in refused.meaning("fix")
    assert "alarm NOSPACE" in refused.subjects("problem")
    done = Report(Command(options_of(tmp_path, guarded, ROOT, "open/")), "--fix")
    assert done.fixed[-1].startswith("disarmed")


async def test_tls(tmp_path: Path, etcd_binary: str) -> None:
    authority, stranger = Authority(tmp_path, "right"), Authority(tmp_path, "stranger")
    its, mine = authority.issue("server"), authority.issue("client")
    server = EtcdProcess(tmp_path / "etcd", etcd_binary, tls=ServerTls(its.cert, its.key, authority.ca))
    try:
        server.start()
        files = ["--cert", str(mine.cert), "--key", str(mine.key)]
        options = [*cluster_options(server), *files, "--cacert", str(authority.ca)]
        report = Report(Command(options))
        assert "encrypted" in report.meaning("TLS")
        assert "of 2 GiB" in report.meaning(f"space of {server.endpoint}")
        wrong = Report(Command([*cluster_options(server), *files, "--cacert", str(stranger.ca)]), code=1)
        assert "TLS failed" in wrong.meaning(f"endpoint {server.endpoint}")
    finally:
        server.kill()


async def test_what_lies_under_the_prefix(shared_server: EtcdProcess) -> None:
    command = Command(cluster_options(shared_server))
    command.out("push", "t", "x")
    keys = KeySchema(command.options[3])
    old = time.time_ns() - 3600 * 10**9
    async with open_client([shared_server.endpoint], timeout=ENOUGH) as client:
        await client.put(keys.trash(FileId(7)), encode_time(old))
        session = encode_session(host="web7", pid=1, mountpoint="/dnp", version="9.9")
        await client.put(keys.session(7), session)  # type: ignore[arg-type]
        report = Report(command)
        assert "1 order to remove old keys: nobody has come for 36" in report.meaning("leftovers")
        assert "1 mount: web7:/dnp" in report.meaning("hosts")
        await client.put(keys.meta, b'{"cluster":"x","format":99}')
    assert "has format version 99" in Report(command, code=1).meaning(f"prefix {command.options[3]}")


async def test_the_clocks_of_those_who_push(shared_server: EtcdProcess) -> None:
    command = Command(cluster_options(shared_server))
    keys = KeySchema(command.options[3])
    for ahead, said in ((0, "within 2 s"), (3600, "in the future"), (-3600, "old by its host's clock")):
        async with (
            open_client([shared_server.endpoint], timeout=ENOUGH) as client,
            trio.open_nursery() as nursery,
        ):

            async def push(client: Client = client, ahead: int = ahead) -> None:
                for sequence in count(1):
                    value = encode(
                        [Chunk.of_lines(b"x\n")],
                        generation=Revision(1),
                        time_ns=time.time_ns() + ahead * 10**9,
                        session=SessionId(9),
                        sequence=sequence,
                    )
                    await client.put(keys.batch(FileId(7), SessionId(9), sequence, 2, 1), value)
                    await trio.sleep(0.05)  # as a host that pushes now and then

            nursery.start_soon(push)
            report = await trio.to_thread.run_sync(Report, command)
            nursery.cancel_scope.cancel()
        assert said in report.meaning("clocks of hosts")


def test_an_etcd_of_our_own(embedded: Command) -> None:
    line = embedded.fails(1, "doctor")
    assert "there is no etcd in" in line
    assert "--endpoints" in line
    embedded.out("push", "t", "x")
    report = Report(embedded)
    assert "by whoever uses this etcd" in "".join(finding["meaning"] for finding in report.findings)
    assert Report(embedded, "--fix").fixed == []
