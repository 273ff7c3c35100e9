"""Prompt templates: jinja2 files with a history and candidates, which end where the answer begins."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, ClassVar, Self

import jinja2
import jinja2.meta
import polars as pl
from jinja2.sandbox import ImmutableSandboxedEnvironment

from prefrec.data.titles import UNSAFE
from prefrec.errors import TemplateError, did_you_mean
from prefrec.files import read_whole
from prefrec.strict_yaml import read_yaml

DOMAINS = ("movies", "books", "music", "generic")
_FOLDER = files("prefrec.prompts") / "templates"
# transformers renders chat templates in the same sandbox. It protects Python, and limits neither time nor memory.
_environment = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined
)


@dataclass(frozen=True)
class PromptTemplate:
    """A prompt template with the placeholders `history` (titles, oldest first) and `candidates` (titles).

    The rendered text is the entire prompt. If it ends with white space, such as a new line, the answer follows
    directly, otherwise after one space. Creation raises TemplateError if the source is not a usable template.
    """

    name: str
    source: str
    placeholders: ClassVar[tuple[str, ...]] = ("history", "candidates")

    def __post_init__(self) -> None:
        wanted = "the placeholders " + " and ".join(f"{{{{ {p} }}}}" for p in self.placeholders)
        if not self.source.strip():
            raise TemplateError(f"template {self.name}: the file is empty")
        try:
            used = jinja2.meta.find_undeclared_variables(_environment.parse(self.source))
        except jinja2.TemplateSyntaxError as e:
            raise TemplateError(f"template {self.name}, line {e.lineno}: {e.message}") from e
        except RecursionError as e:
            raise TemplateError(f"template {self.name}: nested too deeply; simplify it") from e
        missing = [p for p in self.placeholders if p not in used]
        if missing:
            raise TemplateError(f"template {self.name}: missing {' and '.join(missing)}; expected {wanted}")
        unknown = sorted(used - set(self.placeholders))
        if unknown:
            raise TemplateError(f"template {self.name}: unknown placeholder {unknown[0]!r}; expected {wanted}")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a template from a file. Raise TemplateError if it is not text, or not a usable template."""
        try:
            return cls(str(path), read_whole(path))
        except UnicodeDecodeError as e:
            raise TemplateError(f"template {path}: not UTF-8 text ({e}); save it as UTF-8") from e

    @cached_property
    def _template(self) -> jinja2.Template:
        return _environment.from_string(self.source)

    def render(self, history: Sequence[str], candidates: Sequence[str]) -> str:
        """Return the prompt text for these titles."""
        return self._fill(history=list(history), candidates=list(candidates))

    @property
    def shows_candidates(self) -> bool:
        """Whether the prompt lists the candidates."""
        return self.render([""], ["candidate"]) != self.render([""], [])

    @property
    def portable(self) -> str:
        """The source in a form that renders the same in every jinja2 environment, with `trim_blocks` or without."""
        out, before, trims = "", "", ("block_end", "comment_end", "raw_end")
        for _, kind, text in _environment.lex(self.source):  # end tokens include the white space that they remove
            if text.startswith("\n") and before in trims and out[-3] != "+":
                out = f"{out[:-2]}+{out[-2:]}"
            out += text.rstrip() if kind in trims else text
            before = kind
        return out[:-1] + '{{ "\\n" }}' if out.endswith("\n") else out

    def _fill(self, **values: Any) -> str:
        try:
            return self._template.render(**values)
        except Exception as e:  # a template may raise anything
            raise TemplateError(f"template {self.name}: {e}") from e


def load_template(name: str, *, domain: str = "generic") -> PromptTemplate:
    """Load a built-in template by name, or read a template from a file.

    Args:
        name: a phrasing (`1`), a domain with a phrasing (`movies/2`), or the path of a jinja2 file.
        domain: domain of a phrasing without one.

    Raises:
        TemplateError: there is no such template, or it is not usable.
    """
    relative = name if "/" in name else f"{domain}/{name}"
    known = template_names()
    if relative in known:
        domain, phrasing = relative.split("/")
        return PromptTemplate(relative, in_words(_FOLDER / f"{phrasing}.jinja2", domain))
    if not Path(name).is_file():
        near = did_you_mean(relative, known)
        raise TemplateError(
            f"no template {name!r}: expected the path of a jinja2 file or one of {', '.join(known)}{near}"
        )
    return PromptTemplate.read(Path(name))


def template_names() -> list[str]:
    """Return the names of the built-in templates, as `domain/phrasing`."""
    phrasings = [p.name.removesuffix(".jinja2") for p in _FOLDER.iterdir() if p.name.endswith(".jinja2")]
    return sorted(f"{domain}/{phrasing}" for domain in DOMAINS for phrasing in phrasings)


def in_words(file: Traversable, domain: str) -> str:
    """Return the text of a template file, with marks such as `[item]` replaced by the words of a domain."""
    return re.sub(r"\[(\w+)\]", lambda mark: _words()[domain][mark[1]], file.read_text(encoding="utf-8"))


@cache
def _words() -> dict[str, dict[str, str]]:
    return read_yaml((_FOLDER / "words.yaml").read_text(encoding="utf-8"))


def item_texts(source: str, items: pl.DataFrame) -> list[str]:
    """Render a jinja2 template, whose placeholders are columns of `items`, for each item.

    Whole numbers have no decimal point, and missing values are empty. Raise TemplateError if the template cannot be
    parsed or rendered, or names a column that does not exist.
    """
    try:
        names = jinja2.meta.find_undeclared_variables(_environment.parse(source))
        template = _environment.overlay(finalize=lambda value: "" if value is None else value).from_string(source)
        if not (unknown := sorted(names - {*items.columns})):
            rows = items.select(sorted(names)).iter_rows(named=True)
            return [template.render({name: _plain(value) for name, value in row.items()}) for row in rows]
    except Exception as e:  # a template may raise anything
        raise TemplateError(f"model.item_text {source!r}: {e}") from e
    raise TemplateError(
        f"model.item_text: no column {unknown[0]!r} in the catalogue, which has {', '.join(items.columns)}: "
        "use one of these, or add the column to the catalogue and prepare the data again"
    )


def _plain(value: Any) -> Any:
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, float) and value.is_integer():  # numbers from text files are floating point
        return int(value)
    return re.sub(UNSAFE, " ", value) if isinstance(value, str) else value
