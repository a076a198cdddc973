"""What the documents tell to type is typed: on a real etcd and, where it says /dnp, on a real mount."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from dnpipefs import etcd
from dnpipefs.cli.exits import Exit
from dnpipefs.cluster import default_data_dir
from tests.docs.documents import (
    CONFIGURATION,
    FORMAT,
    FSCK,
    GROUPS,
    OBSERVABILITY,
    README,
    RELIABILITY,
    REPOSITORY,
    SECURITY,
    SEMANTICS,
)
from tests.docs.test_docs import example
from tests.support.etcd_http import keys_below
from tests.support.etcd_process import EtcdProcess
from tests.support.mounts import Mount, Mounts, why_no_mounts
from tests.support.processes import mounts_below
from tests.support.waiting import eventually

LIMIT_S = 30.0
"""For a command that takes a second, on a machine that has other things to do."""
PROGRAMS = f"{Path(sys.executable).parent}:{os.environ['PATH']}"

needs_mounts = pytest.mark.skipif(why_no_mounts() is not None, reason=why_no_mounts() or "")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdProcess]:
    process = EtcdProcess(tmp_path_factory.mktemp("etcd"), os.environ.get("DNPIPEFS_TEST_ETCD", "etcd"))
    try:
        process.start()
        yield process
    finally:
        process.kill()


@pytest.fixture(scope="module")
def mounts(server: EtcdProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounts]:
    """A mount of the default prefix, on an empty etcd."""
    mounts = Mounts(tmp_path_factory.mktemp("mounts"))
    try:
        host = mounts.make(endpoints=[server.endpoint], prefix="/dnp/")
        host.start()
        yield mounts
        assert host.stop() == 0
    finally:
        mounts.clear()


@pytest.fixture
def mount(mounts: Mounts) -> Iterator[Mount]:
    with mounts.guarded():
        (host,) = mounts.alive
        yield host


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """A mount point for the commands to use."""
    point = tmp_path / "mnt"
    point.mkdir()
    yield point
    for left in mounts_below(point):
        subprocess.run(["fusermount3", "-u", "-z", left], check=False)


def placed(text: str, mountpoint: Path) -> str:
    """Return a command line with the mount point in place of /dnp."""
    return re.sub(r"(?<!\S)/dnp(?=[/\s]|$)", str(mountpoint), text)


def start(command: str) -> subprocess.Popen[bytes]:
    # `exec`: a signal is for the program, not for the shell.
    return subprocess.Popen(
        ["bash", "-c", f"exec {command}"],
        env={**os.environ, "PATH": PROGRAMS},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def output(command: str) -> str:
    """Return what a command line says that ends with success."""
    done = subprocess.run(
        ["bash", "-c", command],
        env={**os.environ, "PATH": PROGRAMS},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}"
    return done.stdout


@needs_mounts
async def test_the_example_of_the_format(mount: Mount, server: EtcdProcess) -> None:
    """First in this file: it wants an empty etcd."""
    (commands,) = FORMAT.of_kind("sh")
    for line in commands.splitlines():
        assert output(placed(line, mount.path)) == ""
    async with etcd.open_client([server.endpoint]) as client:
        stored = await client.range(b"/dnp/", etcd.prefix_end(b"/dnp/"))
    assert [shape(kv.key, kv.value) for kv in stored.kvs] == [shape(*pair) for pair in example()]


def shape(key: bytes, value: bytes) -> tuple[str, str]:
    """Return a key without its ids, and a value with the types of its fields or as it is."""
    if b"/tail/" in key and not key.endswith(b"/mark"):
        return re.sub("[0-9a-f]{16}", "#", key.decode()), ""
    if not value.startswith(b"{"):
        return re.sub("[0-9a-f]{16}", "#", key.decode()), value.decode()
    fields = {name: type(content).__name__ for name, content in json.loads(value).items()}
    return re.sub("[0-9a-f]{16}", "#", key.decode()), json.dumps(fields)


def steps_of(session: str) -> list[tuple[str, str]]:
    """Return the commands of a session, each with what it says."""
    return re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", session, re.MULTILINE)


@needs_mounts
@pytest.mark.skipif(shutil.which("jq") is None, reason="no jq here: scripts/setup.sh --tests installs it")
def test_the_session_at_the_control_directory(mount: Mount) -> None:
    steps = steps_of(OBSERVABILITY.labelled("looking"))
    assert len(steps) == 7
    for command, expected in steps:
        assert output(placed(command, mount.path)) == expected, command


@needs_mounts
def test_the_session_of_the_readme(mount: Mount) -> None:
    (session,) = README.of_kind("console")
    steps = steps_of(session)
    assert len(steps) == 5
    for command, expected in steps:
        if " -f " in command:
            with start(placed(command, mount.path)) as process:
                assert process.stdout is not None
                assert process.stdout.read(len(expected)).decode() == expected
                process.terminate()
                assert process.stdout.read() == b""
        else:
            assert output(placed(command, mount.path)) == expected, command
    assert (mount.path / "builds").read_bytes() == b""


@needs_mounts
def test_the_command_line_of_the_readme(directory: Path, tmp_path: Path) -> None:
    for line in README.of_kind("sh")[1].splitlines():
        command = placed(line, directory)
        if not command.startswith(("dnpipefs umount", "dnpipefs status")):
            command = re.sub(r"^dnpipefs [\w-]+", rf"\g<0> --data-dir {tmp_path}/data", command)
        if "--follow" in command:
            see_what_comes(command, directory / "builds")
        else:
            said = output(command)
            if " doctor " in command:
                assert "\n0 problems, " in said
                continue
            assert said == "" or re.search(" (ls|fsck|groups|config|status|top) ", command), said
            assert said.endswith(" builds\n") == (" ls " in command), said
    assert mounts_below(directory) == []


def see_what_comes(command: str, topic: Path) -> None:
    with start(command) as process:
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)

        def pushed_and_seen() -> bool:
            with topic.open("a") as file:
                file.write("pushed later\n")
            return b"pushed later\n" in (process.stdout.read() or b"") if process.stdout else False

        eventually(pushed_and_seen)
        process.terminate()


@needs_mounts
def test_several_hosts_name_the_same_etcd(server: EtcdProcess, directory: Path, tmp_path: Path) -> None:
    (line,) = README.of_kind("sh")[0].splitlines()
    command = re.sub(r"http://etcd1\S*", server.endpoint, placed(line, directory))
    assert command != placed(line, directory)
    assert output(f"{command} --log-file {tmp_path}/log") == ""
    assert (directory / "builds").exists() or (directory / "team").exists(), "the other mount's topics"
    assert output(f"dnpipefs umount {directory}") == ""


@needs_mounts
def test_an_etcd_user_with_the_documented_role(directory: Path, tmp_path: Path, etcd_binary: str) -> None:
    guarded = EtcdProcess(tmp_path / "etcd", etcd_binary)
    password = tmp_path / "password"
    password.touch(mode=0o600)
    password.write_text("secret\n")
    commands = SECURITY.labelled("a user of etcd")
    *administration, mount = commands.splitlines()
    try:
        guarded.start()
        for line in administration:
            command = re.sub(r"^etcdctl", rf"\g<0> --endpoints {guarded.endpoint}", line)
            if " user add " in command:
                command = command.partition("#")[0] + f" --interactive=false < {password}"
            output(command)
        command = re.sub(r"http://etcd1\S*", guarded.endpoint, placed(mount, directory))
        command = command.replace("/etc/dnpipefs/password", str(password))
        assert output(f"{command} --log-file {tmp_path}/log --log-level warning") == ""
        assert output(f"echo pushed > {directory}/jobs; cat {directory}/jobs") == "pushed\n"
        used = int(output(f"df --output=used {directory}").split()[1])
        assert used > 0
        assert output(f"dnpipefs umount {directory}") == ""
    finally:
        guarded.kill()
    said = [line for line in (tmp_path / "log").read_text().splitlines() if "upgrade to" not in line]
    assert said == []


def test_the_configuration_in_force(tmp_path: Path) -> None:
    """With the directory of the test in place of /etc."""
    (tmp_path / "dnpipefs").mkdir()
    for name in ("ca.pem", "password"):
        (tmp_path / "dnpipefs" / name).touch(mode=0o600)
    file = tmp_path / "dnpipefs.toml"
    file.write_text(CONFIGURATION.labelled("a configuration").replace("/etc", str(tmp_path)))
    command, *expected = CONFIGURATION.labelled("what is in force").removeprefix("$ ").splitlines()
    said = output(f"{command} --config {file}").replace(str(tmp_path), "/etc")
    usual = {"data_dir": str(default_data_dir()), "mount.allow_other": str(os.geteuid() == 0).lower()}
    rows = [line.split() for line in expected]
    assert [line.split() for line in said.splitlines()] == [
        [key, usual.get(key, value), where] for key, value, where in rows
    ]
    columns = {re.fullmatch(r"(\S+ +)(\S+ +)\S+", line) for line in expected}
    assert len({(len(match[1]), len(match[2])) for match in columns if match}) == 1, "aligned"


def test_mistakes_in_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "mistaken.toml").write_text("op_timout = 3\n")
    session = CONFIGURATION.labelled("mistakes")
    for command, expected in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", session, re.MULTILINE):
        assert output(f"cd {tmp_path}; {command} || [ $? = {Exit.USAGE} ]") == expected


@needs_mounts
def test_settings_are_shown_and_set_as_documented(mount: Mount) -> None:
    (mount.path / "builds").touch()
    setting, showing, unsetting = SEMANTICS.labelled("settings").splitlines()
    assert output(placed(setting, mount.path)) == ""
    assert 'user.dnp.framing="write"' in output(placed(f"{showing} 2>/dev/null", mount.path))
    assert output(placed(unsetting, mount.path)) == ""
    assert 'user.dnp.framing="line"' in output(placed(f"{showing} 2>/dev/null", mount.path))


def write_without_end(topic: Path) -> None:
    with topic.open("ab", buffering=0) as file:
        while True:
            file.write(b"x" * 60_000 + b"\n")


@needs_mounts
def test_the_way_out_of_a_full_etcd(tmp_path: Path, etcd_binary: str) -> None:
    small = EtcdProcess(tmp_path / "etcd", etcd_binary, arguments=["--quota-backend-bytes", str(2 << 20)])
    mounts = Mounts(tmp_path)
    commands = SEMANTICS.labelled("a full etcd")
    *removal, fix = commands.splitlines()
    try:
        small.start()
        host = mounts.make(endpoints=[small.endpoint], prefix="/dnp/")
        host.start()
        (host.path / "old").write_bytes(b"old\n")
        with pytest.raises(OSError, match="No space"):
            write_without_end(host.path / "builds")
        for line in removal:
            assert output(placed(line, host.path)) == ""
        assert os.listdir(host.path) == ["builds"]
        eventually(lambda: not keys_below(small.endpoint, "/dnp/tail/"))
        said = output(fix.replace("http://etcd1:2379", small.endpoint))
        assert "disarmed the NOSPACE alarm" in said
        assert output(placed("echo new > /dnp/builds; cat /dnp/builds", host.path)) == "new\n"
        assert host.stop() == 0
    finally:
        mounts.clear()
        small.kill()


def test_the_python_of_the_readme(server: EtcdProcess, tmp_path: Path) -> None:
    (program,) = README.of_kind("python")
    script = tmp_path / "program.py"
    script.write_text(program.replace("http://etcd1:2379", server.endpoint))
    assert output(f"python {script}").rstrip().endswith("b'build 9 is done\\n'")


@needs_mounts
def test_the_recipes_for_groups(
    mount: Mount, server: EtcdProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the order of the document; what waits is ended as a user would end it."""
    monkeypatch.setenv("DONE", str(tmp_path))

    def recipe(label: str) -> str:
        text = placed(GROUPS.labelled(label), mount.path)
        return re.sub(r"^dnpipefs [\w-]+", rf"\g<0> --endpoints {server.endpoint}", text, flags=re.MULTILINE)

    def until_it_waits(label: str, expected: str) -> None:
        with subprocess.Popen(
            ["bash", "-c", recipe(label)], stdout=subprocess.PIPE, text=True, start_new_session=True
        ) as worker:
            try:
                assert worker.stdout is not None
                assert worker.stdout.read(len(expected)) == expected
            finally:
                os.killpg(worker.pid, signal.SIGTERM)

    jobs, orders = mount.path / "jobs", mount.path / "orders"
    jobs.write_text("one\ntwo\n")
    until_it_waits("work queue", "working on one\nworking on two\n")
    output(f"truncate -s 0 {jobs}@workers")
    assert output(recipe("one job")) == "one\n"
    assert output(recipe("exec")) == ""
    assert output(recipe("subscription")) == ""
    output(recipe("replay"))
    *table, lag = output(recipe("lag")).splitlines()
    assert [line.split()[:3] for line in table] == [["TOPIC", "GROUP", "LAG"], ["jobs", "workers", "2"]]
    assert lag == "2"
    output(recipe("dead letters"))
    assert output(recipe("redrive")) == "0 messages go to jobs@workers again\n"
    output(recipe("timeout"))
    orders.write_text("17\n17\n18\n")
    until_it_waits("exactly once", "billing 17\nbilling 18\n")


@needs_mounts
def test_the_commands_of_fsck(mount: Mount, server: EtcdProcess) -> None:
    for topic in ("team/jobs", "logs/app"):
        (mount.path / topic).parent.mkdir(exist_ok=True)
        (mount.path / topic).write_text("one\n")
    (commands,) = FSCK.of_kind("sh")
    for line in commands.splitlines():
        assert output(re.sub(r"^dnpipefs fsck", rf"\g<0> --endpoints {server.endpoint}", line)) != ""


@needs_mounts
def test_the_python_of_groups(mount: Mount, server: EtcdProcess, tmp_path: Path) -> None:
    (mount.path / "jobs").write_text("from Python\n")
    (mount.path / "jobs@workers").unlink(missing_ok=True)
    (body,) = GROUPS.of_kind("python")
    body = body.replace("connect()", f'connect("{server.endpoint}")').replace("data)", "data, flush=True)")
    script = tmp_path / "program.py"
    script.write_text(
        f"import dnpipefs, trio\nasync def main():\n{textwrap.indent(body, '    ')}\ntrio.run(main)\n"
    )
    with start(f"python {script}") as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line == b"b'from Python\\n'\n":
                break
        process.terminate()
        assert process.wait() == -signal.SIGTERM


def test_the_long_tests_are_targets() -> None:
    """They take half an hour: that make knows how to run them has to do."""
    (commands,) = RELIABILITY.of_kind("sh")
    for line in commands.splitlines():
        command = line.removeprefix("sudo ").partition("#")[0]
        assert "pytest" in output(f"cd {REPOSITORY}; {command} --dry-run")
