"""What the screen is made of beside urwid's own widgets: lines that fit, and lists of many rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import urwid

from dnpipefs.top.tables import printable

Markup = list[tuple[str | None, str]]
"""Pieces of a line, each with the name of how it looks."""


def fit(text: str, width: int, *, left: bool) -> str:
    """Return *text* in *width* cells of a terminal: padded, or with an ellipsis where it is cut."""
    text = printable(text)
    cells = urwid.calc_width(text, 0, len(text))
    if cells > width:
        end, cells = urwid.calc_text_pos(text, 0, len(text), max(0, width - 1))
        text, cells = text[:end] + "…", cells + 1
    padding = " " * (width - cells)
    return text + padding if left else padding + text


class Line(urwid.Widget):
    """One line, made for the width that there is when it is drawn."""

    _sizing = frozenset([urwid.FLOW])
    _selectable = True

    def __init__(self, make: Callable[[int], Markup], selected: str | None = None) -> None:
        """*selected*: how it looks when it is selected."""
        super().__init__()
        self._make: Final = make
        self._selected: Final = selected

    def changed(self) -> None:
        """Make it anew when it is drawn next."""
        self._invalidate()

    def rows(self, size: tuple[int], focus: bool = False) -> int:
        """Return how high it is."""
        return 1

    def render(self, size: tuple[int], focus: bool = False) -> urwid.Canvas:  # type: ignore[override]
        """Draw it."""
        text = urwid.Text(self._make(size[0]), wrap="clip")
        return urwid.AttrMap(text, self._selected if focus else None).render(size)

    def keypress(self, size: tuple[int], key: str) -> str:  # type: ignore[override]
        """Leave all keys to others."""
        return key


class Rows(urwid.ListWalker[int, Line]):
    """Rows of a list, of which those become widgets that are seen."""

    def __init__(self, make: Callable[[Any, int], Markup], moved: Callable[[], None] = lambda: None) -> None:
        """*make* makes the line of a row for a width; *moved* is called when another row is selected."""
        self._make: Final = make
        self._moved: Final = moved
        self.rows: Sequence[Any] = ()
        self.focus = 0

    def show(self, rows: Sequence[Any], focus: int) -> None:
        """Take other rows, and select one of them."""
        self.rows = rows
        self.focus = max(0, min(focus, len(rows) - 1))
        self._modified()

    @property
    def selected(self) -> Any | None:
        """The row that is selected; None if there is no row."""
        return self.rows[self.focus] if self.rows else None

    def __getitem__(self, position: int) -> Line:
        row = self.rows[self._there(position)]
        return Line(lambda width: self._make(row, width), "selected")

    def positions(self, reverse: bool = False) -> range:
        """Return all positions."""
        return range(len(self.rows))[::-1] if reverse else range(len(self.rows))

    def set_focus(self, position: int) -> None:
        """Select a row."""
        self.focus = self._there(position)
        self._modified()
        self._moved()

    def next_position(self, position: int) -> int:
        """Return the position below."""
        return self._there(position + 1)

    def prev_position(self, position: int) -> int:
        """Return the position above."""
        return self._there(position - 1)

    def _there(self, position: int) -> int:
        if not 0 <= position < len(self.rows):
            raise IndexError(position)
        return position


class Body(urwid.ListBox[int]):
    """A list in which letters move, too."""

    _command_map = urwid.command_map.copy()


for _key, _command in (
    ("j", urwid.CURSOR_DOWN),
    ("k", urwid.CURSOR_UP),
    ("g", urwid.CURSOR_MAX_LEFT),
    ("G", urwid.CURSOR_MAX_RIGHT),
):
    Body._command_map[_key] = _command
