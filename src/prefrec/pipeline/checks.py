"""Checks before any training: whether the data have the examples that each stage needs."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec

from prefrec.console import warn
from prefrec.data import PreparedData
from prefrec.data.update import read_by_sft
from prefrec.errors import NO_EXAMPLES, ConfigError
from prefrec.prompts import load_template
from prefrec.recipe import Recipe
from prefrec.sections import SFT, LoraSection, ModelSection
from prefrec.stages.item_texts import shows_candidates
from prefrec.stages.negatives import check_room
from prefrec.stages.training_rows import alignment_pool
from prefrec.training.defaults import LEAST
from prefrec.training.section import TrainSection


def trained_sections(recipe: Recipe) -> dict[str, TrainSection]:
    """Return dotted name → section, of the sections that train a language model."""
    sections: dict[str, TrainSection] = {SFT: recipe.sft} if recipe.sft else {}
    sections |= {f"align.{section.name}": section for section in recipe.align}
    for ranker in recipe.rankers:
        if isinstance(ranker, TrainSection):
            sections[f"rankers.{ranker.name}"] = ranker
    return sections


def check_rows(recipe: Recipe, data: PreparedData) -> None:
    """Raise ConfigError that names the stage if the data lack what it needs."""
    counts = available_rows(recipe, data)
    for name, section in trained_sections(recipe).items():
        check_section(name, section, counts[name])
    for align in recipe.align:
        check_room(align, data)
    for ranker in recipe.rankers:
        ranker.check_data(data)


def available_rows(recipe: Recipe, data: PreparedData) -> dict[str, int]:
    """Return, per stage of `trained_sections`, the number of examples that it chooses from."""
    counts = {f"align.{a.name}": len(alignment_pool(data, a, recipe.seed)) for a in recipe.align}
    for name, section in trained_sections(recipe).items():
        if name not in counts:
            counts[name] = section.available_rows(data, recipe.seed)
    if recipe.sft and not shows_candidates(recipe.model, data.domain):  # it learns from whole histories
        lengths = read_by_sft(data.train_interactions, recipe.sft.titles).group_by("user_id").len()["len"]
        counts[SFT] = int((lengths >= LEAST).sum())
    return counts


def check_titles(data: PreparedData, model: ModelSection) -> None:
    """Raise TokenizerError if a title does not fit into `max_length` even without history and candidates."""
    from prefrec.stages.encoders import prompt_encoder  # here, because it needs torch

    template = load_template(model.templates[0], domain=data.domain)
    prompt_encoder(model, data.catalogue).encode(template, (), (), data.catalogue.titles_of(data.catalogue.ids))


def check_section(name: str, section: TrainSection, count: int) -> None:
    """Raise ConfigError if a stage's tracker is missing, or none of its `count` examples are left."""
    if section.report_to != "none" and find_spec(section.report_to) is None:
        raise ConfigError(f"{name}.report_to: pip install {section.report_to}, or remove report_to")
    latest = section.model_dump().get("latest_per_user")
    per_user = f" ({name}.latest_per_user: {latest})" if latest else ""
    if not count:
        raise ConfigError(f"{name}.rows: the training data have no examples{per_user}; {NO_EXAMPLES}")
    if count <= section.skip_rows:
        raise ConfigError(
            f"{name}.skip_rows: {section.skip_rows}, but there are only {count} examples{per_user}: lower it"
        )


def warn_of_idle_dropout(lora: LoraSection | None, sections: Mapping[str, TrainSection]) -> None:
    """Warn if the adapter has dropout but a stage turns all dropout off."""
    idle = [name for name, section in sections.items() if section.disable_dropout]
    if lora and lora.dropout and idle:
        warn(
            f"lora.dropout: {lora.dropout:g} has no effect in {', '.join(idle)}, where dropout is turned off: set "
            "disable_dropout: false there, or remove lora.dropout"
        )


def warn_of_missing_layers(model: ModelSection, domain: str) -> None:
    """Warn if layers are left out and the prompt shows candidates, because such models hardly read the list."""
    if model.layers is not None and shows_candidates(model, domain):
        warn(
            f"model.layers: {model.layers} leaves layers out, and the template {model.templates[0]} shows "
            "candidates: the first 12 layers of SmolLM2-135M hardly read that list, even after SFT; remove "
            "model.layers, or choose a template without candidates (model.templates: [history])"
        )
