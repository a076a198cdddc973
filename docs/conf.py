"""How Sphinx makes the site of these pages (`make docs`): Markdown by MyST, shown by Furo, nothing from outside."""

import os
import re
from pathlib import Path
from typing import Final

from sphinx.application import Sphinx

REPOSITORY: Final = Path(__file__).parents[1]
ELSEWHERE: Final = {"readme": "README.md", "changelog": "CHANGELOG.md"}
"""Pages that show a file from outside docs."""
_LINK: Final = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])+)\]\(([^)\s]+)\)")

project = "dnpipefs"
author = "the authors of dnpipefs"
extensions = ["myst_parser"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4
nitpicky = True
# Pages that another change brings are in the navigation already, as patterns that match nothing yet.
suppress_warnings = ["toc.empty_glob"]
html_theme = "furo"
html_title = "dnpipefs"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = False
html_show_sphinx = False
html_copy_source = False
html_favicon = "images/mark.svg"
html_theme_options = {"light_logo": "mark.svg", "dark_logo": "mark.svg", "top_of_page_buttons": []}
html_static_path += ["images"]


def setup(app: Sphinx) -> None:
    """Register what follows."""
    app.connect("source-read", show)


def show(_app: Sphinx, page: str, source: list[str]) -> None:
    """Bring files from outside in, and let links follow: to pages, or to nothing where the site has no page."""
    here = REPOSITORY / "docs" / page
    if page in ELSEWHERE:
        here = REPOSITORY / ELSEWHERE[page]
        source[0] = here.read_text()
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
