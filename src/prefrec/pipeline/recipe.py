"""A recipe: one YAML file that says everything of a run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast, get_args

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    SerializeAsAny,
    ValidationError,
    model_validator,
)

from prefrec.data import PrepareConfig
from prefrec.data.preferences import RatedBy, Thresholds
from prefrec.errors import ConfigError
from prefrec.lm.models import EMBEDDED
from prefrec.losses import LOSSES, find_loss
from prefrec.pipeline.kinds import SEQUENTIAL, ranker_config, ranker_kind, sequential_config
from prefrec.prompts import MAX_LENGTH
from prefrec.rankers.config import NAME, RankerConfig, settings_error
from prefrec.rankers.lm import BATCH_SIZE
from prefrec.training import SFTConfig, SoftmaxDPOConfig
from prefrec.training.adapters import ALL_LINEAR, RANK
from prefrec.training.negatives import DrawnFrom
from prefrec.training.section import RowsSection

ReferenceName = Literal["random", "popularity", "co-occurrence", "item-kNN", "window co-occurrence", "title TF-IDF"]
REFERENCE_RANKERS: tuple[ReferenceName, ...] = get_args(ReferenceName)
FULL_ROWS = 300
"""Rows ranked over the whole catalogue by default: a language model scores every title for each of them."""
SEED = 0
"""Seed of a run by default."""
ZERO_SHOT = "zero-shot"
SFT = "sft"
RANKERS = "rankers"
NegativesFrom = Literal[
    "reference",
    "list",
    "uniform",
    "popularity",
    "in-batch",
    "hard",
    "hard-GRU4Rec",
    "hard-Caser",
    "hard-SASRec",
    "rated",
    "impressions",
]
FROM_LOG = ("rated", "impressions")
"""Negatives that the log tells of; rows are made of it, instead of lists that are drawn."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class ItemsSection(_Section):
    """Items as tokens (`model.answers: items`): how an item's vector is made."""

    vectors: str = Field(
        "base",
        description="Of titles: base (mean states of the language model), tfidf, or the name of a sentence encoder.",
    )
    cooccurrence: int = Field(
        0,
        ge=0,
        description="Dimensions of an item's place in training histories (singular vectors of window co-occurrence) "
        "beside its title's vector; 0: none.",
    )
    vector_dropout: float = Field(
        0.0, ge=0, lt=1, description="Share of items known by their title alone in a training step; for new items."
    )
    dropout: float = Field(0.3, ge=0, lt=1, description="On item vectors and on the states that meet them.")
    learning_rate: float = Field(
        SFTConfig.item_learning_rate, gt=0, description="Peak learning rate of the items' vectors."
    )


class ModelSection(_Section):
    """The language model and how it is asked."""

    name: str = Field(EMBEDDED, description="Embedded model, local folder or hub id.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Of all products; auto: bfloat16 where this machine multiplies it faster, else float32. Weights "
        "that are trained stay in float32.",
    )
    max_length: int = Field(MAX_LENGTH, ge=16, description="Tokens of a prompt with its longest answer.")
    chat: bool = Field(SFTConfig.chat, description="Wrap prompts by the tokenizer's chat template.")
    layers: list[NonNegativeInt] | PositiveInt | None = Field(
        None, description="How many of the first layers to keep, or the numbers of those to keep, from 0; None: all."
    )
    templates: list[str] = Field(
        ["history"],
        min_length=1,
        description="Phrasings (`history`, `1`, `movies/2`) or jinja2 files; evaluation uses the first.",
    )
    answers: Literal["titles", "items"] = Field(
        "titles", description="titles: an answer is a title as text; items: it is one token that stands for the item."
    )
    items: ItemsSection = Field(default_factory=lambda: ItemsSection(), description="For `answers: items`.")
    random_weights: bool = Field(False, description="Leave the pretrained weights out: a control.")
    objective: Literal["catalogue", "tokens"] = Field(
        "catalogue",
        description="What a title's tokens compete with, in training and scoring: catalogue: tokens that go on to a "
        "title; tokens: the whole vocabulary.",
    )
    attn_implementation: Literal["auto", "sdpa", "eager", "flex_attention"] = Field(
        "auto", description="auto: transformers' choice; on a GPU the faster of sdpa and flex_attention."
    )
    quantization: Literal["none", "nf4"] = Field("none", description="nf4: the frozen base in 4 bits (QLoRA).")

    def decisive(self) -> dict[str, Any]:
        """The settings that the outcome depends on."""
        idle = {"attn_implementation"} | ({"quantization"} if self.quantization == "none" else set())
        idle |= {"items"} if self.answers == "titles" else {"templates"}
        return self.model_dump(exclude=idle)

    def loading(self) -> dict[str, Any]:
        """Return the arguments with which `prefrec.lm.models.load_model` loads it."""
        return self.model_dump(include={"dtype", "attn_implementation", "quantization", "layers", "random_weights"})


class LoraSection(_Section):
    """The adapter that is trained."""

    r: int = Field(RANK, ge=1, description="Rank.")
    alpha: int | None = Field(None, ge=1, description="Scale numerator; None: 2·r.")
    dropout: float = Field(0.0, ge=0, lt=1, description="On its input; needs disable_dropout: false.")
    targets: list[str] | str = Field(
        ALL_LINEAR, description="Names of the layers; all-linear; or an expression that their whole names match."
    )


class SFTSection(RowsSection):
    """Supervised fine-tuning.

    Where the first template shows no candidates a row is a user's history, of which every title is a target. Where it
    shows them a row is one ranking question, as in the paper.
    """

    epochs: float = Field(4.0, gt=0, description="Passes over the rows.")
    learning_rate: float = Field(SFTConfig.learning_rate, gt=0, description="Peak learning rate.")
    global_batch_size: int = Field(8, ge=1, description="Rows an optimiser step, over all processes.")
    max_grad_norm: float = Field(SFTConfig.max_grad_norm, ge=0, description="Gradient clipping.")
    titles: int = Field(50, ge=2, description="Titles of a row, about; a longer history gives several rows.")
    drop: float = Field(0.1, ge=0, lt=1, description="Share of titles left out, drawn anew in each epoch.")
    eval_rows: int = Field(
        300, ge=0, description="Validation rows asked after each epoch; the best epoch is kept. 0: none, the last is."
    )
    patience: int = Field(2, ge=1, description="Epochs in a row without a new best before training ends.")

    def idle_settings(self) -> set[str]:
        """As for all stages, but that validation rows choose the checkpoint."""
        idle = super().idle_settings() - {"eval_rows"} | {"eval_steps"}
        return idle | (set() if self.eval_rows else {"patience"})


class AlignSection(RowsSection):
    """One preference alignment, from the SFT adapter (or from the bare base where `sft` is left out)."""

    name: str = Field("s-dpo", pattern=NAME, description="Folder, and name in the tables.")
    loss: str = Field(cast(str, SoftmaxDPOConfig.loss_type), description=f"One of {', '.join(LOSSES)}.")
    beta: float = Field(SoftmaxDPOConfig.beta, gt=0, description="Pull to the reference.")
    num_negatives: int = Field(7, ge=1, description="Rejected answers a row and step.")
    negatives: Literal["fixed", "per_epoch"] = Field(
        SoftmaxDPOConfig.negatives, description="Drawn once, or anew in each epoch."
    )
    negatives_from: NegativesFrom = Field(
        "reference",
        description="reference: drawn in proportion to the probabilities of the model it starts from, which makes "
        "S-DPO consistent at beta 1; list: the row's own candidates; uniform, popularity, in-batch "
        "(targets of other rows), hard (highest under the model it starts from), hard-SASRec and the like. rated and "
        "impressions make rows of the log: of items that the user rated high and low, or took and left.",
    )
    liked: float = Field(5.0, description="rated: chosen are items rated at least this.")
    disliked: float = Field(2.0, description="rated: rejected are items of the same user rated at most this.")
    rated_by: RatedBy = Field(
        "value",
        description="What liked and disliked are: value: ratings; quantile: shares of the user's own ratings (0.8 "
        "and 0.2), for counts.",
    )
    sampled_negatives: int = Field(
        0, ge=0, description="rated, impressions: how many of num_negatives are drawn uniformly instead."
    )
    start: str | None = Field(
        None, description="An earlier alignment to go on from, whose policy is the new reference; None: SFT."
    )
    negatives_pool: int = Field(64, ge=2, description="Items drawn for a row of which hard takes the highest.")
    precompute_reference: bool = Field(
        SoftmaxDPOConfig.precompute_ref_log_probs, description="Reference log-probs once before training."
    )
    max_tokens_per_pass: int | None = Field(
        SoftmaxDPOConfig.max_tokens_per_pass,
        ge=1,
        description="Tokens a pass, for many negatives: less memory, the same gradient; None: no limit.",
    )

    def idle_settings(self) -> set[str]:
        """As for all stages, passes, and what the choice of negatives leaves unused."""
        idle = super().idle_settings() | {"max_tokens_per_pass"}
        idle |= {"negatives_from"} if self.negatives_from == "list" else set()
        idle |= set() if self.negatives_from == "rated" else {"liked", "disliked", "rated_by"}
        idle |= set() if self.is_from_log else {"sampled_negatives"}
        idle |= {"start"} if self.start is None else set()
        return idle | (set() if self.is_hard else {"negatives_pool"})

    @property
    def is_hard(self) -> bool:
        """Whether a model chooses the negatives."""
        return self.negatives_from.startswith("hard")

    @property
    def is_from_log(self) -> bool:
        """Whether the log tells of the negatives."""
        return self.negatives_from in FROM_LOG

    @property
    def thresholds(self) -> Thresholds:
        """What counts as liked and disliked."""
        return Thresholds(self.liked, self.disliked, self.rated_by)

    @property
    def drawn_from(self) -> DrawnFrom | None:
        """How the rows' lists are drawn again; None: they are not."""
        if self.negatives_from == "list" or self.is_from_log:
            return None
        return "hard" if self.is_hard else cast(Any, self.negatives_from)

    @property
    def negatives_judge(self) -> str | None:
        """The sequential recommender that chooses the negatives; None: none does."""
        return self.negatives_from.removeprefix("hard-") if self.negatives_from.startswith("hard-") else None

    @model_validator(mode="after")
    def _known(self) -> Self:
        find_loss(self.loss)
        if self.name in (*REFERENCE_RANKERS, ZERO_SHOT, SFT):
            raise ValueError(f"name {self.name!r} is taken by another ranker")
        if self.disliked >= self.liked:
            raise ValueError(f"disliked: {self.disliked:g} is not below liked ({self.liked:g})")
        if self.rated_by == "quantile" and not 0 <= self.disliked < self.liked <= 1:
            raise ValueError(
                "liked, disliked: with rated_by quantile they are shares between 0 and 1, such as 0.8 and 0.2"
            )
        if self.sampled_negatives and not self.is_from_log:
            raise ValueError(f"sampled_negatives: only for negatives_from {' or '.join(FROM_LOG)}; leave it out")
        if self.sampled_negatives >= self.num_negatives:
            raise ValueError(
                f"sampled_negatives: {self.sampled_negatives} of {self.num_negatives} negatives leave none from the "
                "log; lower it, or raise num_negatives"
            )
        return self


class EvaluateSection(_Section):
    """What is measured, on which rows."""

    split: Literal["validation", "test"] = Field("test", description="Rows under test.")
    rows: int | None = Field(None, ge=1, description="Rows of the split, spread over its users; None: all.")
    full_rows: int | None = Field(
        FULL_ROWS,
        ge=0,
        description="Of these rows, how many are also ranked over the whole catalogue, spread over users; 0: none; "
        "None: all.",
    )
    generate_rows: int = Field(0, ge=0, description="Rows that LMs also answer in text (HR@1, Valid Ratio).")
    batch_size: int = Field(BATCH_SIZE, ge=1, description="Rows a pass.")
    zero_shot: bool = Field(True, description="Also the model before training.")
    references: list[ReferenceName] = Field(list(REFERENCE_RANKERS), description="Reference rows of the table.")
    ks: list[PositiveInt] = Field([1, 5, 10], min_length=1, description="Cut-offs of HR and NDCG.")


class Recipe(_Section):
    """Everything of a run: data, model, stages, evaluation, seed."""

    name: str = Field(pattern=NAME, description="The run's folder is runs/NAME.")
    seed: int = Field(SEED, ge=0, description="Of samples, order and initial weights.")
    data: PrepareConfig = Field(default_factory=lambda: PrepareConfig())
    model: ModelSection = Field(default_factory=lambda: ModelSection())
    lora: LoraSection | None = Field(
        default_factory=lambda: LoraSection(), description="The adapter; null: all weights are trained."
    )
    sequential: list[Annotated[Any, BeforeValidator(sequential_config)]] = Field(default_factory=list)
    sft: SFTSection | None = None
    align: list[AlignSection] = Field(default_factory=list)
    rankers: list[Annotated[SerializeAsAny[RankerConfig], BeforeValidator(ranker_config)]] = Field(
        default_factory=list, description="Further systems, in the order in which they are made."
    )
    evaluate: EvaluateSection = Field(default_factory=lambda: EvaluateSection())

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        names = [a.name for a in self.align]
        for place, section in enumerate(self.align):
            if section.start is not None and section.start not in names[:place]:
                raise ValueError(f"align.{section.name}.start: there is no alignment {section.start!r} before it")
        if len(set(names)) < len(names):
            raise ValueError(f"align: two entries share a name ({', '.join(names)})")
        models = [s.model for s in self.sequential]
        if len(set(models)) < len(models):
            raise ValueError(f"sequential: a model stands there twice ({', '.join(models)}); use its grid instead")
        if twice := [name for name in names if name in models]:
            raise ValueError(f"align: name {twice[0]!r} is taken by another ranker")
        further = [r.name for r in self.rankers]
        taken = {*REFERENCE_RANKERS, *models, ZERO_SHOT, SFT, *names}
        if twice := [name for i, name in enumerate(further) if name in taken or name in further[:i]]:
            raise ValueError(f"rankers: the name {twice[0]!r} stands there twice, or is that of another ranker")
        if not (self.lm_rankers or self.evaluate.references or models or further):
            raise ValueError("evaluate: no ranker is left: turn zero_shot on, name references, or add sft or align")
        references = self.evaluate.references
        if len(set(references)) < len(references):
            raise ValueError(f"evaluate.references: a row stands there twice ({', '.join(references)})")
        for section in self.align:
            if section.negatives_from == "list" and section.num_negatives > self.data.candidates.size - 1:
                raise ValueError(
                    f"align.{section.name}.num_negatives: {section.num_negatives} negatives, but a list of "
                    f"{self.data.candidates.size} candidates has only {self.data.candidates.size - 1}; "
                    "lower it, raise data.candidates.size, or have longer lists drawn (negatives_from: uniform)"
                )
            wanted = max(self.data.candidates.size, 1 + section.num_negatives)
            if section.is_hard and section.negatives_pool < wanted:
                raise ValueError(
                    f"align.{section.name}.negatives_pool: of {section.negatives_pool} items drawn for a row the "
                    f"hardest {wanted - 1} are to be taken, which leaves little or no choice; raise it"
                )
            if section.negatives_judge not in (None, *models):
                raise ValueError(
                    f"align.{section.name}.negatives_from: {section.negatives_from} needs {section.negatives_judge} "
                    "in the recipe's `sequential`"
                )
        self._items_are_trained_whole()
        before = [*models, *self.lm_rankers]
        for ranker in self.rankers:
            ranker_kind(ranker.kind).check_recipe(ranker, self, before)
            before.append(ranker.name)
        return self

    def _items_are_trained_whole(self) -> None:
        if self.model.answers == "titles":
            return
        if self.lora is not None:
            raise ValueError(
                "model.answers: items needs `lora: null`: the items' vectors are trained with the layers"
            )
        if self.model.objective == "tokens":
            raise ValueError("model.answers: items needs `model.objective: catalogue`")
        if self.evaluate.zero_shot or self.evaluate.generate_rows:
            raise ValueError(
                "model.answers: items has no zero-shot model and generates no text: set evaluate.zero_shot: false "
                "and evaluate.generate_rows: 0"
            )

    @property
    def lm_rankers(self) -> list[str]:
        """Names of the language-model rankers, in the order of the table."""
        zero = [ZERO_SHOT] if self.evaluate.zero_shot else []
        return [*zero, *([SFT] if self.sft else []), *(a.name for a in self.align)]


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file; relative data paths are relative to that file.

    Args:
        path: of the file.
        overrides: `FIELD=VALUE` with a dotted field and a YAML value, such as `sft.rows=100` or
            `align.0.beta=0.5` (or `align.s-dpo.beta=0.5`); they win over the file.

    Raises:
        ConfigError: the file is missing, no YAML, or a field is wrong; the message names file and field.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise ConfigError(f"recipe {path}: {e.strerror or e}; `recipes/` holds examples") from e
    except (yaml.YAMLError, ValueError) as e:
        raise ConfigError(f"recipe {path}: not a YAML file: {e}") from e
    except RecursionError as e:
        raise ConfigError(f"recipe {path}: not a YAML file: nested too deeply") from e
    if not isinstance(raw, dict):
        raise ConfigError(f"recipe {path}: expected a mapping with name, data, sft, …, got {type(raw).__name__}")
    for override in overrides:
        set_field(raw, override)
    try:
        recipe = checked_recipe(raw)
    except ConfigError as e:
        raise ConfigError(f"recipe {path}: {e}") from e
    return recipe.model_copy(update={"data": _resolve_paths(recipe.data, path.parent)})


def checked_recipe(raw: dict[str, Any]) -> Recipe:
    """The recipe of these values.

    Raises:
        ConfigError: a field is wrong; the message names it.
    """
    try:
        return Recipe.model_validate(raw)
    except ValidationError as e:
        raise settings_error(e, Recipe) from e


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML, every field written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def check_known(place: str, name: str, there: Sequence[str]) -> None:
    """Raise ValueError if the ranker that a field names is not among those made before it."""
    if name not in there:
        raise ValueError(
            f"{place}: there is no {name!r} before it; there are {', '.join(there) or 'none'}: name one of them, or "
            "have it made before"
        )


def set_field(raw: dict[str, Any], override: str) -> None:
    """Set one dotted field of a raw recipe, as `--set` has it: `FIELD=VALUE`.

    An entry of a list goes by its number, or by its name where no other has it.

    Raises:
        ConfigError: this is no `FIELD=VALUE`, or there is no such entry; the message says which there are.
    """
    field, given, text = override.partition("=")
    names = field.split(".")
    wrong = f"--set {override!r}: expected FIELD=VALUE such as sft.rows=100 or align.0.beta=0.5"
    try:
        value = yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError) as e:
        raise ConfigError(f"{wrong}; what is after the = is no YAML value") from e
    if not given or not all(names):
        raise ConfigError(wrong)
    place: Any = raw
    for depth, name in enumerate(names):
        above = ".".join(names[:depth])
        key: Any = name
        if isinstance(place, list):
            key = _index(place, name, above)
            if key is None:
                raise ConfigError(f"{wrong}; {_entries(place, above)}")
        elif not isinstance(place, dict):
            raise ConfigError(f"{wrong}; {above} is {place!r}, which has no fields")
        if depth == len(names) - 1:
            place[key] = value
        else:
            if isinstance(place, dict) and place.get(key) is None:
                place[key] = [] if above == "" and name in _LISTS else {}
            place = place[key]


_LISTS = (SEQUENTIAL, "align", RANKERS)


def _index(entries: Sequence[Any], name: str, of: str) -> int | None:
    """The place of an entry, by its number or its name; None where there is none, or more than one."""
    if re.fullmatch(r"-?\d{1,9}", name):
        index = int(name)
        return index if -len(entries) <= index < len(entries) else None
    found = [i for i, entry in enumerate(entries) if _entry_name(entry, of) == name]
    return found[0] if len(found) == 1 else None


def _entries(entries: Sequence[Any], of: str) -> str:
    """Which entries a list has, with their names."""
    if not entries:
        return f"{of} has no entries"
    told = [f"{of}.{i} ({_entry_name(entry, of)})" for i, entry in enumerate(entries)]
    return f"{of} has {len(told)} entr{'y' if len(told) == 1 else 'ies'}: {', '.join(told)}"


def _entry_name(entry: Any, of: str) -> str:
    """What an entry of a raw recipe's list is called, or will be by default."""
    if not isinstance(entry, dict):
        return str(entry)
    kind = str(entry.get("kind")) if of == RANKERS else SEQUENTIAL
    try:
        section = AlignSection if of == "align" else ranker_kind(kind).config
    except ConfigError:
        section = None
    field = "model" if of == SEQUENTIAL else "name"
    default = section.model_fields[field].get_default() if section else "?"
    return str(entry.get(field, default))


def _resolve_paths(data: PrepareConfig, folder: Path) -> PrepareConfig:
    found: dict[str, Any] = {
        field: (folder / value).resolve()
        for field in ("path", "interactions", "items", "users")
        if (value := getattr(data, field)) is not None
    }
    if data.row_files:
        found["row_files"] = {part: (folder / file).resolve() for part, file in data.row_files.items()}
    return data.model_copy(update=found)
