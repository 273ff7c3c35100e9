"""A recipe: one YAML file with all settings of a run."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self, cast

import yaml
from pydantic import BeforeValidator, Field, SerializeAsAny, ValidationError, model_validator

from prefrec.console import say
from prefrec.errors import ConfigError, did_you_mean
from prefrec.files import read_whole
from prefrec.intake.config import PrepareConfig
from prefrec.presets import preset
from prefrec.rankers.baselines import BASELINES
from prefrec.rankers.config import NAME, RankerConfig
from prefrec.sections import (
    RANKERS,
    SEED,
    SFT,
    ZERO_SHOT,
    AlignSection,
    AnswersSection,
    EvaluateSection,
    LoraSection,
    ModelSection,
    RefitSection,
    SFTSection,
    UpdateSection,
)
from prefrec.settings import Section, settings_error
from prefrec.stages import ranker_config, stage_class
from prefrec.strict_yaml import TrapError, read_yaml


def _refit(given: Any) -> Any:
    """Return the section for `refit: true`, and None for `refit: false`."""
    return {True: {}, False: None}[given] if isinstance(given, bool) else given


class Recipe(Section):
    """All settings of a run: data, model, stages, evaluation, seed."""

    name: str = Field(pattern=NAME, description="Name of the run; its folder is runs/NAME.")
    seed: int = Field(SEED, ge=0, description="Random seed.")
    data: PrepareConfig = Field(PrepareConfig(), description="The data set, and how examples are made from it.")
    model: ModelSection = Field(ModelSection(), description="The language model and its prompts.")
    lora: LoraSection | None = Field(LoraSection(), description="The adapter. null: train all weights.")
    sft: SFTSection | None = Field(None, description="Supervised fine-tuning. Default: none.")
    align: list[AlignSection] = Field([], description="Preference alignments, in order.")
    rankers: list[Annotated[SerializeAsAny[RankerConfig], BeforeValidator(ranker_config)]] = Field(
        [], description="Further rankers, in the order in which they are trained."
    )
    evaluate: EvaluateSection = Field(EvaluateSection(), description="What to measure, and on which examples.")
    # Omitted from dumps when unset, so that results of recipes without this field stay valid.
    refit: Annotated[RefitSection | None, BeforeValidator(_refit)] = Field(
        None,
        exclude_if=lambda refit: refit is None,
        description="After all choices on validation examples, let every ranker also learn validation interactions "
        "before it answers test examples, is served, exported or updated. true: with the default settings.",
    )
    # Omitted from dumps by default, so that results of recipes without this field stay valid.
    answers: AnswersSection = Field(
        AnswersSection(),
        exclude_if=lambda answers: answers == AnswersSection(),
        description="Rules of answers by `recommend`, `serve` and exports. They change neither training nor metrics.",
    )
    update: UpdateSection | None = Field(
        None, description="Continue an earlier run with new interactions. `prefrec update` writes this section."
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        names = {"align": [a.name for a in self.align], RANKERS: [r.name for r in self.rankers]}
        used = {*BASELINES, ZERO_SHOT, SFT}
        for section in names:
            for name in names[section]:
                if name in used:
                    raise ValueError(f"{section}: the name {name!r} is used by another ranker; choose another name")
                used.add(name)
        baselines = self.evaluate.baselines
        if len(set(baselines)) < len(baselines):
            raise ValueError(f"evaluate.baselines: each baseline may be named once, got {', '.join(baselines)}")
        if not (self.lm_rankers or baselines or self.rankers):
            raise ValueError(
                "evaluate: there is no ranker to evaluate: turn zero_shot on, name baselines, or add sft or align"
            )
        for i, align in enumerate(self.align):
            self._check_alignment(align, names["align"][:i], names[RANKERS])
        if self.update and (self.sft is None or self.data.split_name == "given"):
            raise ValueError("update: needs `sft` to continue, and data without a predefined split")
        if self.refit and not self.data.learn_validation:
            raise ValueError(
                "refit: learns validation interactions, but `data.learn_validation: false` says that nothing does; "
                "set `refit: false`, or remove learn_validation"
            )
        if self.model.answers == "items":
            self._check_items()
        if self.model.quantization != "none" and self.lora is None and (self.sft or self.align):
            raise ValueError(
                f"model.quantization: {self.model.quantization} freezes the base, but `lora: null` trains all of its "
                "weights: set quantization to none, or give `lora` its settings"
            )
        before = self.lm_rankers
        for ranker in self.rankers:
            for field, needed in ranker.needs().items():
                for name in needed:
                    check_known(f"rankers.{ranker.name}.{field}", name, [*BASELINES, *before])
            ranker.check_recipe(self, before)
            before.append(ranker.name)
        for align in self.align:
            for field, name in align.rankers.items():
                if align.name in reached(self.needs, name):
                    raise ValueError(f"align.{align.name}.{field}: {name} depends on {align.name}")
        return self

    def _check_alignment(self, align: AlignSection, before: Sequence[str], rankers: Sequence[str]) -> None:
        field, size = f"align.{align.name}", self.data.candidates.size
        if align.start not in (None, *before):
            raise ValueError(
                f"{field}.start: no earlier alignment is called {align.start!r}{did_you_mean(align.start, before)}"
            )
        if align.negatives_from == "list" and align.num_negatives > size - 1:
            raise ValueError(
                f"{field}.num_negatives: {align.num_negatives} negatives, but a candidate set of {size} has only "
                f"{size - 1}; lower it, raise data.candidates.size, or sample negatives (negatives_from: uniform)"
            )
        hardest = max(size - 1, align.num_negatives)
        if align.negatives_from == "hard" and align.negatives_pool <= hardest:
            raise ValueError(
                f"{field}.negatives_pool: {align.negatives_pool} items are sampled per example, and the "
                f"hardest {hardest} of them are used, which leaves little or no choice; raise it"
            )
        for setting, name in align.rankers.items():
            if name not in rankers:
                near = did_you_mean(name, rankers)
                raise ValueError(f"{field}.{setting}: there is no {name!r} in `rankers`: add it there{near}")

    def _check_items(self) -> None:
        if self.lora is not None:
            raise ValueError("model.answers: items needs `lora: null`: item vectors are trained with all weights")
        if self.model.objective == "tokens":
            raise ValueError("model.answers: items needs `model.objective: catalogue`")
        if self.evaluate.zero_shot or self.evaluate.generate_rows != 0:
            raise ValueError(
                "model.answers: items has no zero-shot model and generates no text: set evaluate.zero_shot: false "
                "and evaluate.generate_rows: 0"
            )

    @property
    def sft_refit(self) -> RefitSection | None:
        """How SFT learns validation interactions, or None. An update continues, because it must be quick."""
        if self.refit and self.update and self.refit.epochs is None:
            return self.refit.model_copy(update={"epochs": 1.0})
        return self.refit

    @property
    def lm_rankers(self) -> list[str]:
        """Names of the language-model rankers, in the order of the table."""
        names = [ZERO_SHOT] if self.evaluate.zero_shot else []
        names += [SFT] if self.sft else []
        return names + [a.name for a in self.align]

    @property
    def needs(self) -> dict[str, list[str]]:
        """Name of each ranker → names of the rankers that it depends on, in the order of the table."""
        first = [SFT] if self.sft else []
        needs: dict[str, list[str]] = {name: [] for name in self.lm_rankers}
        for a in self.align:
            needs[a.name] = list(dict.fromkeys([*([a.start] if a.start else first), *a.rankers.values()]))
        for ranker in self.rankers:
            needs[ranker.name] = asked_by(ranker)
        return needs

    def alignment(self, name: str) -> AlignSection | None:
        """Return the alignment of this name; None if there is none."""
        return next((align for align in self.align if align.name == name), None)

    def start_of(self, align: AlignSection) -> str | None:
        """Return the name of the ranker that an alignment starts from; None: the base model."""
        return align.start or (SFT if self.sft else None)


def asked_by(ranker: RankerConfig) -> list[str]:
    """Return the names of rankers and baselines that a ranker names in its settings."""
    return list(dict.fromkeys(name for names in ranker.needs().values() for name in names))


def reached(needs: Mapping[str, Sequence[str]], *names: str) -> list[str]:
    """Return these names with all their dependencies, dependencies first, without baselines."""
    order: dict[str, None] = {}

    def visit(name: str, above: Sequence[str]) -> None:
        for need in needs[name] if name not in above else ():
            if need in needs and need not in order:
                visit(need, [*above, name])
        order.setdefault(name)

    for name in names:
        visit(name, [])
    return list(order)


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe in a YAML file.

    A file with `preset: NAME` holds only what differs from that preset (`with_preset`).

    Args:
        path: the file. Paths in it, of data and of a run to update, are relative to its folder.
        overrides: fields to set, such as `sft.rows=100` (`set_field`).

    Raises:
        ConfigError: the file is missing or not YAML, or a field is wrong; the message names file and field.
    """
    try:
        raw = read_yaml(read_whole(path))
    except OSError as e:
        raise ConfigError(f"recipe {path}: {e.strerror or e}; a clone has examples in `recipes/`") from e
    except (yaml.YAMLError, ValueError, RecursionError) as e:
        if isinstance(e, TrapError):
            raise ConfigError(f"recipe {path}, {e}") from e
        reason = "nested too deeply" if isinstance(e, RecursionError) else e
        raise ConfigError(f"recipe {path}: not a YAML file: {reason}") from e
    if not isinstance(raw, dict):
        raise ConfigError(f"recipe {path}: expected a mapping with name, data, sft, …, got {type(raw).__name__}")
    preset_values = preset(raw["preset"]) if "preset" in raw else {}
    raw = with_preset(_with_new_names(raw))
    for override in overrides:
        set_field(raw, override)
    raw = _with_new_names(raw)
    try:
        recipe = checked_recipe(without_lost_parts(raw, preset_values))
    except ConfigError as e:
        raise ConfigError(f"recipe {path}: {e}") from e
    files = map_files(recipe.data, lambda file: (path.parent / file).resolve())
    update = recipe.update
    if update:
        # Up to 0.2.0 the path was relative to the working directory, and recipes kept in runs still have it.
        near, earlier = (path.parent / update.run).resolve(), update.run.resolve()
        is_earlier = earlier.is_dir() and not near.is_dir()
        update = update.model_copy(update={"run": earlier if is_earlier else near})
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=files), "update": update})


def _with_new_names(raw: dict[str, Any]) -> dict[str, Any]:
    """Return a raw recipe in which `evaluate.references`, the name before 0.3.0, is `evaluate.baselines`."""
    evaluate = raw.get("evaluate")
    if not isinstance(evaluate, dict) or "references" not in evaluate:
        return raw
    say("evaluate.references: its name is evaluate.baselines now; it is read as that")
    others = {name: value for name, value in evaluate.items() if name != "references"}
    return raw | {"evaluate": others | {"baselines": evaluate["references"]}}


def with_preset(raw: dict[str, Any], values: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return raw values, merged into those of the preset that they name, or into these `values` of it.

    A section replaces only the fields that it names; a list replaces the whole list.
    """
    given = {name: value for name, value in raw.items() if name != "preset"}
    return _merged(preset(raw["preset"]) if values is None else values, given) if "preset" in raw else given


def without_lost_parts(
    raw: dict[str, Any], values: Mapping[str, Any], tell: Callable[[str], None] = say
) -> dict[str, Any]:
    """Return a raw recipe whose blends, those of a preset with these `values`, blend only rankers that are left.

    Without `sft`, a preset's blend would name a ranker that does not exist. `tell` is told what is left out.
    """
    if RANKERS not in values or raw.get(RANKERS) != values[RANKERS]:
        return raw  # these are the user's own, so a missing ranker is an error
    if raw.get(SFT) is not None:
        return raw
    rankers = []
    for ranker in raw[RANKERS]:
        if SFT in ranker.get("parts", ()):
            name = _entry_name(ranker, RANKERS)
            tell(f"{name}: {SFT} is left out, because the recipe does not train it")
            ranker = ranker | {"parts": [part for part in ranker["parts"] if part != SFT]}
        rankers.append(ranker)
    return raw | {RANKERS: rankers}


def _merged(first: Any, second: Any) -> Any:
    if not (isinstance(first, dict) and isinstance(second, dict)):
        return second
    return first | {name: _merged(first.get(name), value) for name, value in second.items()}


def checked_recipe(raw: dict[str, Any]) -> Recipe:
    """Return the recipe with these values; raise ConfigError that names wrong fields."""
    try:
        return Recipe.model_validate(raw)
    except ValidationError as e:
        raise settings_error(e, Recipe) from e


def dump_recipe(recipe: Recipe) -> str:
    """Return the recipe as YAML, with every field."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def check_known(field: str, name: str, known: Sequence[str]) -> None:
    """Raise ValueError if a field names a ranker that is not among the `known` ones."""
    if name not in known:
        raise ValueError(
            f"{field}: no earlier ranker is called {name!r}: name one of {', '.join(known)}, or put the entry of "
            f"{name!r} first{did_you_mean(name, known)}"
        )


def set_field(raw: dict[str, Any], override: str) -> None:
    """Set one dotted field of a raw recipe to a YAML value, as `--set` does: `FIELD=VALUE`, such as `sft.rows=100`.

    An entry of a list goes by its index (`align.0.beta`), or by its name if that is unique (`align.s-dpo.beta`).
    Raise ConfigError if `override` is not `FIELD=VALUE`, or the entry does not exist.
    """
    field, equals, text = override.partition("=")
    wrong = f"--set {override!r}: expected FIELD=VALUE such as sft.rows=100 or align.0.beta=0.5"
    try:
        value = read_yaml(text)
    except (ValueError, RecursionError, yaml.YAMLError) as e:
        reason = e if isinstance(e, TrapError) else "the part after = is not YAML"
        raise ConfigError(f"{wrong}; {reason}") from e
    if not equals:
        raise ConfigError(wrong)
    set_value(raw, field, value, wrong)


def set_value(raw: dict[str, Any], field: str, value: Any, wrong: str = "") -> None:
    """Set one dotted field of a raw recipe, as `set_field` does; error messages begin with `wrong`."""
    steps = str(field).split(".")
    wrong = wrong or f"set {field!r}: expected a field such as sft.rows or align.0.beta"
    if not all(steps):
        raise ConfigError(wrong)
    parent: Any = raw
    for depth, step in enumerate(steps):
        above = ".".join(steps[:depth])
        key: Any = step
        if isinstance(parent, list):
            key = _entry_index(parent, above, step, wrong)
        elif not isinstance(parent, dict):
            raise ConfigError(f"{wrong}; {above} is {parent!r}, which has no fields")
        if depth == len(steps) - 1:
            parent[key] = value
        else:
            # `refit: true` stands for a section with its defaults.
            if isinstance(parent, dict) and (parent.get(key) is None or isinstance(parent[key], bool)):
                parent[key] = [] if step in ("align", RANKERS) else {}
            parent = parent[key]


def _entry_index(entries: Sequence[Any], section: str, step: str, wrong: str) -> int:
    """Return the index of the entry with this index or name; raise ConfigError if no or several entries match."""
    names = [_entry_name(entry, section) for entry in entries]
    if re.fullmatch(r"-?\d{1,9}", step) and -len(names) <= int(step) < len(names):
        return int(step)
    if names.count(step) == 1:
        return names.index(step)
    listed = ", ".join(f"{section}.{i} ({name})" for i, name in enumerate(names))
    count = f"{len(names)} entr{'y' if len(names) == 1 else 'ies'}: {listed}" if names else "no entries"
    raise ConfigError(f"{wrong}; {section} has {count}")


def _entry_name(entry: Any, section: str) -> str:
    """Return the name of an entry of a raw recipe's list, or its default name."""
    if not isinstance(entry, dict):
        return str(entry)
    if section == "align":
        return str(entry.get("name", AlignSection.model_fields["name"].default))
    config = stage_class(str(entry.get("kind"))).Config
    return str(entry.get("name") or config.default_name(entry))


def map_files(data: PrepareConfig, change: Callable[[Path], Any]) -> dict[str, Any]:
    """Return field → value, with each path changed by `change`, of the settings that name files."""
    named = {"path", "interactions", "more_interactions", "items", "users", "row_files"}

    def changed(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: changed(inner) for name, inner in value.items()}
        return [change(file) for file in value] if isinstance(value, list) else change(value)

    return cast(dict[str, Any], changed(data.model_dump(include=named, exclude_none=True)))
