"""The screen and its keys, on urwid.

`Screen.run` owns the terminal from its begin to its end, however it ends. It shows what `Watcher` and
`Follower` have found, whenever they say that there is something new, and once a second for what ages.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final, NamedTuple

import trio
import urwid

from dnpipefs.api import Dnp
from dnpipefs.overview import TopicOverview
from dnpipefs.top.follower import Follower
from dnpipefs.top.follower import Line as Message
from dnpipefs.top.report import etcd_line, head
from dnpipefs.top.tables import ETCD, GROUPS, TABLES, TOPICS, Choice, Table, age_text, counted, printable
from dnpipefs.top.watcher import SHORTEST_INTERVAL_S, Watcher
from dnpipefs.top.widgets import Body, Line, Markup, Rows, fit

INTERVALS_S: Final = (SHORTEST_INTERVAL_S, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
"""What `+` and `-` choose among."""
WARNING_S: Final = 10.0
"""How long a line of the log is shown."""
TICK_S: Final = 1.0
"""How often what ages is shown anew."""
PALETTE: Final = [
    ("title", "bold", "", "bold"),
    ("sorted", "bold,underline", "", "bold,underline"),
    ("here", "standout", "", "standout"),
    ("selected", "standout", "", "standout"),
    ("alarm", "light red,bold", "", "bold"),
]
KEYS: Final = "q quit  ? help  tab table  s sort  r reverse  / filter  f follow  p pause"
HELP: Final = """\
up down pgup pgdn home end   move; also k j g G
tab, or 1 2 3 4              topics, groups, hosts, etcd
s S                          sort by the next, by the previous column
r                            the other way round
/                            filter: a part of the name, or a pattern with * ? [
esc                          filter no more; back from here, or from a topic
f enter                      follow a topic: its last messages, and what comes
p space                      pause; go on
+ -                          look more often, less often
ctrl l                       draw the screen anew
q ctrl c                     quit

MSG/S, BYTES/S   pushed since the look before, a second
FIRST, END       the offsets between which messages are retained
NEWEST           how long ago the newest message was pushed
LAG              messages of a group that are not acknowledged; of them are
PENDING          claimed for readers, and
RETURNED         waiting to be delivered again; AGAIN counts those that were"""


class LastWarning(logging.Handler):
    """Keeps the last line of the log, which has no place on a screen that is drawn."""

    def __init__(self) -> None:
        super().__init__()
        self._text = ""
        self._at = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        self._text, self._at = record.getMessage(), time.monotonic()

    @property
    def text(self) -> str:
        """The line, while it is not old."""
        return self._text if time.monotonic() < self._at + WARNING_S else ""


class _Shown(NamedTuple):
    """Rows that are shown, and what they were made from, which takes a moment if there are thousands."""

    source: object = None
    table: Table[Any] = TOPICS
    choice: Choice = Choice()
    rows: Sequence[Any] = ()
    total: int = 0
    """How many there are if none are filtered out."""


class Screen:
    """The screen of `dnpipefs top`."""

    def __init__(
        self, dnp: Dnp, choices: dict[str, Choice], *, interval_s: float, warning: LastWarning
    ) -> None:
        self._dnp: Final = dnp
        self._choices: Final = choices
        self._warning: Final = warning
        self._table: Table[Any] = TOPICS
        self._watcher: Final = Watcher(dnp, interval_s, self._update)
        self._follower: Follower | None = None
        self._following = trio.CancelScope()
        self._nursery: trio.Nursery | None = None
        self._pinned: object = None
        """The row that stays selected wherever it goes; None for whichever is the first."""
        self._shown = _Shown()
        self._head: Final = urwid.Text("", wrap="clip")
        self._etcd: Final = urwid.Text("", wrap="clip")
        self._place: Final = urwid.Text("", wrap="clip")
        self._detail: Final = urwid.Text("", wrap="clip")
        self._keys: Final = urwid.Text(KEYS, wrap="clip")
        self._prompt: Final = urwid.Edit("filter: ", wrap="clip")
        self._before_prompt = ""
        self._rows: Final = Rows(self._row, self._moved)
        self._messages: Final = Rows(_message)
        self._table_body: Final = Body(self._rows)
        self._message_body: Final = Body(self._messages)
        self._titles: Final = Line(self._title)
        self._top: Final = urwid.Pile([self._head, self._etcd, self._place, self._titles])
        self._bottom: Final = urwid.Pile([self._detail, self._keys])
        self._frame: Final[urwid.Frame[Any, Any, Any]] = urwid.Frame(
            self._table_body, self._top, self._bottom
        )
        self._loop: Final = urwid.TrioEventLoop()
        terminal = urwid.display.raw.Screen(bracketed_paste_mode=False, focus_reporting=False)
        if os.environ.get("NO_COLOR"):
            terminal.set_terminal_properties(colors=1)
        self._main: Final = urwid.MainLoop(
            self._frame,
            PALETTE,
            terminal,
            handle_mouse=False,
            unhandled_input=self._key,
            event_loop=self._loop,
        )
        urwid.connect_signal(self._prompt, "postchange", self._typed)
        self._actions: Final[dict[str, Callable[[], None]]] = {
            "?": self._help,
            "h": self._help,
            "f1": self._help,
            "esc": self._escape,
            "tab": lambda: self._turn(1),
            "right": lambda: self._turn(1),
            "shift tab": lambda: self._turn(-1),
            "left": lambda: self._turn(-1),
            **{str(number): partial(self._turn_to, table) for number, table in enumerate(TABLES, 1)},
            "s": lambda: self._sort(1),
            "S": lambda: self._sort(-1),
            "r": self._reverse,
            "/": self._ask_for_filter,
            "f": self._follow,
            "enter": self._follow,
            "p": self._watcher.pause,
            " ": self._watcher.pause,
            "+": lambda: self._pace(-1),
            "-": lambda: self._pace(1),
            "ctrl l": terminal.clear,
        }

    async def run(self) -> None:
        """Show and obey until the user quits; the terminal is then as it was."""
        async with trio.open_nursery() as self._nursery:
            self._nursery.start_soon(self._watcher.run)
            self._nursery.start_soon(self._tick)
            self._update()
            with self._main.start():
                await self._loop.run_async()
            self._nursery.cancel_scope.cancel()

    async def _tick(self) -> None:
        while True:
            await trio.sleep(TICK_S)
            self._update()

    # What is shown

    def _update(self) -> None:
        """Show what there is now."""
        self._show_head()
        self._show_etcd()
        self._titles.changed()
        if self._follower is not None:
            self._show_messages(self._follower)
        else:
            self._show_rows()
        self._keys.set_text(("alarm", printable(self._warning.text)) if self._warning.text else KEYS)

    def _show_head(self) -> None:
        watcher = self._watcher
        pace = "paused" if watcher.paused else f"every {watcher.interval_s:g}s"
        if watcher.picture is None:
            self._head.set_text([("title", f"dnpipefs top, {pace}: looking")])
            return
        taken = time.strftime("%H:%M:%S", time.localtime(watcher.picture.sample.time_ns / 1e9))
        self._head.set_text([("title", f"{taken}, {pace}: "), head(watcher.picture)])

    def _show_etcd(self) -> None:
        watcher = self._watcher
        if watcher.away_s is not None and watcher.health is not None:
            said = f"etcd has not answered for {age_text(watcher.away_s)}: {watcher.health.failure}"
        elif watcher.failure is not None:
            said = f"this is what was seen before: {watcher.failure}"
        else:
            health = watcher.health
            line = "etcd: looking" if health is None else printable(etcd_line(health))
            self._etcd.set_text(("alarm", line) if health is not None and health.alarms else line)
            return
        self._etcd.set_text(("alarm", printable(said)))

    def _show_rows(self) -> None:
        choice, picture = self._choices[self._table.title], self._watcher.picture
        shown = self._shown
        if picture is not None and (
            (source := picture.health if self._table is ETCD else picture.sample) is not shown.source
            or (shown.table, shown.choice) != (self._table, choice)
        ):
            shown = self._shown = _Shown(source, self._table, choice, *choice.rows(self._table, picture))
        rows = shown.rows
        focus = 0
        if self._pinned is not None:
            identities = map(self._table.identity, rows)
            places = (index for index, identity in enumerate(identities) if identity == self._pinned)
            focus = next(places, self._rows.focus)
        self._rows.show(rows, focus)
        self._place.set_text(self._tabs(choice, len(rows), shown.total))
        self._show_detail()

    def _show_detail(self) -> None:
        row = self._rows.selected
        if row is not None:
            detail = self._table.detail(row)
        elif self._watcher.picture is None:
            detail = ""
        elif self._choices[self._table.title].matching:
            detail = "nothing matches the filter; esc shows all again"
        else:
            detail = f"no {self._table.title} yet"
        self._detail.set_text(printable(detail))

    def _show_messages(self, follower: Follower) -> None:
        if self._watcher.paused and self._messages.rows:
            return
        lines, selected = list(follower.lines), self._messages.selected
        focus = len(lines) - 1
        if self._messages.focus < len(self._messages.rows) - 1:  # somebody looks back
            focus = lines.index(selected) if selected in lines else 0
        self._messages.show(lines, focus)
        self._place.set_text([("here", f" {printable(follower.topic)} "), " esc back"])
        said = (
            counted(follower.seen, "message") + " seen" if follower.failure is None else str(follower.failure)
        )
        self._detail.set_text(printable(said) if follower.failure is None else ("alarm", printable(said)))

    def _tabs(self, choice: Choice, shown: int, total: int) -> Markup:
        tabs: Markup = []
        for number, table in enumerate(TABLES, 1):
            tabs += [("here" if table is self._table else None, f" {number} {table.title} "), (None, " ")]
        by = self._table.column(choice.sort) or self._table.columns[0]
        order = f"by {by.title}{', reversed' if choice.reverse else ''}"
        if choice.matching:
            order += f", {shown} of {total} match {printable(choice.matching)}"
        return [*tabs, (None, order)]

    def _title(self, width: int) -> Markup:
        if self._follower is not None:
            return [("title", f"{'TIME':<12} {'OFFSET':>12} MESSAGE")]
        titles: Markup = []
        choice = self._choices[self._table.title]
        for column, cells in self._table.shown(width):
            sorted_by = column.name == choice.sort
            title = fit(column.title, cells, left=column.left)
            titles += [("sorted" if sorted_by else "title", title), (None, " ")]
        return titles[:-1]

    def _row(self, row: Any, width: int) -> Markup:
        cells = [fit(column.text(row), cells, left=column.left) for column, cells in self._table.shown(width)]
        return [(None, " ".join(cells))]

    # What keys do

    def _key(self, key: object) -> None:
        if not isinstance(key, str):  # a mouse
            return
        escaped, meta, plain = key.rpartition("meta ")
        if meta and not escaped:  # a quick one behind the escape key
            self._key("esc")
            key = plain
        if self._frame.focus_position == "footer":
            self._key_in_prompt(key)
            return
        if key in ("q", "Q"):
            raise urwid.ExitMainLoop
        action = self._actions.get(key)
        if action is not None:
            action()
            self._update()

    def _turn(self, step: int) -> None:
        self._turn_to(TABLES[(TABLES.index(self._table) + step) % len(TABLES)])

    def _turn_to(self, table: Table[Any]) -> None:
        self._back()
        self._table = table
        self._pinned = None

    def _back(self) -> None:
        """Leave a topic or the help; there is a table behind them."""
        self._follower = None
        self._following.cancel()
        self._frame.body = self._table_body

    def _escape(self) -> None:
        if self._frame.body is self._table_body:
            self._choose(matching="")
        self._back()

    def _choose(self, **changes: Any) -> None:
        title = self._table.title
        self._choices[title] = replace(self._choices[title], **changes)

    def _sort(self, step: int) -> None:
        names = [column.name for column in self._table.columns]
        sort = self._choices[self._table.title].sort
        index = names.index(sort) if sort in names else 0
        self._choose(sort=names[(index + step) % len(names)], reverse=False)

    def _reverse(self) -> None:
        self._choose(reverse=not self._choices[self._table.title].reverse)

    def _pace(self, step: int) -> None:
        """Choose the next of the INTERVALS_S, in either direction."""
        now = self._watcher.interval_s
        others = [seconds for seconds in INTERVALS_S if (seconds - now) * step > 0]
        if others:
            self._watcher.set_interval(min(others) if step > 0 else max(others))

    def _help(self) -> None:
        self._back()
        lines = [urwid.Text(line, wrap="clip") for line in HELP.splitlines()]
        self._frame.body = urwid.ListBox(urwid.SimpleFocusListWalker(lines))

    def _follow(self) -> None:
        row = self._rows.selected
        if row is None or self._nursery is None or self._frame.body is not self._table_body:
            return
        if self._table not in (TOPICS, GROUPS):
            return
        topic: TopicOverview = row.topic
        stat = topic.stat
        size = (stat.end - stat.first) / stat.messages if stat is not None and stat.messages else 0.0
        self._messages.show((), 0)
        self._follower = Follower(self._dnp, topic.path, size, self._update)
        self._following = trio.CancelScope()
        self._nursery.start_soon(self._run_follower, self._follower, self._following)
        self._frame.body = self._message_body

    async def _run_follower(self, follower: Follower, scope: trio.CancelScope) -> None:
        with scope:
            await follower.run()

    def _ask_for_filter(self) -> None:
        if self._frame.body is self._table_body:
            self._before_prompt = self._choices[self._table.title].matching
            self._prompt.set_edit_text(self._before_prompt)
            self._prompt.set_edit_pos(len(self._before_prompt))
            self._frame.footer = urwid.Pile([self._detail, self._prompt], focus_item=1)
            self._frame.focus_position = "footer"

    def _key_in_prompt(self, key: str) -> None:
        if key == "esc":
            self._choose(matching=self._before_prompt)
        if key in ("enter", "esc"):
            self._frame.footer = self._bottom
            self._frame.focus_position = "body"
            self._update()

    def _typed(self, _prompt: urwid.Edit, _before: str) -> None:
        self._choose(matching=self._prompt.edit_text)
        self._pinned = None
        self._update()

    def _moved(self) -> None:
        """Let the row stay selected that somebody has moved to."""
        row = self._rows.selected
        self._pinned = self._table.identity(row) if row is not None and self._rows.focus else None
        self._show_detail()


def _message(message: Message, width: int) -> Markup:
    moment = time.strftime("%H:%M:%S", time.localtime(message.time_ns // 10**9))
    milliseconds = message.time_ns // 10**6 % 1000
    return [(None, fit(f"{moment}.{milliseconds:03} {message.offset:>12} {message.text}", width, left=True))]
