"""Options of a verb, made from the sections of a recipe that it takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Container, Iterator
from functools import partial, wraps
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import typer
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from prefrec.data import config_error

Section = TypeVar("Section", bound=BaseModel)
Place = tuple[str, ...]
"""The parameter of a verb, and the fields that lead from its section to a value."""

OWN = "section"
"""The parameter that holds a verb's own section, whose name is left out of its options."""
RECIPE_ONLY = ("--model.answers", "--model.items", "--start")
"""Fields that need other parts of a recipe, and are not options."""
_KEYWORD = inspect.Parameter.KEYWORD_ONLY

Seed = Annotated[int, typer.Option(min=0, help="Of samples, order and initial weights.")]


def fill(section: type[Section], **values: Any) -> Section:
    """Return the section with these values; a wrong one is a `ConfigError` that names it."""
    try:
        return section.model_validate(values)
    except ValidationError as e:
        raise config_error(e) from e


def option(*fields: str) -> str:
    """Return the name of the option that sets a field: `--max-length`, or `--model.max-length`."""
    return f"--{'.'.join(fields).replace('_', '-')}"


def from_sections(verb: Callable[..., None]) -> Callable[..., None]:
    """Replace each parameter of a verb that is a section by an option per field.

    An option has the names of the section and the field, as in a recipe: `--model.max-length`. The section in the
    parameter `section` goes without its name: `--rows`, `--candidates.size`. The value `none` is None where the
    field takes it. All values are checked by the section alone.
    """
    parameters = inspect.signature(verb, eval_str=True).parameters
    sections = {name: p.annotation for name, p in parameters.items() if _is_section(p.annotation)}
    fields = {place: field for name, section in sections.items() for place, field, _ in _fields(section, (name,))}

    @wraps(verb)
    def filled(context: typer.Context, **values: Any) -> None:
        raw: dict[str, Any] = {name: {} for name in sections}
        for place, field in fields.items():
            value, source = values.pop("__".join(place)), context.get_parameter_source("__".join(place))
            if source and source.name != "DEFAULT":
                inner = raw
                for step in place[:-1]:
                    inner = inner.setdefault(step, {})
                inner[place[-1]] = _value(field, value)
        for name, section in sections.items():
            try:
                values[name] = section.model_validate(raw[name])
            except ValidationError as e:
                raise config_error(e, partial(_named, name, fields)) from e
        verb(**values, **({"context": context} if "context" in parameters else {}))

    made = [inspect.Parameter("context", _KEYWORD, annotation=typer.Context)]
    for name, parameter in parameters.items():
        if name in sections:
            made += [_parameter(*of) for of in _fields(sections[name], (name,))]
        elif name != "context":
            made.append(parameter.replace(kind=_KEYWORD))
    filled.__signature__ = inspect.Signature(made)  # type: ignore[attr-defined]
    filled.__annotations__ = {p.name: p.annotation for p in made}
    return filled


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _fields(section: type[BaseModel], place: Place) -> Iterator[tuple[Place, FieldInfo, type[BaseModel]]]:
    """Yield place, field and section of every value of a section and of the sections in it."""
    for name, field in section.model_fields.items():
        inner = (*place, name)
        if _option_at(inner) in RECIPE_ONLY:
            continue
        if _is_section(field.annotation):
            yield from _fields(field.annotation, inner)  # type: ignore[arg-type]
        else:
            yield inner, field, section


def _option_at(place: Place) -> str:
    return option(*place[place[0] == OWN :])


def _named(name: str, fields: Container[Place], loc: tuple[Any, ...]) -> str:
    """Return the option of the field at a place in a section, or around it; empty for the section as a whole."""
    places = [(name, *loc[:n]) for n in range(len(loc), 0, -1)]
    return next((_option_at(place) for place in places if place in fields), "")


def _parameter(place: Place, field: FieldInfo, section: type[BaseModel]) -> inspect.Parameter:
    """Return the parameter of which typer makes the option of a field; those of other sections have a panel."""
    kind, name, default = _kind(field), _option_at(place), field.get_default(call_default_factory=True)
    names = f"{name}/--no-{name[2:]}" if kind is bool else name
    metavar = None if kind is bool else _metavar(kind)
    panel = None if place[:-1] == (OWN,) else (section.__doc__ or "").partition("\n")[0].rstrip(".")
    told = typer.Option(names, help=field.description, metavar=metavar, rich_help_panel=panel)
    annotation: Any = bool if kind is bool else list[str] | None if _is_many(kind) else str | None
    if kind is not bool and default is not None:
        default = [str(one) for one in default] if _is_many(kind) else str(default)
    return inspect.Parameter("__".join(place), _KEYWORD, default=default, annotation=Annotated[annotation, told])


def _kind(field: FieldInfo) -> Any:
    """Return the type of a field without None; of several types the last, which takes text."""
    if get_origin(field.annotation) not in (Union, UnionType):
        return field.annotation
    return [one for one in get_args(field.annotation) if one is not NoneType][-1]


def _is_many(kind: Any) -> bool:
    return get_origin(kind) in (list, dict)


def _metavar(kind: Any) -> str:
    origin = getattr(kind, "__origin__", kind)
    if origin is Literal:
        return f"[{'|'.join(get_args(kind))}]"
    if origin is list:
        return _metavar(get_args(kind)[0])
    return "KEY=VALUE" if origin is dict else f"<{origin.__name__.lower()}>"


def _value(field: FieldInfo, given: Any) -> Any:
    """Return what the section is given for the text on the command line."""
    if get_origin(_kind(field)) is dict:
        return dict(one.partition("=")[::2] for one in given)
    return None if given == "none" and NoneType in get_args(field.annotation) else given
