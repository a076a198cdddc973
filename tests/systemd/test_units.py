"""The units as texts; what systemd makes of them when it runs is tested beside this, on hosts."""

import re
import subprocess
from pathlib import Path
from shutil import which

import pytest

from dnpipefs.etcd.server import DEFAULT_QUOTA_BYTES, SNAPSHOT_COUNT
from tests.support.mounts import REPOSITORY

UNITS = REPOSITORY / "systemd"
SERVICE, TEMPLATE = UNITS / "dnpipefs.service", UNITS / "dnpipefs@.service"
ETCD = UNITS / "etcd.service.d" / "dnpipefs.conf"
OWN_MOUNTS = """
    BindPaths BindReadOnlyPaths DynamicUser ExecPaths ExtensionImages InaccessiblePaths LoadCredential
    LogNamespace MountFlags MountImages NoExecPaths PrivateDevices PrivateIPC PrivateMounts PrivateTmp
    PrivateUsers ProcSubset ProtectControlGroups ProtectHome ProtectKernelLogs ProtectKernelModules
    ProtectKernelTunables ProtectProc ProtectSystem ReadOnlyPaths ReadWritePaths RootDirectory RootImage
    SetCredential TemporaryFileSystem
"""
"""Settings that give a service a namespace of mounts."""


def settings(unit: Path) -> dict[str, list[str]]:
    """Return the values of each setting of a unit, comments aside."""
    found: dict[str, list[str]] = {}
    for line in unit.read_text().splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


@pytest.mark.parametrize("unit", [SERVICE, TEMPLATE], ids=lambda unit: unit.name)
def test_the_host_sees_what_the_service_mounts(unit: Path) -> None:
    assert settings(unit).keys() & set(OWN_MOUNTS.split()) == set()


def test_the_template_is_the_service() -> None:
    differing = {"Description", "ExecStart"}
    one, other = settings(SERVICE), settings(TEMPLATE)
    assert {name for name in one | other if one.get(name) != other.get(name)} == differing
    assert other["ExecStart"] == [
        one["ExecStart"][0]
        .replace(" mount ", " mount --config /etc/dnpipefs/%i.toml ")
        .replace(" /dnp", " %f")
    ]


def test_etcds_settings_are_those_of_the_embedded_one() -> None:
    said = settings(ETCD)["Environment"]
    assert f"ETCD_QUOTA_BACKEND_BYTES={DEFAULT_QUOTA_BYTES}" in said
    assert f"ETCD_SNAPSHOT_COUNT={SNAPSHOT_COUNT}" in said
    advice = (REPOSITORY / "dnpipefs" / "doctor" / "judgement.py").read_text()
    mode, retention = re.findall(r"--auto-compaction-mode=(\w+) --auto-compaction-retention=(\w+)", advice)[0]
    assert {f"ETCD_AUTO_COMPACTION_MODE={mode}", f"ETCD_AUTO_COMPACTION_RETENTION={retention}"} <= set(said)


@pytest.mark.skipif(which("systemd-analyze") is None, reason="no systemd-analyze (package systemd)")
def test_systemd_knows_all_that_is_said(tmp_path: Path) -> None:
    """With a program in the place of the one that is not installed, and an etcd that is settled."""
    program = which("true")
    for unit in (SERVICE, TEMPLATE, *(UNITS / "examples").glob("dnp.*")):
        text = re.sub(r"(?m)^ExecStart=\S+", f"ExecStart={program}", unit.read_text())
        (tmp_path / unit.name.replace("@.", "@srv-team.")).write_text(text)
    etcd = tmp_path / "etcd.service"
    etcd.write_text(f"[Service]\nExecStart={program}\n" + ETCD.read_text())
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *sorted(tmp_path.iterdir())],
        capture_output=True,
        text=True,
        check=False,
    )
    ours = [line for line in done.stderr.splitlines() if str(tmp_path) in line or "dnp" in line]
    assert ours == []
