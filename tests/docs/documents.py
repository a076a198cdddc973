"""The documents as data: their code blocks, tables, links and headings."""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Block:
    """A fenced block: what kind it says it is, and what the line before it calls it.

    Such a line is a comment, "The file `NAME`:", which makes the label "file NAME", or "On `TERMINAL`:".
    """

    kind: str
    label: str
    text: str


@dataclass
class Document:
    """A Markdown file, by its path in the repository."""

    name: str

    @property
    def path(self) -> Path:
        return REPOSITORY / self.name

    @cached_property
    def text(self) -> str:
        return self.path.read_text()

    @cached_property
    def blocks(self) -> list[Block]:
        fenced = re.compile(
            r"^(?:<!-- ([^\n]*) -->\n+|(?:The (file )|On )`([^`\n]+)`:\n\n)?```(\w*)\n(.*?)^```$",
            re.MULTILINE | re.DOTALL,
        )
        return [
            Block(kind, label + file + name, text)
            for label, file, name, kind, text in fenced.findall(self.text)
        ]

    def labelled(self, label: str) -> str:
        """Return the one block below the comment `label`."""
        (text,) = [block.text for block in self.blocks if block.label == label]
        return text

    def of_kind(self, kind: str) -> list[str]:
        return [block.text for block in self.blocks if block.kind == kind]

    @cached_property
    def prose(self) -> str:
        """The text without its fenced blocks."""
        return re.sub(r"^```.*?^```$", "", self.text, flags=re.MULTILINE | re.DOTALL)

    @cached_property
    def rows(self) -> list[list[str]]:
        """All rows of all tables, cells without blanks around them."""
        lines = [line for line in self.prose.splitlines() if line.startswith("|")]
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
        return [row for row in rows if not re.fullmatch("[-: ]*", "".join(row))]

    @cached_property
    def links(self) -> list[str]:
        return re.findall(r"\]\(([^)\s]+)\)", self.prose)

    @cached_property
    def anchors(self) -> set[str]:
        """What GitHub makes of the headings."""
        headings = re.findall(r"^#+ (.*)$", self.prose, re.MULTILINE)
        return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


README = Document("README.md")
ARCHITECTURE = Document("docs/architecture.md")
FORMAT = Document("docs/format.md")
SEMANTICS = Document("docs/semantics.md")
FSCK = Document("docs/fsck.md")
GROUPS = Document("docs/groups.md")
SECURITY = Document("docs/security.md")
RELIABILITY = Document("docs/reliability.md")
OBSERVABILITY = Document("docs/observability.md")
CONFIGURATION = Document("docs/configuration.md")
INSTALL = Document("docs/install.md")
TOP = Document("docs/top.md")
SYSTEMD = Document("docs/systemd.md")
TROUBLESHOOTING = Document("docs/troubleshooting.md")
DOCUMENTS = tuple(
    Document(str(path.relative_to(REPOSITORY)))
    for path in (README.path, REPOSITORY / "CHANGELOG.md", *sorted((REPOSITORY / "docs").rglob("*.md")))
    if "_build" not in path.parts
)
