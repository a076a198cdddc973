"""What the tutorial and the recipes tell to type is typed, and shows what they say, on real hosts."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.documents import DOCUMENTS, Document
from tests.docs.sessions import Reader
from tests.docs.terminal import Terminal
from tests.support.etcd_process import EtcdProcess
from tests.support.mounts import Mount, Mounts, why_no_mounts
from tests.support.processes import mounts_below

pytestmark = pytest.mark.skipif(why_no_mounts() is not None, reason=why_no_mounts() or "")

PROGRAMS = Path(sys.executable).parent
TUTORIAL = Document("docs/tutorial.md")
ON_TWO_HOSTS = [
    document
    for document in DOCUMENTS
    if document.name.startswith(("docs/howto/", "docs/coming-from/", "docs/explanation/"))
    and document.of_kind("console")
]


def environment(home: Path, options: str) -> dict[str, str]:
    """Return that of a reader; `dnpipefs` on its path gets *options*, which a reader has no need of."""
    programs = home / "bin"
    programs.mkdir()
    (programs / "dnpipefs").write_text(
        "#!/bin/sh\n"
        'case "$1" in\n'
        f'    umount | status | --*) exec {PROGRAMS}/dnpipefs "$@" ;;\n'
        "esac\n"
        "command=$1\n"
        "shift\n"
        f'exec {PROGRAMS}/dnpipefs "$command" {options} "$@"\n'
    )
    (programs / "dnpipefs").chmod(0o755)
    return {**os.environ, "HOME": str(home), "PATH": f"{programs}:{PROGRAMS}:{os.environ['PATH']}"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdProcess]:
    process = EtcdProcess(tmp_path_factory.mktemp("etcd"), os.environ.get("DNPIPEFS_TEST_ETCD", "etcd"))
    try:
        process.start()
        yield process
    finally:
        process.kill()


@pytest.fixture(scope="module")
def hosts(server: EtcdProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Mount, Mount]]:
    mounts = Mounts(tmp_path_factory.mktemp("mounts"))
    try:
        with mounts.guarded():
            first, second = (mounts.make(endpoints=[server.endpoint], prefix="/dnp/") for _ in range(2))
            first.start()
            second.start()
            yield first, second
            assert (first.stop(), second.stop()) == (0, 0)
    finally:
        mounts.clear()


@pytest.mark.parametrize("document", ON_TWO_HOSTS, ids=lambda document: document.name)
def test_what_a_page_shows(
    document: Document, hosts: tuple[Mount, Mount], server: EtcdProcess, tmp_path: Path
) -> None:
    variables = environment(tmp_path, f"--endpoints {server.endpoint}")
    variables["ETCDCTL_API"] = "3"
    variables["ETCDCTL_ENDPOINTS"] = server.endpoint

    def mount_of(terminal: str) -> Path:
        return hosts[terminal == "web2"].path

    def placed(terminal: str, text: str) -> str:
        text = re.sub(r"http://etcd1:2379\S*", server.endpoint, text)
        return re.sub(r"""(?<![\w/.-])/dnp(?=[/\s"':;)]|$)""", str(mount_of(terminal)), text)

    reader = Reader(tmp_path, lambda _: Terminal(tmp_path, variables), mount_of)
    try:
        reader.follow(document, placed)
    finally:
        reader.close()
        for entry in hosts[0].path.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def test_the_tutorial(tmp_path: Path) -> None:
    points = {"/dnp": tmp_path / "dnp", "/mnt/second": tmp_path / "second"}

    def placed(_terminal: str, text: str) -> str:
        names = "|".join(points)
        return re.sub(rf"(?<![\w/.-])({names})(?=[/\s:]|$)", lambda name: str(points[name[0]]), text)

    variables = environment(tmp_path, f"--data-dir {tmp_path}/data")
    reader = Reader(
        tmp_path,
        lambda _: Terminal(tmp_path, variables),
        lambda terminal: points["/mnt/second" if terminal == "two" else "/dnp"],
    )
    try:
        reader.follow(TUTORIAL, placed)
        assert mounts_below(tmp_path) == []
    finally:
        reader.close()
        for left in mounts_below(tmp_path):
            subprocess.run(["fusermount3", "-u", "-z", left], check=False)


def test_every_session_is_one_that_is_typed() -> None:
    """What is to be typed is in blocks of the kind that is, but for scripts, which are files."""
    for document in (TUTORIAL, *ON_TWO_HOSTS):
        scripts = [block for block in document.blocks if block.kind in ("sh", "bash", "python")]
        assert [block.text for block in scripts if not block.label.startswith("file ")] == [], document.name
