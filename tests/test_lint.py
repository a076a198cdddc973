"""The linters, as tests: one command checks everything and one summary line says so."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("command", ["ruff check .", "ruff format --check .", "mypy"])
def test_clean(command: str, repository: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command.split()], cwd=repository, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


def test_shell_scripts_parse(repository: Path) -> None:
    scripts = [*(repository / "scripts").glob("*.sh"), repository / ".ci" / "run"]
    for script in scripts:
        subprocess.run(["bash", "-n", script], check=True)
