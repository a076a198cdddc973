"""The Vagrantfile, as far as it can be looked at without virtual machines."""

import os
import shutil
import subprocess
from pathlib import Path
from shutil import which

import pytest


@pytest.fixture
def vagrant() -> str:
    found = which("vagrant")
    if found is None:
        pytest.skip("no vagrant (Debian's package vagrant; scripts/setup.sh --systemd installs it)")
    return found


def test_the_vagrantfile_is_valid(vagrant: str, repository: Path, tmp_path: Path) -> None:
    shutil.copy(repository / "Vagrantfile", tmp_path)
    shutil.copytree(repository / "scripts", tmp_path / "scripts")
    done = subprocess.run(
        [vagrant, "validate", "--ignore-provider"],
        cwd=tmp_path,
        env=os.environ | {"VAGRANT_HOME": str(tmp_path / "home"), "VAGRANT_CHECKPOINT_DISABLE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Vagrantfile validated successfully" in done.stdout
    made = {path.name for path in (tmp_path / ".vagrant" / "certificates").iterdir()}
    assert {"ca.crt", "node1.crt", "node1.key", "node3.key"} <= made
