"""Write the man pages in man/ anew: `make man`, or this script in the .venv.

A page NAME is made from man/NAME.md, which is in the Markdown of docs/. A comment in it stands for what is
taken from elsewhere, so that it stays true: from click what the commands say of themselves, from docs/ whole
documents or sections. The pages are committed; tests/docs/test_man.py compares.
"""

import inspect
import re
import textwrap
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from dnpipefs.cli.program import PROGRAM, program

REPOSITORY = Path(__file__).resolve().parent.parent
DATE = "2026-11-28"
"""Of the pages; docs/releasing.md says when to change it."""
NOT_IN_FSTAB = {"endpoints", "foreground", "source"}
"""Options of `dnpipefs mount` that mount.dnpipefs does not take: they follow from what is mounted."""
NAMES_IN_FSTAB = {"user": "etcd_user"}
"""Those that are named otherwise there, since mount(8) has an option of that name."""
WIDTH = 72
"""Letters of a line of source, at most, where it can be broken."""
BLOCK = re.compile(
    r"^<!-- (?P<comment>.*?) -->$|^(?P<heading>#+ .*)$|^```\w*\n(?P<code>[\s\S]*?)^```$"
    r"|(?P<table>(?:^\|.*\n?)+)|(?P<item>^- .*\n?(?:^  .*\n?)*)|(?P<text>(?:^(?!```|\||- |#|<!--).+\n?)+)",
    re.MULTILINE,
)
TESTS = re.compile(r"\s*\((?:likewise|(?:`test_\w+`(?:,\s+)?)+)\)")
INLINE = re.compile(
    r"`(?P<code>[^`]+)`|\*\*(?P<bold>.+?)\*\*|\*(?P<italic>[^*\s][^*]*)\*|\[(?P<link>[^\]]+)\]\([^)]*\)",
    re.DOTALL,
)
SPECIAL = {"\\": r"\e", "-": r"\-", "'": r"\(aq", "`": r"\(ga", "^": r"\(ha", "~": r"\(ti"}


def page(name: str) -> str:
    """Return the source of a man page, such as ``dnpipefs.1``."""
    source = (REPOSITORY / "man" / f"{name}.md").read_text()
    title, purpose = re.match(r"# (\S+) (.*)\n", source).groups()  # type: ignore[union-attr]
    topic, section = title.rstrip(")").split("(")
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    lines = [
        rf".\" Made by scripts/generate_man.py from man/{name}.md: do not edit.",
        f'.TH {topic.upper()} {section} {DATE} "dnpipefs {version}" dnpipefs',
        ".SH NAME",
        rf"{_escaped(topic)} \- {inline(purpose)}",
        *blocks(source.partition("\n")[2]),
    ]
    text = "\n".join(lines) + "\n"
    return re.sub(r"^(\.S[HS] .*\n)\.PP\n", r"\1", text, flags=re.MULTILINE)


def blocks(markdown: str) -> Iterator[str]:
    """Yield the lines of source for some Markdown."""
    for block in BLOCK.finditer(TESTS.sub("", markdown)):
        kind, text = block.lastgroup, block[block.lastgroup or 0]
        match kind:
            case "comment":
                yield from _taken(text)
            case "heading":
                marks, _, title = text.partition(" ")
                yield f".SH {inline(title).upper()}" if marks == "##" else f".SS {inline(title)}"
            case "code":
                yield from (".PP", ".in +4n", ".EX", *map(_literal, text.splitlines()), ".EE", ".in")
            case "table":
                yield from _table(text.splitlines())
            case "item":
                yield from (r".IP \(bu 2", *_wrapped(text.removeprefix("- ")))
            case _:
                yield from (".PP", *_wrapped(text))


def inline(text: str) -> str:
    """Return a piece of running text with its fonts."""
    parts, end = [], 0
    for found in INLINE.finditer(text):
        parts.append(_escaped(text[end : found.start()], keep="-'"))
        match found.lastgroup:
            case "code":
                parts.append(rf"\fB{_escaped(found['code'])}\fR")
            case "bold":
                parts.append(rf"\fB{_escaped(re.sub('`', '', found['bold']))}\fR")
            case "italic":
                parts.append(rf"\fI{_escaped(found['italic'], keep='-')}\fR")
            case _:
                parts.append(inline(found["link"]))
        end = found.end()
    return "".join(parts) + _escaped(text[end:], keep="-'")


def _escaped(text: str, keep: str = "") -> str:
    return "".join(letter if letter in keep else SPECIAL.get(letter, letter) for letter in text)


def _literal(line: str) -> str:
    return re.sub(r"^(?=\.|\\\(aq)", r"\&", _escaped(line))


def _wrapped(text: str) -> list[str]:
    lines = textwrap.wrap(
        inline(" ".join(text.split())), WIDTH, break_long_words=False, break_on_hyphens=False
    )
    return [re.sub(r"^(?=[.'])", r"\&", line) for line in lines]


def _table(rows: Sequence[str]) -> Iterator[str]:
    """Yield a list: the first cell is what a paragraph is about; of several others each says what it is."""
    head, _, *body = ([cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows)
    for row in body:
        cells = [
            (title, cell.replace(r"\|", "|"))
            for title, cell in zip(head, row, strict=True)
            if cell and title != "tests"
        ]
        labelled = len(head) - ("tests" in head) > 2
        term, *rest = cells if row[0] else [("", "(nothing)"), *cells]
        yield from (".TP", inline(term[1].replace("**", "")))
        for number, (title, cell) in enumerate(rest):
            if number:
                yield ".br"
            yield from _wrapped(f"*{title.replace('`', '')}:* {cell}" if labelled and title else cell)


def _taken(comment: str) -> Iterator[str]:
    """Yield what a comment stands for; comments of docs/ that name a block for tests stand for nothing."""
    context = click.Context(program, info_name=PROGRAM, max_content_width=WIDTH)
    commands = [
        (name, command)
        for name in program.list_commands(context)
        if (command := program.get_command(context, name)) is not None
    ]
    if comment.startswith("include "):
        yield from blocks(_section(*comment.removeprefix("include ").partition(": ")[::2]))
    elif comment == "synopsis":
        yield from (rf"\fB{PROGRAM}\fR \fIcommand\fR [\fIoption\fR]... [\fIargument\fR]...", ".br")
        yield from (rf"\fB{PROGRAM}\fR [\fB\-\-help\fR | \fB\-\-version\fR]",)
    elif comment == "about":
        yield from _told(program.help)
    elif comment == "commands":
        shared = _shared(commands)
        for name, command in commands:
            yield from _command(context, name, command, shared)
    elif comment == "shared options":
        yield from _options(list(_shared(commands)))
    elif comment == "exit status":
        yield from _told(program.epilog, heading=False)
    elif comment == "mount options":
        yield from _mount_options(context)


def _section(path: str, title: str) -> str:
    """Return a document of docs/ without its title and what stands before its first section, or a section."""
    text = (REPOSITORY / path).read_text()
    if not title:
        return text[text.index("\n## ") :]
    found = re.search(rf"^(#+) {re.escape(title)}\n(.*?)(?=^##|\Z)", text, re.MULTILINE | re.DOTALL)
    if found is None:
        raise SystemExit(f"{path} has no section {title!r}: say in man/*.md what to include instead")
    return found[2]


Option = tuple[str, str]
"""How it is written, and what it does, as `--help` shows them."""


def _records(context: click.Context, name: str, command: click.Command) -> list[Option]:
    inner = click.Context(command, info_name=name, parent=context)
    records = (
        option.get_help_record(inner)
        for option in command.get_params(inner)
        if isinstance(option, click.Option) and "--help" not in option.opts
    )
    return [record for record in records if record is not None]


def _shared(commands: Sequence[tuple[str, click.Command]]) -> dict[Option, int]:
    """Return the options that more than half of the commands have, in order."""
    context = click.Context(program, info_name=PROGRAM)
    counts = Counter(record for name, command in commands for record in _records(context, name, command))
    return {option: count for option, count in counts.items() if count > len(commands) / 2}


def _command(
    context: click.Context, name: str, command: click.Command, shared: dict[Option, int]
) -> Iterator[str]:
    inner = click.Context(command, info_name=name, parent=context)
    own = _records(context, name, command)
    pieces = [piece for piece in command.collect_usage_pieces(inner) if piece != "[OPTIONS]"]
    yield rf".SS {name}"
    usage = " ".join(rf"\fI{_escaped(piece)}\fR" for piece in pieces)
    yield from (".PP", rf"\fB{PROGRAM} {_escaped(name)}\fR [\fIoption\fR]... {usage}".rstrip())
    yield from _told(command.help)
    yield from _options([option for option in own if option not in shared])
    if any(option in shared for option in own):
        yield from (".PP", "The shared options, below.")
    yield from _told(command.epilog)


def _options(options: Sequence[Option]) -> Iterator[str]:
    for written, told in options:
        yield ".TP"
        yield re.sub(
            r"(?<![\w-])(--?[\w-]+)|([^\s/,]+)",
            lambda part: rf"\fB{_escaped(part[1])}\fR" if part[1] else rf"\fI{_escaped(part[2])}\fR",
            written,
        )
        yield from _wrapped(re.sub(r"\s*\[(default: .*|x>=\d+)\]$", r" [\1]", told))


def _mount_options(context: click.Context) -> Iterator[str]:
    command = program.get_command(context, "mount")
    if command is None:
        raise SystemExit("there is no command mount")
    for written, told in _records(context, "mount", command):
        *names, value = re.fullmatch(r"(?:-\w, )?--(\S+)(?: / --(\S+))?(?: (\S+))?", written).groups()  # type: ignore[union-attr]
        taken = [name.replace("-", "_") for name in names if name]
        if NOT_IN_FSTAB.isdisjoint(taken):
            term = ", ".join(rf"\fB{_escaped(NAMES_IN_FSTAB.get(name, name))}\fR" for name in taken)
            yield from (".TP", term + (rf"=\fI{_escaped(value)}\fR" if value else ""), *_wrapped(told))


def _told(text: str | None, *, heading: bool = True) -> Iterator[str]:
    """Yield a help text of click: paragraphs, and those marked to stay as they are, mostly lists."""
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(text or "")):
        if not paragraph.lstrip().startswith("\b"):
            if paragraph.strip():
                yield from (".PP", *_wrapped(paragraph))
            continue
        lines = paragraph.lstrip().removeprefix("\b").strip("\n").splitlines()
        if lines[0].endswith(":") and not lines[0].startswith(" "):
            title, *lines = lines
            yield from (".PP", inline(title)) if heading else ()
        terms = [re.match(r"\s*(\S+)\s{2,}(.*)", line) for line in lines]
        for number, (line, term) in enumerate(zip(lines, terms, strict=True)):
            if term is None:
                yield from (".br", _literal(line))
                continue
            if number == 1:
                yield ".PD 0"
            yield from (".TP 10n", rf"\fB{_escaped(term[1])}\fR", *_wrapped(term[2]))
        yield ".PD"


def main() -> None:
    """Write all pages."""
    for source in sorted((REPOSITORY / "man").glob("*.md")):
        (source.parent / source.stem).write_text(page(source.stem))


if __name__ == "__main__":
    main()
