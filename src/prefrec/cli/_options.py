"""Options that verbs share, options made from the sections of a recipe, and JSON output."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import wraps
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin

import typer
from pydantic import BaseModel, ValidationError, create_model
from pydantic.fields import FieldInfo

from prefrec.data.store import PROTOCOL
from prefrec.settings import config_error

Section = TypeVar("Section", bound=BaseModel)
FieldPath = tuple[str, ...]
"""The parameter of a verb, and the names of nested fields that lead to a value."""

OWN = "section"
"""The parameter with a verb's main section; its options have no prefix."""
SHOWN = 12
"""Arguments and options of a verb that `--help` shows."""
RECIPE_ONLY = ("--model.answers", "--model.items", "--start", "--miner", "--reference")
"""Fields that need other parts of a recipe, and therefore are not options."""

Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Random seed.")]
DataFolder = Annotated[
    Path, typer.Argument(help="Folder written by `prefrec prepare`, or a run.", callback=lambda path: _data_in(path))
]
RunFolder = Annotated[Path, typer.Argument(help="Folder written by `prefrec run`, such as runs/demo.")]
RunRanker = Annotated[str | None, typer.Option(help="Ranker of the run, such as s-dpo. Default: the best.")]
RunOut = Annotated[Path | None, typer.Option("--out", help="Folder of the run. Default: runs/NAME.")]
Override = Annotated[list[str] | None, typer.Option("--set", help="Override a field: FIELD=VALUE. Repeatable.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _data_in(folder: Path) -> Path:
    """Return the prepared data of a run, or else the folder itself."""
    return folder / "data" if (folder / "data" / PROTOCOL).is_file() else folder


def print_json(value: Any) -> None:
    """Print JSON to standard output."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def fill(section: type[Section], **values: Any) -> Section:
    """Return the section with these values; raise ConfigError if a value is wrong."""
    try:
        return section.model_validate(values)
    except ValidationError as e:
        raise config_error(e) from e


def option(*fields: str) -> str:
    """Return the name of the option that sets a field: `--max-length`, or `--model.max-length`."""
    return f"--{'.'.join(fields).replace('_', '-')}"


def from_sections(verb: Callable[..., None]) -> Callable[..., None]:
    """Replace each parameter of a verb that is a section by one option per field.

    Options are named as in a recipe (`--model.max-length`), without prefix for the parameter `section` (`--rows`).
    `--help` shows `SHOWN` of them, `--help-all` all. The value `none` means None if the field allows it. Sections
    check all values.
    """
    parameters = inspect.signature(verb, eval_str=True).parameters
    sections = {name: p.annotation for name, p in parameters.items() if _is_section(p.annotation)}
    fields = {path: field for name, section in sections.items() for path, field, _ in _fields(section, (name,))}
    types: Any = {name: (section, ...) for name, section in sections.items()}
    together = create_model(verb.__name__, **types)

    def option_of(loc: tuple[Any, ...]) -> str:
        """Return the option of the field at or around `loc`, or "" for a whole section."""
        return next((_option_of(loc[:n]) for n in range(len(loc), 0, -1) if loc[:n] in fields), "")

    @wraps(verb)
    def filled(context: typer.Context, **values: Any) -> None:
        values.pop("help_all", None)
        raw: dict[str, Any] = {name: {} for name in sections}
        for path, field in fields.items():
            parameter = "__".join(path)
            value = values.pop(parameter)
            source = context.get_parameter_source(parameter)
            # Do not pass defaults, so that the section knows which fields were set.
            if source and source.name != "DEFAULT":
                inner = raw
                for step in path[:-1]:
                    inner = inner.setdefault(step, {})
                inner[path[-1]] = _value(field, value)
        try:
            checked = together.model_validate(raw)
        except ValidationError as e:
            raise config_error(e, option_of) from e
        verb(**values, **dict(checked))

    keyword = inspect.Parameter.KEYWORD_ONLY
    # Fields of the main section first.
    ranked = sorted(fields, key=lambda path: path[:-1] != (OWN,))
    shown = ranked[: max(0, SHOWN - len(parameters) + len(sections))]
    options = [inspect.Parameter("context", keyword, annotation=typer.Context)]
    for name, parameter in parameters.items():
        if name in sections:
            described = _fields(sections[name], (name,))
            options += [_parameter(*d, hidden=d[0] not in shown) for d in described]
        else:
            options.append(parameter.replace(kind=keyword))
    if len(shown) < len(fields):
        text = f"Show all {len(options) - 1} options and arguments."
        help_all = typer.Option("--help-all", is_eager=True, callback=_show_all, help=text)
        options.append(inspect.Parameter("help_all", keyword, default=False, annotation=Annotated[bool, help_all]))
    # typer reads these two attributes.
    filled.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    filled.__annotations__ = {p.name: p.annotation for p in options}
    return filled


def _show_all(context: typer.Context, given: bool) -> None:
    """Print the help with the hidden options, and exit."""
    if given:
        for option in context.command.params:
            cast(Any, option).hidden = False
        typer.echo(context.get_help())
        raise typer.Exit


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _fields(section: type[BaseModel], path: FieldPath) -> Iterator[tuple[FieldPath, FieldInfo, type[BaseModel]]]:
    """Yield path, field and section of every field of a section and its nested sections."""
    for name, field in section.model_fields.items():
        inner = (*path, name)
        if _option_of(inner) in RECIPE_ONLY:
            continue
        if _is_section(field.annotation):
            yield from _fields(field.annotation, inner)  # type: ignore[arg-type]
        else:
            yield inner, field, section


def _option_of(path: FieldPath) -> str:
    return option(*path[path[0] == OWN :])


def _parameter(path: FieldPath, field: FieldInfo, section: type[BaseModel], *, hidden: bool) -> inspect.Parameter:
    """Return the parameter from which typer makes a field's option; each other section has its own help panel."""
    kind = _kind(field)
    name = _option_of(path)
    default = field.get_default(call_default_factory=True)
    panel = None if path[:-1] == (OWN,) else (section.__doc__ or "").partition("\n")[0].rstrip(".")
    annotation: Any
    if kind is bool:
        annotation = bool
        names, metavar = f"{name}/--no-{name[2:]}", None
    else:
        # The section converts and checks the text.
        is_many = get_origin(kind) in (list, dict)
        annotation = list[str] | None if is_many else str | None
        names, metavar = name, _metavar(kind)
        if default is not None:
            default = [str(value) for value in default] if is_many else str(default)
    typed = typer.Option(names, help=field.description, metavar=metavar, rich_help_panel=panel, hidden=hidden)
    keyword = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter("__".join(path), keyword, default=default, annotation=Annotated[annotation, typed])


def _kind(field: FieldInfo) -> Any:
    """Return the type of a field without None; of several types the last, which accepts text."""
    if get_origin(field.annotation) not in (Union, UnionType):
        return field.annotation
    kind = [kind for kind in get_args(field.annotation) if kind is not NoneType][-1]
    return kind.__origin__ if get_origin(kind) is Annotated else kind  # StrictBool is an annotated bool


def _metavar(kind: Any) -> str:
    origin = getattr(kind, "__origin__", kind)
    if origin is Literal:
        return f"[{'|'.join(get_args(kind))}]"
    if origin in (list, tuple):
        return _metavar(get_args(kind)[0])
    if origin is dict:
        return "KEY=KEY=VALUE" if _is_nested(kind) else "KEY=VALUE"
    return f"<{origin.__name__.lower()}>"


def _is_nested(kind: Any) -> bool:
    return get_origin(get_args(kind)[1]) is dict


def _value(field: FieldInfo, given: Any) -> Any:
    """Return a field's value for the text on the command line."""
    kind = _kind(field)
    if get_origin(kind) is dict and _is_nested(kind):
        nested: dict[str, dict[str, float | str]] = {}
        for text in given:
            outer, _, pair = text.partition("=")
            inner, _, value = pair.rpartition("=")  # a value of the catalogue may contain the sign
            nested.setdefault(outer, {})[inner] = _number(value, float)
        return nested
    if get_origin(kind) is dict:
        return dict(pair.partition("=")[::2] for pair in given)
    if given == "none" and NoneType in get_args(field.annotation):
        return None
    # Fields of requests refuse numbers that are texts.
    return _number(given, kind) if kind in (int, float) else given


def _number(text: str, kind: type[float]) -> float | str:
    """Return a text as a number; unchanged if it is none, so that the section refuses it."""
    with suppress(ValueError):
        return kind(text)
    return text
