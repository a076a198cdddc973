"""How Sphinx makes a site of these pages (`make docs`): Markdown by MyST, shown by Furo."""

import os
import re
from pathlib import Path
from typing import Final

from sphinx.application import Sphinx

REPOSITORY: Final = Path(__file__).parents[1]
ELSEWHERE: Final = {"readme": "README.md", "changelog": "CHANGELOG.md"}
"""Pages that show a file from outside docs."""
PLANNED: Final = ("systemd", "observability", "top")
"""Pages that have a place in the navigation and may not be there yet."""
_LINK: Final = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])+)\]\(([^)\s]+)\)")

project = "dnpipefs"
author = "the authors of dnpipefs"
extensions = ["myst_parser"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4
nitpicky = True
html_theme = "furo"
html_title = "dnpipefs"
html_static_path = ["_static", "images"]
html_css_files = ["site.css"]
html_show_copyright = False
html_show_sphinx = False
html_copy_source = False
html_favicon = "images/mark.svg"
html_theme_options = {"light_logo": "mark.svg", "dark_logo": "mark.svg", "top_of_page_buttons": []}


def setup(app: Sphinx) -> None:
    """Register what follows."""
    app.connect("source-read", show)


def show(app: Sphinx, page: str, source: list[str]) -> None:
    """Bring in files from outside, and let links follow: to pages, or to nothing where there is none."""
    here = REPOSITORY / "docs" / page
    if page in ELSEWHERE:
        here = REPOSITORY / ELSEWHERE[page]
        source[0] = here.read_text()
        app.env.note_dependency(here)
    if page == "index":
        app.env.note_reread()
        missing = {f"{name}\n" for name in PLANNED if not (here.parent / f"{name}.md").exists()}
        source[0] = "".join(line for line in source[0].splitlines(keepends=True) if line not in missing)
    source[0] = _LINK.sub(lambda link: _followed(page, here.parent, link), source[0])


def _followed(page: str, directory: Path, link: re.Match[str]) -> str:
    text, target = link.groups()
    name, hash_sign, anchor = target.partition("#")
    if "://" in target or not name:
        return link.group()
    path = (directory / name).resolve().relative_to(REPOSITORY)
    shown = {file: f"docs/{shown_as}.md" for shown_as, file in ELSEWHERE.items()}
    path = Path(shown.get(str(path), path))
    if path.parts[0] != "docs":
        return text  # a file of the repository
    return f"[{text}]({os.path.relpath(path, (Path('docs') / page).parent)}{hash_sign}{anchor})"
