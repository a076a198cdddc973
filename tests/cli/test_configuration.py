"""Options from files, variables and flags: which one counts, what is said about a wrong one."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dnpipefs.cli import bench, configuration, mounts, program
from dnpipefs.cli.configuration import (
    CONFIG_VARIABLE,
    PASSWORD_VARIABLE,
    TEST_VARIABLES,
    ConfigOption,
    variables,
)
from dnpipefs.cli.options import CONNECTION_OPTIONS, MOUNT_OPTIONS, OPTIONS
from dnpipefs.cluster import Settings
from dnpipefs.errors import SetupError
from tests.cli.conftest import Command
from tests.support.etcd_process import EtcdProcess

CapSys = pytest.CaptureFixture[str]
Samples = tuple[Any, str, str, tuple[Any, Any, Any]]
SECRET = "correct-horse"  # noqa: S105 - of nobody


SAMPLES: dict[str, Samples] = {
    # by file, by variable, by flag, and what each comes to
    "endpoints": (["a:1", "b:2"], "c:3,d:4", "e:5", (["a:1", "b:2"], ["c:3", "d:4"], ["e:5"])),
    "discovery_srv": ("file.test", "variable.test", "flag.test", ("file.test", "variable.test", "flag.test")),
    "prefix": ("/file/", "/variable/", "/flag/", ("/file/", "/variable/", "/flag/")),
    "data_dir": ("data", "/variable", "/flag", ("DIRECTORY/data", "/variable", "/flag")),
    "cacert": ("file.pem", "/etc/passwd", "/etc/group", ("DIRECTORY/file.pem", "/etc/passwd", "/etc/group")),
    "cert": ("file.pem", "/etc/passwd", "/etc/group", ("DIRECTORY/file.pem", "/etc/passwd", "/etc/group")),
    "key": ("file.pem", "/etc/passwd", "/etc/group", ("DIRECTORY/file.pem", "/etc/passwd", "/etc/group")),
    "user": ("file", "variable", "flag", ("file", "variable", "flag")),
    "password_file": (
        *("file.pem", "/etc/passwd", "/etc/group"),
        ("DIRECTORY/file.pem", "/etc/passwd", "/etc/group"),
    ),
    "op_timeout": (1, "2.5", "3", (1, 2.5, 3)),
    "log_level": ("debug", "info", "error", ("debug", "info", "error")),
    "log_format": ("text", "json", "journald", ("text", "json", "journald")),
    "mount.allow_other": (False, "yes", "--no-allow-other", (False, True, False)),
    "mount.log_file": ("log", "/variable", "/flag", ("DIRECTORY/log", "/variable", "/flag")),
    "mount.cache_size": ("1MiB", "2MiB", "3", (1 << 20, 2 << 20, 3)),
    "mount.read_stale": (True, "0", "--read-stale", (True, False, True)),
    "mount.guard_mountpoint": (True, "0", "--guard-mountpoint", (True, False, True)),
    "mount.metrics": (":1", "none", "[::1]:3", (":1", None, "[::1]:3")),
}
NEEDS = {"cert": "key", "key": "cert", "user": "password_file", "password_file": "user"}
"""What goes together with what."""


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    (tmp_path / "file.pem").touch(mode=0o600)
    return tmp_path / "given.toml"


def shown(capsys: CapSys, *arguments: str) -> dict[str, Any]:
    assert program.run(["config", "--format", "json", *arguments]) == 0
    said: dict[str, Any] = json.loads(capsys.readouterr().out)
    return said


def fails(capsys: CapSys, *arguments: str) -> str:
    assert program.run(list(arguments)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("dnpipefs: ")
    assert err.count("\n") == 1
    return err.removeprefix("dnpipefs: ").rstrip()


def as_toml(values: dict[str, Any]) -> str:
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())


def test_there_is_a_sample_of_each_option() -> None:
    assert list(SAMPLES) == [option.key for option in OPTIONS]


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.key)
def test_a_flag_counts_more_than_a_variable_than_a_file(
    option: ConfigOption, toml: Path, capsys: CapSys, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = option.key
    in_file, in_variable, as_flag, comes_to = SAMPLES[key]
    expected = [
        value.replace("DIRECTORY", str(toml.parent)) if isinstance(value, str) else value
        for value in comes_to
    ]
    needed = NEEDS.get(key)
    toml.write_text(as_toml({key: in_file, **({needed: SAMPLES[needed][0]} if needed else {})}))
    flags = [as_flag] if as_flag.startswith("--") else [option.opts[0], as_flag]
    default = shown(capsys)["options"][key]
    assert (default["source"], default["where"]) == ("default", None)
    by_file = shown(capsys, "--config", str(toml))
    assert by_file["files"] == [str(toml)]
    assert by_file["options"][key] == {"value": expected[0], "source": "file", "where": str(toml)}
    monkeypatch.setenv(option.variable, in_variable)
    assert shown(capsys, "--config", str(toml))["options"][key] == {
        "value": expected[1],
        "source": "environment",
        "where": option.variable,
    }
    assert shown(capsys, "--config", str(toml), *flags)["options"][key] == {
        "value": expected[2],
        "source": "flag",
        "where": flags[0],
    }
    monkeypatch.setenv(option.variable, "")
    assert shown(capsys, "--config", str(toml))["options"][key]["source"] == "file", "empty is as none"


def test_what_an_administrator_may_want_to_set_is_a_config_option() -> None:
    others = {option.name for option in mounts.mount.params if not isinstance(option, ConfigOption)}
    assert others == {"mountpoint", "foreground", "source", "config"}


def test_the_names_of_variables() -> None:
    assert CONNECTION_OPTIONS[0].variable == "DNPIPEFS_ENDPOINTS"
    assert MOUNT_OPTIONS[0].variable == "DNPIPEFS_MOUNT_ALLOW_OTHER"


def test_endpoints_may_be_one_string(toml: Path, capsys: CapSys) -> None:
    toml.write_text('endpoints = "a:1, b:2"')
    assert shown(capsys, "--config", str(toml))["options"]["endpoints"]["value"] == ["a:1", "b:2"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("endpoint = 'a:1'", "unknown key endpoint: did you mean endpoints?"),
        ("op-timeout = 3", "unknown key op-timeout: did you mean op_timeout?"),
        ("zzz = 3", "unknown key zzz: there are cacert, cert, "),
        ("[mount]\ncache-size = 1", "unknown key mount.cache-size: did you mean mount.cache_size?"),
        ("cache_size = 1", "unknown key cache_size: cache_size belongs into the table [mount]"),
        ("[mount]\nprefix = '/x/'", "unknown key mount.prefix: prefix belongs to no table: write it above"),
        ("[mounts]\nx = 1", "unknown table [mounts]: did you mean mount?"),
        ("[endpoints]\nx = 1", "unknown table [endpoints]: there are mount"),
        ("mount = 3", "mount has to be a table: write [mount]"),
        ("password = 'x'", "there is no password: name a file of mode 0600 that has it, as password_file"),
        ("mount.password = 'x'", "there is no mount.password: name a file"),
        ("op_timeout = '3'", "op_timeout has to be a number"),
        ("op_timeout = true", "op_timeout has to be a number"),
        ("op_timeout = 0", "op_timeout: a number of seconds above 0 is needed"),
        ("prefix = 1", "prefix has to be a string"),
        ("prefix = 'dnp'", "prefix: prefix 'dnp' must end with '/'"),
        ("endpoints = 1", "endpoints has to be a list of strings or a string"),
        ("endpoints = [1]", "endpoints has to be a list of strings or a string"),
        ("endpoints = []", "endpoints: give one or more addresses"),
        ("log_level = 'loud'", "log_level: 'loud' is not one of 'debug'"),
        ("cacert = 'missing.pem'", "cacert: File 'DIRECTORY/missing.pem' does not exist"),
        ("mount.allow_other = 'yes'", "mount.allow_other has to be true or false"),
        ("mount.cache_size = 1.5", "mount.cache_size has to be a string or an integer"),
        ("mount.cache_size = 'much'", "mount.cache_size: 'much' is not a size such as 64MiB"),
        ("endpoints", "this is not TOML: Expected '=' after a key in a key/value pair (at "),
        ("\udcff", "this is not TOML: "),
        ("endpoints = " + 100_000 * "[", "this is not TOML: "),
    ],
)
def test_a_file_that_cannot_be(text: str, said: str, toml: Path, capsys: CapSys) -> None:
    toml.write_bytes(text.encode(errors="surrogateescape"))
    line = fails(capsys, "config", "--config", str(toml))
    assert line.startswith(f"{toml}: {said.replace('DIRECTORY', str(toml.parent))}")


def test_what_stands_in_no_command_is_checked_too(toml: Path, capsys: CapSys) -> None:
    toml.write_text("mount.cache = 1")
    assert "did you mean mount.cache_size?" in fails(capsys, "ls", "--config", str(toml))


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        (
            "DNPIPEFS_ENDPOINT",
            "a:1",
            "variable DNPIPEFS_ENDPOINT: did you mean DNPIPEFS_ENDPOINTS?",
        ),
        ("DNPIPEFS_CACHE_SIZE", "1", "did you mean DNPIPEFS_MOUNT_CACHE_SIZE?"),
        ("DNPIPEFS_", "", "unknown environment variable DNPIPEFS_: there are "),
        ("DNPIPEFS_OP_TIMEOUT", "soon", "DNPIPEFS_OP_TIMEOUT: 'soon' is not a valid float"),
        ("DNPIPEFS_MOUNT_READ_STALE", "maybe", "DNPIPEFS_MOUNT_READ_STALE: 'maybe' is not a valid boolean"),
        ("DNPIPEFS_PREFIX", "dnp", "DNPIPEFS_PREFIX: prefix 'dnp' must end with '/'"),
        (PASSWORD_VARIABLE, "\udcff", "DNPIPEFS_PASSWORD: it is not text"),
        (CONFIG_VARIABLE, "/missing.toml", "cannot read the configuration file /missing.toml: No such file"),
        (CONFIG_VARIABLE, "/etc", "cannot read the configuration file /etc: Is a directory"),
        (
            PASSWORD_VARIABLE,
            SECRET,
            "--password-file go together; DNPIPEFS_PASSWORD can stand for",
        ),
    ],
)
def test_a_variable_that_cannot_be(
    variable: str, value: str, said: str, capsys: CapSys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    line = fails(capsys, "config")
    assert said in line
    assert SECRET not in line


def test_help_is_there_whatever_the_configuration(capsys: CapSys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CONFIG_VARIABLE, "/missing.toml")
    assert program.run(["ls", "--help"]) == 0
    assert "/etc/dnpipefs.toml" in capsys.readouterr().out


def test_which_files_are_read(tmp_path: Path, capsys: CapSys, monkeypatch: pytest.MonkeyPatch) -> None:
    system, home, named = tmp_path / "etc.toml", tmp_path / "home", tmp_path / "named.toml"
    monkeypatch.setattr(configuration, "SYSTEM_FILE", system)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv(CONFIG_VARIABLE, "")
    assert shown(capsys)["files"] == []
    system.write_text("prefix = '/system/'\nuser = 'system'\npassword_file = '/etc/passwd'")
    home.mkdir()
    user = home / "dnpipefs.toml"
    user.write_text("user = 'me'")
    said = shown(capsys)
    assert said["files"] == [str(system), str(user)]
    assert said["options"]["prefix"]["where"] == str(system)
    assert said["options"]["user"] == {"value": "me", "source": "file", "where": str(user)}
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert shown(capsys)["files"] == [str(system)], "root's options are the system's"
    named.write_text("prefix = '/named/'")
    monkeypatch.setenv(CONFIG_VARIABLE, str(named))
    said = shown(capsys)
    assert (said["files"], said["options"]["user"]["value"]) == ([str(named)], None)
    assert shown(capsys, "--config", os.devnull)["options"]["prefix"]["value"] == "/dnp/"


def test_addresses_are_named_or_looked_up(
    toml: Path, capsys: CapSys, monkeypatch: pytest.MonkeyPatch
) -> None:
    toml.write_text("endpoints = 'a:1'")
    options = shown(capsys, "--config", str(toml), "--discovery-srv", "cluster.test")["options"]
    assert options["discovery_srv"]["value"] == "cluster.test"
    assert options["endpoints"] == {"value": None, "source": "flag", "where": "--discovery-srv"}
    monkeypatch.setenv("DNPIPEFS_DISCOVERY_SRV", "cluster.test")
    assert shown(capsys, "--config", str(toml))["options"]["endpoints"]["value"] is None
    options = shown(capsys, "--config", str(toml), "--endpoints", "b:2")["options"]
    assert (options["endpoints"]["value"], options["discovery_srv"]["value"]) == (["b:2"], None)
    line = fails(capsys, "ls", "--endpoints", "b:2", "--discovery-srv", "cluster.test")
    assert line.startswith("--endpoints and --discovery-srv exclude each other")
    toml.write_text("endpoints = 'a:1'\ndiscovery_srv = 'cluster.test'")
    monkeypatch.delenv("DNPIPEFS_DISCOVERY_SRV")
    line = fails(capsys, "ls", "--config", str(toml))
    assert line.startswith(f"{toml}: endpoints and discovery_srv exclude each other")


def test_which_password_counts(toml: Path, capsys: CapSys, monkeypatch: pytest.MonkeyPatch) -> None:
    toml.write_text("user = 'dnp'\npassword_file = 'not readable'")
    file = toml.parent / "file.pem"
    monkeypatch.setenv(PASSWORD_VARIABLE, SECRET)
    options = shown(capsys, "--config", str(toml))["options"]
    assert options["password"] == {
        "value": "(hidden)",
        "source": "environment",
        "where": PASSWORD_VARIABLE,
    }
    assert options["password_file"]["value"] is None
    options = shown(capsys, "--config", str(toml), "--password-file", str(file))["options"]
    assert options["password_file"]["value"] == str(file)
    assert "password" not in options
    monkeypatch.setenv("DNPIPEFS_PASSWORD_FILE", str(file))
    line = fails(capsys, "config", "--config", str(toml))
    assert line.startswith("DNPIPEFS_PASSWORD_FILE and DNPIPEFS_PASSWORD exclude each other")


def test_the_text_is_a_table(toml: Path, capsys: CapSys, monkeypatch: pytest.MonkeyPatch) -> None:
    toml.write_text("endpoints = ['a:1', 'b:2']\nuser = 'dnp'\nmount.read_stale = true")
    monkeypatch.setenv(PASSWORD_VARIABLE, SECRET)
    assert program.run(["config", "--config", str(toml), "--op-timeout", "7"]) == 0
    text = capsys.readouterr().out
    rows = [re.split("  +", line) for line in text.splitlines()]
    assert ["endpoints", "a:1,b:2", str(toml)] in rows
    assert ["prefix", "/dnp/", "default"] in rows
    assert ["op_timeout", "7", "--op-timeout"] in rows
    assert ["cacert", "-", "default"] in rows
    assert ["mount.read_stale", "true", str(toml)] in rows
    assert ["password", "(hidden)", PASSWORD_VARIABLE] in rows
    assert SECRET not in text


def test_commands_use_them(dnp: Command, toml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toml.write_text(as_toml({"endpoints": dnp.options[1], "prefix": dnp.options[3]}))
    monkeypatch.setenv(CONFIG_VARIABLE, str(toml))
    configured = Command([])
    configured.out("push", "t", "x")
    assert dnp.out("pull", "t") == b"x\n"
    monkeypatch.setenv("DNPIPEFS_PREFIX", dnp.options[3] + "other/")
    assert "no topic or directory 't'" in configured.fails(1, "pull", "t")


async def test_a_password_by_the_environment(guarded: EtcdProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    command = Command(["--endpoints", guarded.endpoint, "--user", "root"])
    monkeypatch.setenv(PASSWORD_VARIABLE, "right")
    command.out("push", "t", "x")
    monkeypatch.setenv(PASSWORD_VARIABLE, SECRET)
    done = command.run("pull", "t", "--log-level", "debug")
    assert done.returncode == 1
    assert b"check user and password" in done.stderr
    assert SECRET.encode() not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "endpoints", "throwaway"),
    [
        ([], (), True),
        (["--endpoints", "b:2"], ("b:2",), False),
        (["--data-dir", "/nowhere"], (), False),
    ],
)
def test_a_benchmark_takes_no_cluster_from_a_file(
    arguments: list[str],
    endpoints: tuple[str, ...],
    throwaway: bool,
    toml: Path,
    capsys: CapSys,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[tuple[str, ...], bool]] = []

    async def run(settings: Settings, *_: Any, throwaway: bool, **__: Any) -> None:
        asked.append((settings.endpoints, throwaway))
        raise SetupError("not now")

    monkeypatch.setattr(bench, "run_bench", run)
    toml.write_text("endpoints = 'a:1'\ndata_dir = 'data'")
    assert program.run(["bench", "--config", str(toml), *arguments]) == 1
    assert asked == [(endpoints, throwaway)]
    assert "not now" in capsys.readouterr().err


def test_what_few_need_is_not_loaded() -> None:
    """A push in a shell loop would wait for it each time."""
    script = "import sys; from dnpipefs.cli import listing, topics; print('dns' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_all_variables_are_options_or_of_the_tests(repository: Path) -> None:
    """One of another name would break the commands that a test runs."""
    known = variables(OPTIONS)
    files = [
        repository / "Makefile",
        *(repository / "scripts").iterdir(),
        *(repository / "tests").rglob("*.py"),
    ]
    for path in files:
        if path != Path(__file__):
            found = set(re.findall(r"(?<!\w)DNPIPEFS_[A-Z_]+", path.read_text()))
            assert {name for name in found if not name.startswith(TEST_VARIABLES)} <= known, path
