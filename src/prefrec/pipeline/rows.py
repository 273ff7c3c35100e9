"""Whether the data have the rows that training is to take, looked at before any of it begins."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prefrec.console import warn
from prefrec.data import PreparedData
from prefrec.errors import ConfigError
from prefrec.pipeline.encoders import shows_candidates
from prefrec.pipeline.kinds import ranker_kind
from prefrec.pipeline.recipe import SFT, LoraSection, ModelSection, Recipe, RowsSection, SFTSection
from prefrec.pipeline.train import rows_to_choose_from
from prefrec.training.section import TrainSection
from prefrec.training.sequences import LEAST


def trained_sections(recipe: Recipe) -> dict[str, TrainSection]:
    """Every section of a recipe that trains a language model, by its place."""
    found: dict[str, TrainSection] = {SFT: recipe.sft} if recipe.sft else {}
    found |= {f"align.{section.name}": section for section in recipe.align}
    for ranker in recipe.rankers:
        found |= {f"rankers.{ranker.name}": ranker} if isinstance(ranker, TrainSection) else {}
    return found


def check_rows(recipe: Recipe, data: PreparedData) -> None:
    """See that every stage of a recipe finds the rows that it needs.

    Raises:
        ConfigError: one does not; the message names it.
    """
    for place, section in trained_sections(recipe).items():
        check_section(section, data, recipe.model, recipe.seed, f"{place}.{{}}".format)
    for ranker in recipe.rankers:
        ranker_kind(ranker.kind).check_data(ranker, data)


def check_section(
    section: TrainSection, data: PreparedData, model: ModelSection, seed: int, named: Callable[[str], str]
) -> None:
    """See that one stage finds rows to train on.

    Args:
        section: of the stage.
        data: prepared rows.
        model: whose template tells histories from questions.
        seed: of draws.
        named: what the user calls a field of the section.

    Raises:
        ConfigError: it does not.
    """
    found = _rows(section, data, model, seed)
    if found > section.skip_rows:
        return
    latest = section.latest_per_user if isinstance(section, RowsSection) else None
    of_each = f" ({named('latest_per_user')}: {latest})" if latest else ""
    if section.skip_rows and found:
        raise ConfigError(
            f"{named('skip_rows')}: {section.skip_rows}, but there are only {found} rows{of_each}: lower it"
        )
    raise ConfigError(f"{named('rows')}: the training data has no rows{of_each}")


def rows_taken(section: TrainSection, data: PreparedData, model: ModelSection, seed: int) -> int:
    """Return the number of rows that a stage takes: ranking questions, or users' histories."""
    found = max(0, _rows(section, data, model, seed) - section.skip_rows)
    return found if section.rows is None else min(found, section.rows)


def warn_of_idle_dropout(lora: LoraSection | None, sections: Mapping[str, TrainSection]) -> None:
    """Warn where the adapter is to have dropout, and stages switch all dropout off."""
    idle = [place for place, section in sections.items() if section.disable_dropout]
    if lora and lora.dropout and idle:
        warn(
            f"lora.dropout: {lora.dropout:g} has no effect in {', '.join(idle)}, where dropout is switched "
            "off: set disable_dropout: false there, or leave lora.dropout out"
        )


def _rows(section: TrainSection, data: PreparedData, model: ModelSection, seed: int) -> int:
    """Return the number of rows that a stage chooses from."""
    if isinstance(section, SFTSection) and not shows_candidates(model, data.domain):
        lengths = data.train_interactions.group_by("user_id").len()["len"]
        return int((lengths >= LEAST).sum())
    if isinstance(section, RowsSection):
        return len(rows_to_choose_from(data, section))
    return section.available_rows(data, seed)
