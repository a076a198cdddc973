"""What a page tells to type, and what it says comes of it; and typing it.

The conventions of the pages:

- A block of kind `console` is what terminals show. `web1:~$ ` is the prompt of the terminal `web1`, `$ ` that
  of one without a name, `> ` continues a command. `web2` works on a host of its own, all others on one.
- What follows a command is what it shows, to the byte; `…` stands for anything in a line, and alone in a line
  for any lines. A command ends before the next one in its terminal, with `^C` if the page says so.
- Lines before the first prompt of a block are what the terminal shows now that the line above names, as in
  "On `web2`:": a command goes on there.
- A block below "The file `NAME`:" is the content of that file, where commands are typed.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.docs.documents import Block, Document
from tests.docs.terminal import LIMIT_S, Terminal
from tests.support.waiting import eventually

_PROMPT = re.compile(r"^(?:(\w+):~)?\$ (.*)$")
_CONTINUED = "> "
_CTRL_C = "^C"
_ASKS = re.compile("^dnpipefs groups|user.dnp.lag")
"""How far a group is: shown once the last acknowledgement is in etcd, a moment after a reader has ended."""


@dataclass(frozen=True)
class File:
    """A file that a page gives."""

    name: str
    text: str


@dataclass
class Command:
    """A command that is typed into a terminal, and what is seen of it before anything else is typed."""

    terminal: str
    text: str
    shown: str
    goes_on: bool = False


@dataclass(frozen=True)
class Later:
    """What a command that goes on shows later."""

    terminal: str
    shown: str


@dataclass(frozen=True)
class CtrlC:
    """The end of a command that goes on."""

    terminal: str


Step = File | Command | Later | CtrlC


def steps(document: Document) -> list[Step]:
    """Return what a page tells to do, in order."""
    done: list[Step] = []
    for block in document.blocks:
        if block.label.startswith("file "):
            done.append(File(block.label.removeprefix("file "), block.text))
        elif block.kind == "console":
            done.extend(list(_steps(block, done)))
    return done


def _steps(block: Block, before: Sequence[Step]) -> Iterator[Step]:
    parts: list[tuple[str, str, list[str]]] = []  # terminal, command, what it shows
    for line in block.text.splitlines():
        if prompt := _PROMPT.match(line):
            parts.append((prompt[1] or "", prompt[2], []))
        elif not parts:
            parts.append((block.label, "", [line]))
        elif line.startswith(_CONTINUED) and not parts[-1][2]:
            terminal, command, shown = parts.pop()
            parts.append((terminal, f"{command}\n{line.removeprefix(_CONTINUED)}", shown))
        else:
            parts[-1][2].append(line)
    for terminal, text, shown in parts:
        ends = _CTRL_C in shown
        seen = "".join(f"{line}\n" for line in shown if line != _CTRL_C)
        if text:
            yield Command(terminal, text, seen, goes_on=ends)
        else:
            earlier = [step for step in before if isinstance(step, Command) and step.terminal == terminal]
            earlier[-1].goes_on = True
            yield Later(terminal, seen)
        if ends:
            yield CtrlC(terminal)


class Reader:
    """Somebody who does what a page says."""

    def __init__(
        self, directory: Path, open_terminal: Callable[[], Terminal], mounts: Sequence[Path]
    ) -> None:
        """Files are put into *directory*; *mounts* are those whose files commands wait for."""
        self._directory = directory
        self._open = open_terminal
        self._mounts = mounts
        self._terminals: dict[str, Terminal] = {}

    def follow(
        self,
        document: Document,
        placed: Callable[[str, str], str],
        then: Callable[[str], None] = lambda _command: None,
    ) -> None:
        """Do all of it. *placed* puts this machine's names into a text for a terminal.

        *then* is called after each command.
        """
        for step in steps(document):
            match step:
                case File(name, text):
                    path = self._directory / name
                    path.write_text(placed("", text))
                    path.chmod(0o755)
                case Command(terminal, text, shown) if _ASKS.search(text):
                    self._ask(terminal, placed(terminal, text), _pattern(placed(terminal, shown)))
                case Command(terminal, text, shown, goes_on):
                    self._terminal(terminal).type(placed(terminal, text))
                    self._see(terminal, placed(terminal, shown), goes_on=goes_on)
                    then(text)
                case Later(terminal, shown):
                    self._see(terminal, placed(terminal, shown), goes_on=True)
                case CtrlC(terminal):
                    self._terminal(terminal).interrupt()

    def close(self) -> None:
        """Close all terminals."""
        for terminal in self._terminals.values():
            terminal.close()

    def _terminal(self, name: str) -> Terminal:
        if name not in self._terminals:
            self._terminals[name] = self._open()
        return self._terminals[name]

    def _ask(self, name: str, question: str, pattern: str) -> None:
        terminal = self._terminal(name)

        def answer() -> str:
            terminal.type(question)
            return terminal.finishes()

        try:
            eventually(lambda: re.fullmatch(pattern, answer()), within_s=LIMIT_S)
        except AssertionError:
            raise AssertionError(f"{question}\nshows\n{answer()}\nand not\n{pattern}") from None

    def _see(self, name: str, shown: str, *, goes_on: bool) -> None:
        terminal = self._terminal(name)
        if not goes_on:
            said = terminal.finishes()
            assert re.fullmatch(_pattern(shown), said), f"it shows\n{said}\nand not\n{shown}"
        elif shown:
            terminal.shows(_pattern(shown))
        else:
            terminal.opens(self._mounts)


def _pattern(shown: str) -> str:
    return "".join(
        r"(?:[^\n]*\n)*?" if line == "…\n" else re.escape(line).replace("…", r"[^\n]*")
        for line in shown.splitlines(keepends=True)
    )
