"""Checks before any training: whether the data have the examples that each stage needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any, cast

from prefrec.console import warn
from prefrec.data import PreparedData
from prefrec.data.update import read_by_sft
from prefrec.errors import ConfigError
from prefrec.pipeline.encoders import prompt_encoder, shows_candidates
from prefrec.pipeline.kinds import ranker_kind
from prefrec.pipeline.negatives import check_room
from prefrec.pipeline.recipe import SFT, LoraSection, ModelSection, Recipe, SFTSection
from prefrec.pipeline.training_rows import rows_to_choose_from
from prefrec.prompts import load_template
from prefrec.training.section import RowsSection, TrainSection
from prefrec.training.sequences import LEAST


def trained_sections(recipe: Recipe) -> dict[str, TrainSection]:
    """Return dotted name → section, of the sections that train a language model."""
    sections: dict[str, TrainSection] = {SFT: recipe.sft} if recipe.sft else {}
    sections |= {f"align.{section.name}": section for section in recipe.align}
    for ranker in recipe.rankers:
        sections |= {f"rankers.{ranker.name}": cast(Any, ranker)} if ranker_kind(ranker.kind).trains else {}
    return sections


def check_rows(recipe: Recipe, data: PreparedData) -> None:
    """Raise ConfigError that names the stage if the data lack what it needs."""
    for name, section in trained_sections(recipe).items():
        check_section(section, data, recipe.model, recipe.seed, f"{name}.{{}}".format)
    for align in recipe.align:
        check_room(align, data)
    for ranker in recipe.rankers:
        ranker_kind(ranker.kind).check_data(ranker, data)


def check_titles(data: PreparedData, model: ModelSection) -> None:
    """Raise TokenizerError if a title does not fit into `max_length` even without history and candidates."""
    template = load_template(model.templates[0], domain=data.domain)
    prompt_encoder(model, data.catalogue).encode(template, (), (), data.catalogue.titles_of(data.catalogue.ids))


def check_section(
    section: TrainSection, data: PreparedData, model: ModelSection, seed: int, named: Callable[[str], str]
) -> None:
    """Raise ConfigError if a stage lacks examples or its tracker.

    Args:
        section: settings of the stage.
        data: prepared data.
        model: the language model and its prompts.
        seed: of examples made from the log.
        named: maps a field to its dotted name for the message.
    """
    if section.report_to != "none" and find_spec(section.report_to) is None:
        raise ConfigError(f"{named('report_to')}: pip install {section.report_to}, or remove report_to")
    count = available_rows(section, data, model, seed)
    if count > section.skip_rows:
        return
    latest = section.latest_per_user if isinstance(section, RowsSection) else None
    per_user = f" ({named('latest_per_user')}: {latest})" if latest else ""
    if section.skip_rows and count:
        raise ConfigError(
            f"{named('skip_rows')}: {section.skip_rows}, but there are only {count} examples{per_user}: lower it"
        )
    raise ConfigError(f"{named('rows')}: the training data have no examples{per_user}")


def warn_of_idle_dropout(lora: LoraSection | None, sections: Mapping[str, TrainSection]) -> None:
    """Warn if the adapter has dropout but a stage turns all dropout off."""
    idle = [name for name, section in sections.items() if section.disable_dropout]
    if lora and lora.dropout and idle:
        warn(
            f"lora.dropout: {lora.dropout:g} has no effect in {', '.join(idle)}, where dropout is turned off: set "
            "disable_dropout: false there, or remove lora.dropout"
        )


def available_rows(section: TrainSection, data: PreparedData, model: ModelSection, seed: int) -> int:
    """Return the number of examples that a stage chooses from: ranking questions, or users' histories."""
    if isinstance(section, SFTSection) and not shows_candidates(model, data.domain):
        lengths = read_by_sft(data.train_interactions, section.titles).group_by("user_id").len()["len"]
        return int((lengths >= LEAST).sum())
    if isinstance(section, RowsSection):
        return len(rows_to_choose_from(data, section))
    return section.available_rows(data, seed)
