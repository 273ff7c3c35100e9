"""Pages of the site that lie at the root of the repository: a hook of mkdocs, named in mkdocs.yml.

A link such as `../CONTRIBUTING.md` works on GitHub as it is. On the site it leads to the page that the hook makes of
the file. The pages of results are added to the navigation, so that a new one needs no change of mkdocs.yml.
"""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

sys.path.insert(0, str(Path(__file__).parent))
from experiments_page import GROUPS, read_all

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


def on_config(config: Any) -> Any:
    """Add the pages of results to the navigation."""
    results = next(entry["Results"] for entry in config.nav if "Results" in entry)
    there = {page for entry in results for page in entry.values()}
    index = next(n for n, entry in enumerate(results) if PAGES["EXPERIMENTS.md"] in entry.values())
    results[index + 1 : index + 1] = groups_of_results(there)
    return config


def groups_of_results(there: set[str]) -> list[dict[str, list[str]]]:
    """Return heading → pages of each group of results, without those that are `there` and the engineering logs."""
    found = [result for result in read_all() if not result.is_log]
    pages = {
        heading: [result.at.removeprefix("docs/") for result in found if result.fields["group"] == group]
        for group, heading in GROUPS.items()
    }
    pages = {heading: [page for page in own if page not in there] for heading, own in pages.items()}
    return [{heading: own} for heading, own in pages.items() if own]


def on_files(files: Any, config: Any) -> Any:
    """Add the pages."""
    for name, page in PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=at_home(text)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, **kwargs: Any) -> str:
    """Lead links to files at the root to their pages, and those to results to the repository."""
    return led(markdown, page.file.src_uri, config.repo_url)


def at_home(text: str) -> str:
    """Return a text of the root with links as in docs/."""

    def home(found: re.Match[str]) -> str:
        path = found[1]
        if path == "README.md":
            return "index.md"
        return path.removeprefix("docs/") if path.startswith("docs/") else PAGES.get(path, path)

    return LINK.sub(home, text)


def led(text: str, page: str, repository: str) -> str:
    """Return the text of a page of docs/ with links that work on the site.

    Links to the root's files lead to their pages, and those to files in lab/ to the repository, which has them.
    """
    folder = posixpath.dirname(page)

    def lead(found: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join("docs", folder, found[1]))
        if path.startswith("lab/"):
            return f"{repository.rstrip('/')}/blob/main/{path}"
        return posixpath.relpath(PAGES[path], folder or ".") if path in PAGES else found[1]

    return LINK.sub(lead, text)
