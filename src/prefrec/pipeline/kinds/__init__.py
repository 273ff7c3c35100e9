"""Kinds of rankers by name: built-in ones, and those that other packages add by entry points."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from prefrec.errors import ConfigError, did_you_mean
from prefrec.rankers.config import settings_error

if TYPE_CHECKING:
    from prefrec.data import PreparedData
    from prefrec.pipeline.entry import Entry, RunInputs
    from prefrec.pipeline.recipe import Recipe

GROUP = "prefrec.rankers"
"""Group of entry points that add kinds: NAME = "module:KIND", where KIND is a `RankerKind`."""


@dataclass(frozen=True)
class RankerKind:
    """A kind of ranker that a recipe can name.

    Attributes:
        config: class of its entries in a recipe, a `prefrec.rankers.config.RankerConfig`.
        entry: plans a ranker, given the run's inputs, the configuration, the ranker's folder, and name → entry of
            the rankers that it needs. It loads and trains nothing; `make` and `load` of the entry do.
        needs: configuration → field → names of the earlier rankers and baselines that the ranker depends on.
        queries: whether the ranker queries these when it scores.
        served: whether `prefrec serve` serves it by default.
        trains: whether the configuration is a `TrainSection`, for training the recipe's language model.
        check_recipe: raises ValueError if the recipe or the earlier rankers lack what a configuration needs.
        check_data: raises ConfigError if the data lack what a configuration needs. Called before any training.
        refit: plans the ranker that has also learnt validation interactions, for test examples, serving and exports.
            Its arguments are those of `entry`, with the longer log (`RunInputs.refit`), a folder of its own and refit
            rankers, and then the entry that has learnt the training log alone. What validation chose is read from
            that one's folder: the data here have no validation examples. None: `entry` does it.
    """

    config: type[BaseModel]
    entry: Callable[[RunInputs, Any, Path, Mapping[str, Entry]], Entry]
    needs: Callable[[Any], Mapping[str, Sequence[str]]] = lambda config: {}
    queries: bool = False
    served: bool = False
    trains: bool = False
    check_recipe: Callable[[Any, Recipe, Sequence[str]], None] = lambda config, recipe, before: None
    check_data: Callable[[Any, PreparedData], None] = lambda config, data: None
    refit: Callable[[RunInputs, Any, Path, Mapping[str, Entry], Entry], Entry] | None = None


KINDS: dict[str, RankerKind] = {}
"""Name → kind, of the kinds loaded so far."""
_OURS = {
    "blend": EntryPoint("blend", f"{__name__}.blend:KIND", GROUP),
    "title-tower": EntryPoint("title-tower", f"{__name__}.title_tower:KIND", GROUP),
}


def kind_names() -> list[str]:
    """Return the names of all installed kinds."""
    return sorted({*KINDS, *_entry_points()})


def ranker_kind(name: str) -> RankerKind:
    """Return the kind with this name; raise ConfigError if no installed package has it."""
    if name not in KINDS:
        if name not in _entry_points():
            raise ConfigError(
                f"no installed package makes rankers of kind {name!r}; most come with prefrec-systems: "
                "`pip install ./systems` in a clone"
            )
        KINDS[name] = _entry_points()[name].load()
    return KINDS[name]


def ranker_config(raw: Any) -> BaseModel:
    """Return the configuration of an entry of `rankers`; raise ValueError if its `kind` or a field is unknown."""
    kind = raw.get("kind") if isinstance(raw, dict) else getattr(raw, "kind", None)
    if kind not in kind_names():
        more = "" if len(kind_names()) > len(_OURS) else "; `pip install ./systems` in a clone brings more"
        near = did_you_mean(kind, kind_names())
        raise ValueError(f"each entry needs a kind, one of {', '.join(kind_names())}; got {kind!r}{near or more}")
    config = ranker_kind(kind).config
    try:
        return config.model_validate(raw)
    except ValidationError as e:
        raise ValueError(f"{kind}: {settings_error(e, config)}") from e


@cache
def _entry_points() -> dict[str, EntryPoint]:
    return {e.name: e for e in entry_points(group=GROUP)} | _OURS
