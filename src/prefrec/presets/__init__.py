"""Presets: recipes without `name` and `data`."""

from __future__ import annotations

from importlib.resources import files
from typing import Any, Literal, cast, get_args

from prefrec.errors import ConfigError, did_you_mean
from prefrec.strict_yaml import read_yaml

PresetName = Literal["baselines", "fast", "titles", "paper"]


def preset_text(name: PresetName) -> str:
    """Return a preset as YAML with comments: a recipe without `name` and `data`.

    Raise ConfigError if there is no preset of this name.
    """
    if name not in get_args(PresetName):
        names = get_args(PresetName)
        raise ConfigError(f"preset {name!r}: expected one of {', '.join(names)}{did_you_mean(name, names)}")
    return (files(__package__) / f"{name}.yaml").read_text(encoding="utf-8")


def preset(name: PresetName) -> dict[str, Any]:
    """Return the raw values of a preset, for `prefrec.recipe.checked_recipe`."""
    return cast(dict[str, Any], read_yaml(preset_text(name)))
