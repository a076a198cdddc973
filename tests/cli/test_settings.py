"""config-topic: what it prints, what it changes, what it refuses."""

import json
import re

import pytest

from tests.cli.conftest import Command

FACTS = {"id", "generation", "messages", "first_offset", "end_offset", "revision"}


def shown(dnp: Command, topic: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(dnp.out("config-topic", topic, "--format", "json"))
    return found


def test_a_name_that_is_not_utf_8(dnp: Command) -> None:
    dnp.out("push", "t", "one")
    dnp.out("config-topic", "t", b"dead_letter=\xff")
    assert b"dead_letter         \xff" in dnp.out("config-topic", "t")
    assert shown(dnp, "t")["dead_letter"] == "\udcff"


def test_what_is_printed(dnp: Command) -> None:
    dnp.out("push", "t", "one")
    assert dnp.out("config-topic", "t", "framing=write", "retention.age=7d") == b""
    expected = (
        r"framing             write             \n"
        r"retention.bytes     none              \(default\)\n"
        r"retention.age       7d                \n"
        r"retention.messages  none              \(default\)\n"
        r"max_message         8MiB              \(default\)\n"
        r"compression         zstd              \(default\)\n"
        r"start               first             \(default\)\n"
        r"ack                 exit-status       \(default\)\n"
        r"batch               1                 \(default\)\n"
        r"visibility_timeout  none              \(default\)\n"
        r"max_deliveries      none              \(default\)\n"
        r"dead_letter         none              \(default\)\n"
        r"id                  [0-9a-f]{16}  \(read-only\)\n"
        r"generation          [0-9]+ +\(read-only\)\n"
        r"messages            1                 \(read-only\)\n"
        r"first_offset        0                 \(read-only\)\n"
        r"end_offset          4                 \(read-only\)\n"
        r"revision            [0-9]+ +\(read-only\)\n"
    )
    text = dnp.out("config-topic", "t").decode()
    assert re.fullmatch(re.sub(r" +\\n", r"\\n", expected), text), text


def test_json(dnp: Command) -> None:
    dnp.out("push", "t", "one")
    dnp.out("config-topic", "t", "retention.bytes=10MiB", "retention.messages=5")
    found = shown(dnp, "t")
    assert {name: found[name] for name in ("framing", "retention.bytes", "retention.age", "max_message")} == {
        "framing": "line",
        "retention.bytes": 10 << 20,
        "retention.age": None,
        "max_message": 8 << 20,
    }
    assert found["defaults"] == [
        *("framing", "retention.age", "max_message", "compression"),
        *("start", "ack", "batch", "visibility_timeout", "max_deliveries", "dead_letter"),
    ]
    assert found.keys() >= FACTS
    assert (found["messages"], found["end_offset"]) == (1, 4)


def test_unset(dnp: Command) -> None:
    dnp.out("push", "t", "one")
    dnp.out("config-topic", "t", "framing=write", "max_message=1KiB")
    dnp.out("config-topic", "t", "--unset", "framing", "--unset", "max_message", "compression=none")
    assert shown(dnp, "t")["defaults"] == [
        *("framing", "retention.bytes", "retention.age", "retention.messages", "max_message"),
        *("start", "ack", "batch", "visibility_timeout", "max_deliveries", "dead_letter"),
    ]


def test_directories(dnp: Command) -> None:
    dnp.out("config-topic", "/", "framing=write")
    dnp.out("push", "t", "one")
    assert shown(dnp, "t")["framing"] == "write"
    found = shown(dnp, "/")
    assert (found["id"], found.keys() & FACTS) == (f"{1:016x}", {"id"})
    assert dnp.out("config-topic", "/").splitlines()[-1].split() == [b"id", b"0" * 15 + b"1", b"(read-only)"]


@pytest.mark.parametrize(
    ("code", "arguments", "said"),
    [
        (2, ["framing=lines"], "framing: 'lines' is not line or write"),
        (2, ["retention.bytes=10M"], "is not a size such as 10MiB"),
        (2, ["retention.byte=1"], "did you mean retention.bytes?"),
        (2, ["--unset", "frame"], "did you mean framing?"),
        (2, ["id=1"], "id cannot be set"),
        (2, ["framing"], "'framing' is not NAME=VALUE"),
        (2, ["framing=line", "--unset", "framing"], "framing is given more than once"),
    ],
)
def test_what_is_refused(dnp: Command, code: int, arguments: list[str], said: str) -> None:
    dnp.out("push", "t")
    assert said in dnp.fails(code, "config-topic", "t", *arguments)
    assert "no topic or directory 'missing'" in dnp.fails(1, "config-topic", "missing", "framing=write")


def test_lines_of_standard_input_stay_messages(dnp: Command) -> None:
    dnp.out("push", "t", given=b"")
    dnp.out("config-topic", "t", "framing=write")
    dnp.out("push", "t", given=b"one\ntwo\nno newline")
    messages = [json.loads(line)["data"] for line in dnp.out("pull", "t", "--format", "json").splitlines()]
    assert messages == ["one\n", "two\n", "no newline"]
