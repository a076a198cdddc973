"""What the tutorial and the recipes tell to type is typed, and shows what they say, on real hosts."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from dnpipefs import etcd
from dnpipefs.core.keys import KeySchema
from tests.docs.documents import DOCUMENTS, Document
from tests.docs.sessions import Reader
from tests.docs.terminal import Terminal
from tests.support.etcd_process import EtcdProcess
from tests.support.mounts import Mounts, why_no_mounts
from tests.support.processes import mounts_below

pytestmark = pytest.mark.skipif(why_no_mounts() is not None, reason=why_no_mounts() or "")

PROGRAMS = Path(sys.executable).parent
ETCD = os.environ.get("DNPIPEFS_TEST_ETCD", "etcd")
TUTORIAL = Document("docs/tutorial.md")
ON_TWO_HOSTS = [
    document
    for document in DOCUMENTS
    if document.name.startswith(("docs/index.md", "docs/howto/", "docs/coming-from/", "docs/explanation/"))
    and document.of_kind("console")
]


def environment(home: Path, options: str) -> dict[str, str]:
    """Return that of a reader.

    `dnpipefs` on its path gets *options*, which a reader has no need of; `etcd` is the one to be tested.
    """
    programs = home / "bin"
    programs.mkdir()
    (programs / "etcd").symlink_to(shutil.which(ETCD) or ETCD)
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
    process = EtcdProcess(tmp_path_factory.mktemp("etcd"), ETCD)
    try:
        process.start()
        yield process
    finally:
        process.kill()


@pytest.fixture(scope="module")
def cluster(server: EtcdProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounts]:
    """Two hosts of the default prefix."""
    mounts = Mounts(tmp_path_factory.mktemp("mounts"))
    try:
        hosts = [mounts.make(endpoints=[server.endpoint], prefix="/dnp/") for _ in range(2)]
        for host in hosts:
            host.start()
        yield mounts
        assert [host.stop() for host in hosts] == [0, 0]
    finally:
        mounts.clear()


@pytest.mark.parametrize("document", ON_TWO_HOSTS, ids=lambda document: document.name)
def test_what_a_page_shows(document: Document, cluster: Mounts, server: EtcdProcess, tmp_path: Path) -> None:
    variables = environment(tmp_path, f"--endpoints {server.endpoint}")
    variables["ETCDCTL_API"] = "3"

    mounts = [host.path for host in cluster.alive]

    def placed(terminal: str, text: str) -> str:
        text = re.sub(r"http://etcd1:2379[\w:/.,]*", server.endpoint, text)
        return re.sub(r"""(?<![\w/.-])/dnp(?=[/\s"':;)]|$)""", str(mounts[terminal == "web2"]), text)

    reader = Reader(tmp_path, lambda: Terminal(tmp_path, variables), mounts)
    with cluster.guarded():
        try:
            reader.follow(document, placed)
        finally:
            reader.close()
            for entry in mounts[0].iterdir():
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def test_the_tutorial(tmp_path: Path) -> None:
    points = {"/dnp": tmp_path / "dnp", "/mnt/second": tmp_path / "second"}

    def placed(_terminal: str, text: str) -> str:
        names = "|".join(points)
        return re.sub(rf"(?<![\w/.-])({names})(?=[/\s:]|$)", lambda name: str(points[name[0]]), text)

    async def end_session_of(mountpoint: Path) -> None:
        async with etcd.open_client([f"unix:{tmp_path}/data/client.sock:0"]) as client:
            prefix = KeySchema().sessions
            (dead,) = [
                session
                for session in (await client.range(prefix.start, prefix.end)).kvs
                if json.loads(session.value)["mountpoint"] == str(mountpoint)
            ]
            await client.lease_revoke(dead.lease)

    def then(command: str) -> None:
        if command.startswith("kill -9"):  # ten seconds are long for a test
            trio.run(end_session_of, points["/mnt/second"])

    variables = environment(tmp_path, f"--data-dir {tmp_path}/data")
    reader = Reader(tmp_path, lambda: Terminal(tmp_path, variables), list(points.values()))
    try:
        reader.follow(TUTORIAL, placed, then)
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
