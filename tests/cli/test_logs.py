"""How the log is written: in which form, with which fields, and where it goes."""

import json
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import logging_journald
import pytest

from dnpipefs.cli.logs import FIELDS, TEXT_FORMAT, JournalHandler, JsonFormatter, TextFormatter
from dnpipefs.core.names import FileId, SessionId
from tests.cli.conftest import Command
from tests.docs.documents import OBSERVABILITY
from tests.support.etcd_process import free_port

ABOUT: dict[str, Any] = {
    "topic": FileId(0x77C77C3C05C44),
    "group": b"\xff group",
    "session": SessionId(0x1F),
    "revision": 7,
    "operation": "write",
    "errno": "EIO",
}
SHOWN: dict[str, Any] = {
    "topic": "00077c77c3c05c44",
    "group": os.fsdecode(b"\xff group"),
    "session": "1f",
    "revision": 7,
    "operation": "write",
    "errno": "EIO",
}


def record(message: str, level: int = logging.WARNING, **about: object) -> logging.LogRecord:
    logger = logging.getLogger("dnpipefs.test")
    return logger.makeRecord(logger.name, level, __file__, 1, message, (), None, extra=about)


def failure() -> logging.LogRecord:
    error = ZeroDivisionError("planted")
    failed = record("two\nlines \udcff", logging.ERROR, **ABOUT)
    failed.exc_info = type(error), error, None
    return failed


def test_fields_are_the_documented() -> None:
    described = {name.strip("`") for row in OBSERVABILITY.rows for name in row[0].split(", ")}
    assert set(FIELDS) <= described
    assert set(FIELDS) == set(ABOUT)


def test_json_is_a_line_for_each_record() -> None:
    line = JsonFormatter().format(record("two\nlines \udcff", **ABOUT))
    assert "\n" not in line
    said = json.loads(line)
    assert said.pop("time").endswith("+00:00")
    assert said == {"level": "warning", "logger": "dnpipefs.test", "message": "two\nlines \udcff", **SHOWN}
    said = json.loads(JsonFormatter().format(failure()))
    assert said["traceback"] == "ZeroDivisionError: planted"
    assert not set(FIELDS) & set(json.loads(JsonFormatter().format(record("about nothing"))))


def test_text_is_a_line_for_each_record_and_its_traceback() -> None:
    formatter = TextFormatter(TEXT_FORMAT)
    line = formatter.format(record("two\nlines, \x1b[2J and \u2028 \udcff é"))
    assert line.endswith("WARNING dnpipefs.test: two\\nlines, \\x1b[2J and \\u2028 \udcff é")
    assert formatter.format(failure()).splitlines()[1:] == ["ZeroDivisionError: planted"]


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> socket.socket:
    """The end at which systemd's journal would listen."""
    path = tmp_path / "journal"
    end = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    end.bind(str(path))
    end.settimeout(10)
    monkeypatch.setattr(logging_journald.JournaldTransport, "SOCKET_PATH", path)
    return end


def received(journal: socket.socket) -> dict[str, bytes]:
    """Return the fields of the next record, by the protocol: NAME, its size as 8 bytes, the value."""
    data, _, _, _ = journal.recvmsg(1 << 20, socket.CMSG_SPACE(4))
    found = {}
    while data:
        name, _, rest = data.partition(b"\n")
        size = int.from_bytes(rest[:8], sys.byteorder)
        found[name.decode()] = rest[8 : 8 + size]
        data = rest[8 + size + 1 :]
    return found


def test_the_journal_gets_priorities_and_fields(journal: socket.socket) -> None:
    handler = JournalHandler()
    with journal:
        for level, priority in ((5, b"7"), (10, b"7"), (20, b"6"), (30, b"4"), (45, b"3"), (50, b"2")):
            handler.handle(record("said", level))
            assert received(journal)["PRIORITY"] == priority
        handler.handle(failure())
        found = received(journal)
        handler.close()
    assert found["MESSAGE"] == b"two\nlines \\udcff\nZeroDivisionError: planted"
    assert (found["PRIORITY"], found["SYSLOG_IDENTIFIER"]) == (b"3", b"dnpipefs")
    assert (found["LOGGER"], found["CODE_LINE"]) == (b"dnpipefs.test", b"1")
    shown = {
        f"DNP_{name.upper()}": str(value).encode(errors="backslashreplace") for name, value in SHOWN.items()
    }
    assert shown.items() <= found.items()


def run_with(arguments: list[str], stderr: int, stream: str) -> int:
    """Run a command that warns, with standard error said to be the journal's."""
    command = Command(["--endpoints", f"127.0.0.1:{free_port()}", "--op-timeout", "0.1", *arguments])
    line = command.line("push", "--log-level", "debug", "t", "x")
    env = {**os.environ, "JOURNAL_STREAM": stream}
    return subprocess.run(line, stderr=stderr, env=env, check=False, timeout=30).returncode


def test_text_unless_standard_error_is_the_journals(tmp_path: Path) -> None:
    """There is no journal here, which shows: whoever is told that there is one cannot reach it."""
    path = tmp_path / "stderr"
    with path.open("wb") as file:
        found = os.fstat(file.fileno())
        stream = f"{found.st_dev}:{found.st_ino}"
        assert run_with([], file.fileno(), f"{found.st_dev}:1") == 1
        text = path.read_text()
        assert " DEBUG dnpipefs.cli.program: the command failed" in text
        assert run_with(["--log-format", "json"], file.fileno(), stream) == 1
        lines = path.read_text()[len(text) :].splitlines()
        assert [json.loads(line)["level"] for line in lines if line.startswith("{")][-1] == "debug"
        if not Path("/run/systemd/journal/socket").exists():
            before = len(path.read_bytes())
            assert run_with([], file.fileno(), stream) == 1
            assert "--- Logging error ---" in path.read_text()[before:]
