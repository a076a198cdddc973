"""`dnpipefs top` as a user sees it: keys in, screens out."""

import re

import pytest
import trio

from dnpipefs import Dnp, connect
from dnpipefs.top.screen import HELP, KEYS
from tests.cli.conftest import Command, cluster_options
from tests.support.etcd_process import EtcdProcess
from tests.top.conftest import OpenTerminal, Top, needs_terminal

pytestmark = needs_terminal


async def fill(dnp: Dnp) -> None:
    await dnp.mkdir("team")
    await dnp.push("jobs", *map(str, range(30)))
    await dnp.push("quiet", "x")
    await dnp.push("large", "x" * 5000)
    await dnp.push("team/news", "first", "second")
    for topic, group, taken in (("jobs", "slow", 1), ("jobs", "fast", 29), ("team/news", "w", 1)):
        async with dnp.consumer(topic, group) as consumer:
            for _ in range(taken):
                consumer.acknowledge(await consumer.take())
            await consumer.settled()
    for number in range(40):
        await dnp.mkdir(f"d{number:02}")
        await dnp.push(f"d{number:02}/deep", "x")


def names(screen: str) -> list[str]:
    """Return the names in the first column of the table."""
    rows = screen.splitlines()[4:-2]
    return [row.split()[0] for row in rows if row.strip()]


async def test_a_session(dnp: Command, open_terminal: OpenTerminal) -> None:
    """From the first look to the last key."""
    async with connect(dnp.options[1], prefix=dnp.options[3]) as host:
        await fill(host)
        terminal = open_terminal()
        top = Top(terminal, dnp, "--interval", "0.2")
        until = terminal.until

        async def shows(*patterns: str) -> str:
            return await trio.to_thread.run_sync(lambda: until(*patterns))

        screen = await shows(
            r"44 topics, 3 groups, 2 hosts, 0 msg/s", r"etcd: 1 of 1 member answers, default leads"
        )
        assert len(screen.splitlines()) == 24
        assert all(len(line) <= 80 for line in screen.splitlines())
        assert "TOPIC                     MESSAGES   SIZE   MSG/S  BYTES/S  FIRST    END  NEWEST" in screen
        assert names(screen)[0] == "d00/deep"
        assert "d00/deep: 1 message, bytes 0 to 2" in screen

        # The busiest comes first by itself.
        async with trio.open_nursery() as nursery:

            async def push() -> None:
                while True:
                    await host.push("quiet", "again")
                    await trio.sleep(0.01)

            nursery.start_soon(push)
            screen = await shows(r"^quiet +\d+ +\S+ +[\d.]+ ")
            assert names(await shows(r"\A.*\n.*\n.*\nTOPIC.*\nquiet"))[0] == "quiet"
            nursery.cancel_scope.cancel()
        await shows(r"[^\d]0 msg/s, 0/s")

        # Sorting: by the next column and back, and reversed.
        terminal.press("S", "S")  # by MESSAGES, by way of SIZE
        assert set(names(await shows(r"etcd  by MESSAGES$"))[:2]) == {"quiet", "jobs"}
        terminal.press("s")
        assert names(await shows(r"etcd  by SIZE$"))[0] == "large"
        terminal.press("r")
        assert "large" not in names(await shows(r"by SIZE, reversed"))

        # The row that somebody has moved to stays selected.
        terminal.press("End")
        await shows(r"^large: 1 message, bytes 0 to 5001")
        terminal.press("Up", "j", "k")
        found = re.search("^(jobs|quiet): ", await shows("^(jobs|quiet): "), re.MULTILINE)
        assert found
        terminal.press("r")
        await shows(r"by SIZE$", f"^{found[0]}")
        terminal.press("Home")
        await shows(r"^large: 1 message")

        # Filters: as it is typed, patterns, none again.
        terminal.press("/")
        terminal.type("ne")
        assert names(await shows(r"by SIZE, 1 of 44 match ne$", "^filter: ne$")) == ["team/news"]
        terminal.press("BSpace", "BSpace")
        terminal.type("[jq]*")
        terminal.press("Enter")
        assert set(names(await shows(r"2 of 44 match \[jq\]\*", "^q quit"))) == {"jobs", "quiet"}
        terminal.press("/", "x", "x", "Escape")
        await shows(r"2 of 44 match \[jq\]\*$", "^q quit")
        terminal.press("Escape")
        await shows(r"etcd  by SIZE$")

        # The other tables.
        terminal.press("Tab")
        screen = await shows(r"etcd  by LAG", r"^TOPIC +GROUP +LAG +PENDING +RETURNED +AGAIN +MEMBERS$")
        assert re.findall(r"^(\S+) +(\S+) +(\d+) +\d+ +\d+ +\d+ +\d+$", screen, re.MULTILINE) == [
            ("jobs", "slow", "29"),
            ("jobs", "fast", "1"),
            ("team/news", "w", "1"),
        ]
        terminal.press("3")
        screen = await shows(r"^HOST +MOUNT +PID +VERSION +SESSION +SINCE$", r": process \d+, no mount")
        assert len(names(screen)) == 2
        terminal.press("4")
        await shows(r"^MEMBER +ROLE +VERSION +SIZE", r"^default +leader +3\.", r"^default at http://127")
        terminal.press("BTab", "BTab")
        await shows(r"etcd  by LAG")
        terminal.press("1")

        # Following a topic: what there is, what comes, what is odd.
        terminal.press("/")
        terminal.type("team/n")
        terminal.press("Enter")
        await shows("1 of 44 match")
        terminal.press("f")
        await shows(r"^ team/news  esc back", r"^TIME +OFFSET MESSAGE", r" 0 first$", r" 6 second$")
        await host.push("team/news", "third", "\x1b[31mred\x07", "zwölf 漢字", b"\xff\xfe")
        await shows(r" third$", r" \\x1b\[31mred\\x07$", r" zwölf 漢字$", r" \\xff\\xfe$")
        await host.reset("team/news")
        await host.push("team/news", *[f"line {number}" for number in range(600)])
        await shows(r" line 599$", "^606 messages seen")
        terminal.press("Home")
        await shows(r" line 100$")  # what can be looked back at
        await host.push("team/news", "not to be jumped to")
        await shows(r"^607 messages seen", r" line 101$")
        terminal.press("Escape")
        await shows("1 of 44 match", r"^team/news +601 ")
        terminal.press("Escape")
        await shows(r"etcd  by SIZE$")

        # Pause: nothing moves, until it goes on.
        terminal.press("p")
        await shows("paused")
        await host.push("new", "x")
        await host.push("new", "x")
        assert "44 topics" in await shows("paused")
        terminal.press("p")
        await shows("45 topics")
        terminal.press("-")
        await shows("every 0.5s")
        terminal.press("+", "+")
        await shows("every 0.2s")

        # Other sizes, and the help.
        terminal.resize(130, 40)
        screen = await shows(r"NEWEST +LAG +STORED$")
        assert len(names(screen)) == 34
        terminal.resize(40, 10)
        screen = await shows(r"\A\S+, every 0.2s: 45 topics")
        assert all(len(line) <= 40 for line in screen.splitlines())
        terminal.resize(80, 24)
        await shows(r"NEWEST$")
        terminal.press("?")
        screen = await shows("ctrl l +draw the screen anew", "waiting to be delivered again")
        assert [line for line in (*HELP.splitlines(), KEYS) if line not in screen] == [], "nothing is cut"
        terminal.press("Escape", "p")  # as one key, for the terminal
        await shows("paused", "^large")
        terminal.press("q")
        await trio.to_thread.run_sync(top.ends, 0)


async def test_an_etcd_that_is_away_for_a_while_and_control_c(
    server: EtcdProcess, open_terminal: OpenTerminal, monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.chdir(str(tmp_path))
    command = Command(cluster_options(server))
    terminal = open_terminal()
    top = Top(terminal, command, "--interval", "0.2")
    terminal.until("0 topics, 0 groups, 1 host", "no topics yet")
    server.kill()
    terminal.until(r"^etcd has not answered for \ds: ", "0 topics")
    terminal.press("4")
    terminal.until(r"^default +away +- +-", r"^default: etcd at http://127.*failed to connect")
    terminal.press("1")
    server.start()
    async with connect(server.endpoint, prefix=command.options[3]) as host:
        await host.push("back", "x")
    terminal.until("etcd: 1 of 1 member answers", "^back +1 ", "1 topic, 0 groups, 1 host")
    terminal.press("f")
    terminal.until(r"^ back  esc back", " x$")
    terminal.press("C-c")
    top.ends(130)
