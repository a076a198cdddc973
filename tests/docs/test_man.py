"""The man pages: made from what is so, complete, and well-formed."""

import errno
import re
import runpy
import shutil
import subprocess
from collections.abc import Callable
from typing import cast

import click
import pytest

from dnpipefs.cli.program import COMMANDS, PROGRAM, program
from dnpipefs.core.config import READ_ONLY, SETTINGS
from dnpipefs.fuse.answers import ERRNO
from tests.docs.documents import REPOSITORY

PAGES = sorted(path.stem for path in (REPOSITORY / "man").glob("*.md"))
COLUMNS = 80

needs_mandoc = pytest.mark.skipif(shutil.which("mandoc") is None, reason="no mandoc: make setup-tests")


def shown(name: str) -> str:
    """Return a page as a terminal of 80 columns shows it."""
    return subprocess.run(
        ["mandoc", "-T", "utf8", "-O", f"width={COLUMNS - 2}", REPOSITORY / "man" / name],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.replace("\b", "\0")


def plain(text: str) -> str:
    """Return it without the overstriking that stands for fonts."""
    return re.sub(".\0", "", text)


def test_there_are_three() -> None:
    assert PAGES == ["dnpipefs.1", "dnpipefs.5", "mount.dnpipefs.8"]


@pytest.mark.parametrize("name", PAGES)
def test_it_is_what_the_script_makes(name: str) -> None:
    page = cast("Callable[[str], str]", runpy.run_path(str(REPOSITORY / "scripts/generate_man.py"))["page"])
    assert (REPOSITORY / "man" / name).read_text() == page(name), "run `make man`"


@needs_mandoc
@pytest.mark.parametrize("name", PAGES)
def test_it_is_well_formed_and_fits(name: str) -> None:
    said = subprocess.run(
        ["mandoc", "-T", "lint", "-W", "warning", REPOSITORY / "man" / name],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (said.stdout, said.returncode) == ("", 0)
    assert [line for line in plain(shown(name)).splitlines() if len(line) > COLUMNS] == []


@needs_mandoc
def test_all_commands_and_options_are_there() -> None:
    text = plain(shown("dnpipefs.1"))
    context = click.Context(program, info_name=PROGRAM)
    for name in COMMANDS:
        command = program.get_command(context, name)
        assert command is not None
        assert f"\n     {PROGRAM} {name}" in text or f"       {PROGRAM} {name}" in text
        for option in command.params:
            if isinstance(option, click.Option):
                assert all(word in text for word in (*option.opts, *option.secondary_opts)), option.opts
    assert r"\b" not in text, "click's mark was not understood"


@needs_mandoc
def test_all_errors_attributes_and_views_are_there() -> None:
    text = plain(shown("dnpipefs.5"))
    wanted = {errno.errorcode[number] for _, number in ERRNO} | {*SETTINGS, *READ_ONLY}
    wanted |= {"topic@ ", "topic@group", "user.dnp.lag", "user.dnp.seek", "user.dnp.status"}
    assert {word for word in wanted if word not in text} == set()
    assert "test_" not in text
