"""Options that verbs share, values of sections, and JSON output."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

import cyclopts
from cyclopts import Parameter, Token
from cyclopts.validators import Number
from pydantic import BaseModel, ValidationError

from prefrec.data.store import PROTOCOL
from prefrec.errors import ConfigError
from prefrec.settings import config_error

Section = TypeVar("Section", bound=BaseModel)
Own = Annotated[Section, Parameter(name="*", negative_bool="no-")]
"""A verb's main section: its options have no prefix, as in `--rows`. Those of another one have: `--model.dtype`."""


def untouched(section: type[Section]) -> Section:
    """Return a section without set fields, and let options of its mappings be repeated: `--boost brand=Acme=2`."""
    for field in section.model_fields.values():
        for kind in (field.annotation, *get_args(field.annotation)):
            if get_origin(kind) is dict:
                is_nested = get_origin(get_args(kind)[1]) is dict
                form = "COLUMN=VALUE=FACTOR" if is_nested else "KEY=VALUE"
                field.metadata.append(Parameter(accepts_keys=False, n_tokens=-1, metavar=form))
                break  # the values of a nested mapping are mappings, too
    return section()


def section_error(error: cyclopts.ValidationError) -> ConfigError:
    """Return the error about wrong values of a section, which names their options."""
    cause, section = error.__cause__, error.argument
    assert isinstance(cause, ValidationError)
    assert section is not None
    options = {field.keys: field.name for field in section.children_recursive}

    def option_of(loc: tuple[Any, ...]) -> str:
        return next((options[loc[:n]] for n in range(len(loc), 0, -1) if loc[:n] in options), "")

    return config_error(cause, option_of)


def data_in(kind: Any, given: tuple[Token, ...]) -> Path:
    """Return the prepared data of a run, or else the folder itself."""
    folder = Path(given[0].value)
    return folder / "data" if (folder / "data" / PROTOCOL).is_file() else folder


Seed = Annotated[int, Parameter(help="Random seed.", validator=Number(gte=0, lt=2**32))]
DataFolder = Annotated[Path, Parameter(help="Folder written by `prefrec prepare`, or a run.", converter=data_in)]
RunFolder = Annotated[Path, Parameter(help="Folder written by `prefrec run`, such as runs/demo.")]
RunRanker = Annotated[str | None, Parameter(help="Ranker of the run, such as s-dpo. Default: the best.")]
RunOut = Annotated[Path | None, Parameter(help="Folder of the run. Default: runs/NAME.")]
Override = Annotated[list[str] | None, Parameter("--set", help="Override a field: FIELD=VALUE. Repeatable.")]
Texts = Annotated[list[str] | None, Parameter(allow_leading_hyphen=True)]  # such as the title -30-
History = Annotated[Texts, Parameter(help="Title or item id, oldest first. Repeatable.")]
AsJson = Annotated[bool, Parameter("--json", help="Print JSON.")]


def print_json(value: Any) -> None:
    """Print JSON to standard output, in its encoding."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value, indent=2)
    print(text)


def fill(section: type[Section], **values: Any) -> Section:
    """Return the section with these values; raise ConfigError if a value is wrong."""
    try:
        return section.model_validate(values)
    except ValidationError as e:
        raise config_error(e) from e
