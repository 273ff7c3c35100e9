"""Stages of a run. A recipe's `rankers` name them by `kind`; other packages add theirs by entry points."""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from prefrec.errors import ConfigError, did_you_mean
from prefrec.rankers.config import RankerConfig
from prefrec.settings import settings_error

if TYPE_CHECKING:
    from prefrec.stages.base import RankerStage

GROUP = "prefrec.rankers"
"""Group of entry points that add kinds of rankers: KIND = "module:CLASS", where CLASS is a `RankerStage`."""
STAGES: dict[str, type[RankerStage]] = {}
"""Kind → class, of the classes loaded so far. A script registers its own here."""
_OURS = {
    "blend": EntryPoint("blend", f"{__name__}.blend:BlendStage", GROUP),
    "title-tower": EntryPoint("title-tower", f"{__name__}.title_tower:TitleTowerStage", GROUP),
}


def kind_names() -> list[str]:
    """Return the names of all installed kinds of rankers."""
    return sorted({*STAGES, *_entry_points()})


def stage_class(kind: str) -> type[RankerStage]:
    """Return the class of this kind of rankers; raise ConfigError if no installed package has it."""
    if kind not in STAGES:
        if kind not in _entry_points():
            raise ConfigError(
                f"no installed package makes rankers of kind {kind!r}; most come with prefrec-systems: "
                "`pip install ./systems` in a clone"
            )
        STAGES[kind] = _entry_points()[kind].load()
    return STAGES[kind]


def ranker_config(raw: Any) -> RankerConfig:
    """Return the configuration of an entry of `rankers`; raise ValueError if its `kind` or a field is unknown."""
    kind = raw.get("kind") if isinstance(raw, dict) else getattr(raw, "kind", None)
    if kind not in kind_names():
        more = "" if len(kind_names()) > len(_OURS) else "; `pip install ./systems` in a clone brings more"
        near = did_you_mean(kind, kind_names())
        raise ValueError(f"each entry needs a kind, one of {', '.join(kind_names())}; got {kind!r}{near or more}")
    config = stage_class(kind).Config
    try:
        return config.model_validate(raw)
    except ValidationError as e:
        raise ValueError(f"{kind}: {settings_error(e, config)}") from e


@cache
def _entry_points() -> dict[str, EntryPoint]:
    return {e.name: e for e in entry_points(group=GROUP)} | _OURS
