"""The screens in docs/top.md are what a terminal shows, but for numbers.

With DNPIPEFS_TEST_CAPTURES=write in the environment they are written there anew.
"""

import os
import re
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio

from dnpipefs.api import Dnp
from dnpipefs.cluster import Settings, open_cluster
from tests.cli.conftest import Command
from tests.docs.documents import Document
from tests.etcd.conftest import cluster
from tests.support.etcd_process import EtcdProcess
from tests.top.conftest import OpenTerminal, Top, needs_terminal

__all__ = ["cluster"]

pytestmark = needs_terminal

DOCUMENT = "docs/top.md"
LINES = 15


def shape(capture: str) -> list[str]:
    """Return the lines of a capture with `#` for what differs from run to run, elections among it."""
    text = re.sub(r"\b[0-9a-f]{14,16}\b|\d[\d.:]*(ms|[smhdKMG]\b)?|\b(leader|follower)\b", "#", capture)
    text = re.sub(r"\b\w (?=leads)", "# ", text)
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


def check(label: str, capture: str) -> None:
    """Compare a capture with the one in the document, or write it there."""
    own = rf"^{re.escape(socket.gethostname())}(?= |:)( *)"
    capture = re.sub(own, lambda name: "ops1".ljust(len(name[0])), capture, flags=re.MULTILINE)
    capture = re.sub(r" +$", "", capture, flags=re.MULTILINE).strip("\n") + "\n"
    document = Document(DOCUMENT)
    if os.environ.get("DNPIPEFS_TEST_CAPTURES") == "write":
        begin = f"<!-- capture {label} -->\n```text\n"
        before, found, behind = document.text.partition(begin)
        assert found, f"{DOCUMENT} has no place for {label}"
        document.path.write_text(before + found + capture + behind[behind.index("```") :])
    else:
        assert shape(capture) == shape(document.labelled(f"capture {label}"))


@pytest.fixture
async def mounts(cluster: list[EtcdProcess], monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[Dnp]]:
    """Two hosts with mounts, as far as their sessions say."""
    endpoints = tuple(member.endpoint for member in cluster)
    async with AsyncExitStack() as stack:
        hosts = []
        for name in ("web1", "web2"):
            with monkeypatch.context() as patch:
                patch.setattr(socket, "gethostname", lambda name=name: name)
                hosts.append(
                    Dnp(await stack.enter_async_context(open_cluster(Settings(endpoints), mountpoint="/dnp")))
                )
        yield hosts


async def test_captures(
    cluster: list[EtcdProcess],
    mounts: list[Dnp],
    open_terminal: OpenTerminal,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    web1, web2 = mounts
    for directory in ("builds", "team"):
        await web1.mkdir(directory)
    for number in range(40):
        await web1.push("team/news", f"note {number}")
    for topic in ("builds/debian", "builds/fedora", "greetings", "jobs"):
        await web1.push(topic, f"hello from {topic}")
    command = Command(["--endpoints", ",".join(member.endpoint for member in cluster)])
    terminal = open_terminal(lines=LINES)
    top = Top(terminal, command, "--interval", "0.5")

    async def shows(*patterns: str) -> str:
        return await trio.to_thread.run_sync(lambda: terminal.until(*patterns))

    async def push(topic: str, text: str, every_s: float) -> None:
        for number in range(10**6):
            await web1.push(topic, f"{number:06} {text}")
            await trio.sleep(every_s)

    async def work(dnp: Dnp, topic: str, group: str, every_s: float) -> None:
        async with dnp.consumer(topic, group) as consumer:
            while True:
                job = await consumer.take()
                await trio.sleep(every_s)
                consumer.acknowledge(job)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(push, "jobs", "resize https://example.org/picture.png", 0.005)
        nursery.start_soon(push, "builds/debian", "dnpipefs built", 0.2)
        nursery.start_soon(work, web1, "jobs", "thumbnails", 0.05)
        nursery.start_soon(work, web2, "team/news", "mail", 0.5)
        busy = r"^jobs +\d+ +\S+ +\d\d+ .*\n^builds/debian +\d+ +\S+ +[1-9]"
        await shows("5 topics, 2 groups, 3 hosts", r"\d\d msg/s", busy)
        terminal.press("2")
        await shows(r"^jobs +thumbnails +\d\d", r"^team/news +mail ")
        terminal.press("1")
        check("topics", await shows(busy))
        terminal.press("2")
        check("groups", await shows(r"^jobs +thumbnails +\d\d", r"^team/news +mail "))
        terminal.press("3")
        check("hosts", await shows(r"^web2 +/dnp"))
        terminal.press("1")
        await shows(busy)
        terminal.press("f")
        check("follow", await shows(r"(?:.*picture\.png\n){9}"))
        nursery.cancel_scope.cancel()
    cluster[2].kill()
    terminal.press("Escape", "4")
    await shows(r"^etcd: 2 of 3 members answer, [ab] leads", r"^c +away")
    terminal.press("End")
    capture = await shows(r"^etcd: 2 of 3 members answer, [ab] leads", r"^c +away", r"^c: etcd at")
    check("etcd", capture)
    terminal.press("q")
    await trio.to_thread.run_sync(top.ends, 0)
    check("once", command.out("top", "--once", "--interval", "0.2").decode())
