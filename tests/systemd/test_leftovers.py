"""What is left of hosts under systemd when the test that runs them is killed: nothing."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.cluster.leftovers import Lab
from tests.support.waiting import eventually

RUN = """
import sys
from pathlib import Path
from tests.systemd.nodes import running_machines

def make_directory(name: str) -> Path:
    directory = Path(sys.argv[1]) / name
    directory.mkdir()
    return directory

with running_machines(make_directory, ["lonely"]) as (machine,):
    print(machine.root.parents[1].name, flush=True)
    sys.stdin.read()
"""


def test_a_test_that_is_killed_leaves_no_host(
    make_directory: Callable[[str], Path], repository: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", RUN, str(tmp_path)]
    with subprocess.Popen(
        command, cwd=repository, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as killed:
        assert killed.stdout is not None
        lab = Lab(killed.stdout.readline().strip())
        assert lab.processes()
        assert lab.mounts()
        assert lab.control_groups()
        killed.kill()
    eventually(
        lambda: not (lab.processes() or lab.namespaces() or lab.mounts() or lab.control_groups()), within_s=60
    )
