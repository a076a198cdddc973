"""How a test session ends when it is told to: with nothing left behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = "from tests.conftest import pytest_configure"
SESSION = """
import signal
import pytest

@pytest.fixture
def something():
    open("is-there", "w").close()
    yield
    import os
    os.unlink("is-there")

def test_that_never_ends(something):
    print("it runs", flush=True)
    signal.pause()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_takes_down_what_was_set_up(
    tmp_path: Path, repository: Path, number: signal.Signals
) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_it.py").write_text(SESSION)
    command = [sys.executable, "-m", "pytest", "-s", "--rootdir", ".", "test_it.py"]
    environment = os.environ | {"PYTHONPATH": str(repository)}
    session = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, env=environment)
    with session:
        try:
            assert session.stdout is not None
            while b"it runs" not in (line := session.stdout.readline()):
                assert line, "it did not begin"
            assert (tmp_path / "is-there").exists()
            session.send_signal(number)
            assert b"KeyboardInterrupt" in session.stdout.read()
            assert session.wait() == pytest.ExitCode.INTERRUPTED
        finally:
            session.kill()
    assert not (tmp_path / "is-there").exists()
