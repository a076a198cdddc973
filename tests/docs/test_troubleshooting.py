"""Every message that a user can meet is among those of the troubleshooting page, and no others are."""

import ast
import errno
import importlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from dnpipefs import errors
from dnpipefs.cli.exits import Exit
from dnpipefs.cli.status import _ADVICE
from dnpipefs.etcd.errors import _TLS, TABLE
from dnpipefs.fuse.answers import ERRNO
from tests.docs.documents import REPOSITORY, TROUBLESHOOTING

FAMILIES = (errors.DnpError, click.ClickException)
LEFT_OUT = (errors.CorruptData,)
"""There are too many ways in which stored data can be damaged; the page says what to do about all."""
PACKAGE = REPOSITORY / "dnpipefs"
SAID = {said for one, two in re.findall("``(.*?)``|`(.*?)`", TROUBLESHOOTING.text) if (said := one or two)}


MODULES = {
    path: ast.parse(path.read_text())
    for path in sorted(PACKAGE.rglob("*.py"))
    if not {"bench", "proto"} & {*path.parts, path.stem} and not path.name.startswith("__")
}


def text(node: ast.AST) -> str | None:
    """Return a message as the page has it, with … for what is put in; None for what is no text."""
    match node:
        case ast.Constant(value=str(value)):
            return re.sub(r"%(\.\d)?[a-z]", "…", value)
        case ast.JoinedStr(values=parts):
            return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in parts)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return (text(left) or "…") + (text(right) or "…")
    return None


def messages_of(path: Path) -> Iterator[str]:
    """Yield what a module logs as a warning or worse, and the texts of the errors it makes."""
    module = importlib.import_module(".".join(path.relative_to(REPOSITORY).with_suffix("").parts))
    for node in ast.walk(MODULES[path]):
        if not isinstance(node, ast.Call) or not node.args or (message := text(node.args[0])) is None:
            continue
        match node.func:
            case ast.Attribute(value=ast.Name(id="logger"), attr="warning" | "error" | "exception"):
                yield message
            case ast.Name(id=name) if is_error(getattr(module, name, None)):
                yield message
            case ast.Attribute(value=ast.Name(id=owner), attr=name) if is_error(
                getattr(getattr(module, owner, None), name, None)
            ):
                yield message


def is_error(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, FAMILIES) and not issubclass(kind, LEFT_OUT)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_what_a_module_says_is_explained(path: Path) -> None:
    assert {message for message in messages_of(path) if message.strip("…: ") != ""} - SAID == set()


def test_what_is_explained_is_said() -> None:
    said = {text(node) for module in MODULES.values() for node in ast.walk(module)}
    said |= {row.advice for row in TABLE} | {os.strerror(number) for number in errno.errorcode} | {_TLS}
    cells = " ".join(row[0] for row in TROUBLESHOOTING.rows if row[0].startswith("`"))
    explained = {one or two for one, two in re.findall("``(.*?)``|`(.*?)`", cells)}
    assert {message for message in explained if " " in message} - said == {"ls /dnp"}


def test_what_etcd_errors_advise_is_explained() -> None:
    assert {row.advice for row in TABLE} | {_TLS} | set(_ADVICE.values()) <= SAID


def test_what_programs_say_is_explained() -> None:
    rows = {row[1].strip("`"): row[0].strip("`") for row in TROUBLESHOOTING.rows if row[1].startswith("`E")}
    assert {errno.errorcode[number] for _, number in ERRNO} <= rows.keys()
    for name, said in rows.items():
        assert os.strerror(getattr(errno, name)) == said


def test_exit_statuses_are_explained() -> None:
    rows = {int(row[0]) for row in TROUBLESHOOTING.rows if row[0].isdigit()}
    assert rows == set(Exit)
