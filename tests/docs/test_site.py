"""The site is built without a warning, its links lead somewhere, and it loads nothing from outside."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.docs.documents import DOCUMENTS, REPOSITORY

LOADS = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src", "object": "data"}
"""What a browser fetches by itself."""


class Page(HTMLParser):
    """What a page loads, where it leads, and what in it can be led to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.leads: list[str] = []
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value for name, value in attrs if value}
        if "id" in found:
            self.ids.add(found["id"])
        if LOADS.get(tag) in found:
            self.loads.append(found[LOADS[tag]])
        if tag == "a" and "href" in found:
            self.leads.append(found["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("site")
    sphinx = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "--keep-going"]
    places = ["-d", str(directory / "trees"), str(REPOSITORY / "docs"), str(directory / "html")]
    done = subprocess.run([*sphinx, *places], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    return directory / "html"


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path.read_text()) for path in site.rglob("*.html")}


def test_every_document_is_a_page(site: Path, pages: dict[Path, Page]) -> None:
    written = {document.name for document in DOCUMENTS if document.name.startswith("docs/")}
    assert {f"docs/{path.relative_to(site).with_suffix('.md')}" for path in pages} >= written


def test_links_lead_to_pages_and_places(pages: dict[Path, Page]) -> None:
    for path, page in pages.items():
        for link in page.leads + page.loads:
            name, _, anchor = unquote(link).partition("#")
            if "://" in link or name.startswith("data:"):
                continue
            target = (path.parent / name.partition("?")[0]).resolve() if name else path
            assert target.exists(), f"{path}: {link}"
            if anchor and target in pages:
                assert anchor in pages[target].ids, f"{path}: {link}"


def test_nothing_is_loaded_from_outside(site: Path, pages: dict[Path, Page]) -> None:
    outside = re.compile(r"(?:\w+:)?//")
    assert [link for page in pages.values() for link in page.loads if outside.match(link)] == []
    for sheet in [*site.rglob("*.css"), *site.rglob("*.svg")]:
        loads = re.findall(r"url\(['\"]?([^'\")]+)|@import\s+['\"]([^'\"]+)", sheet.read_text())
        assert [link for pair in loads for link in pair if outside.match(link)] == [], sheet
