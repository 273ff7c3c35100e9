"""Pages of the site that lie at the root of the repository: a hook of mkdocs, named in mkdocs.yml.

A link such as `../EXPERIMENTS.md#section-54` works on GitHub as it is. On the site it leads to the page that the hook
makes of the file.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
PAGES = {
    "EXPERIMENTS.md": "experiments.md",
    "CONTRIBUTING.md": "contributing.md",
    "ARCHITECTURE.md": "architecture.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
}
"""File at the root → page of the site."""
LINK = re.compile(r"(?<=\]\()((?!\w+:)[^)#\s]+)(?=[)#])")
"""The path of a relative link."""


def on_files(files: Any, config: Any) -> Any:
    """Add the pages."""
    for name, page in PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=at_home(text)))
    return files


def on_page_markdown(markdown: str, page: Any, **kwargs: Any) -> str:
    """Lead links to files at the root to their pages."""
    return led(markdown, page.file.src_uri)


def at_home(text: str) -> str:
    """Return a text of the root with links as in docs/."""

    def home(found: re.Match[str]) -> str:
        path = found[1]
        if path == "README.md":
            return "index.md"
        return path.removeprefix("docs/") if path.startswith("docs/") else PAGES.get(path, path)

    return LINK.sub(home, text)


def led(text: str, page: str) -> str:
    """Return the text of a page of docs/ with links to the root's files replaced by links to their pages."""
    folder = posixpath.dirname(page)

    def lead(found: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join("docs", folder, found[1]))
        return posixpath.relpath(PAGES[path], folder or ".") if path in PAGES else found[1]

    return LINK.sub(lead, text)
