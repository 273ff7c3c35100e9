"""The jinja2 environment of the pages that are written: data is escaped, and what is missing is an error."""

from __future__ import annotations

import jinja2


def page_environment(*packages: str) -> jinja2.Environment:
    """HTML templates that lie in `packages`, those of the first one first."""
    return jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(package, ".") for package in packages]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
