"""A recipe: one YAML file with all settings of a run."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast, get_args

import yaml
from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeInt,
    PositiveInt,
    SerializeAsAny,
    ValidationError,
    field_validator,
    model_validator,
)

from prefrec.console import say
from prefrec.data.feedback import RatedBy, Thresholds
from prefrec.errors import ConfigError, did_you_mean
from prefrec.files import read_whole
from prefrec.intake.config import PrepareConfig, Section
from prefrec.lm.models import EMBEDDED
from prefrec.losses import ALIASES, LOSSES, OPTIONS, find_loss, with_options
from prefrec.pipeline.kinds import ranker_config, ranker_kind
from prefrec.presets import preset
from prefrec.prompts import MAX_LENGTH
from prefrec.rankers.config import NAME, RankerConfig, settings_error
from prefrec.rankers.lm import BATCH_SIZE
from prefrec.strict_yaml import TrapError, read_yaml
from prefrec.training.defaults import (
    ALL_LINEAR,
    BETA,
    CHAT,
    ITEM_LEARNING_RATE,
    LOSS,
    MOST_EPOCHS,
    NEGATIVES,
    PRECOMPUTE_REFERENCE,
    RANK,
    SFT_LEARNING_RATE,
    SFT_MAX_GRAD_NORM,
    NegativesDrawn,
)
from prefrec.training.negatives import DrawnFrom
from prefrec.training.section import RowsSection

BaselineName = Literal[
    "random", "popularity", "popularity of 30 days", "popularity of 90 days", "popularity of 365 days",
    "newest first", "buy again", "co-occurrence", "item-kNN", "EASE", "window co-occurrence", "title TF-IDF",
    "transition graph", "item only",
]  # fmt: skip
BASELINES: tuple[BaselineName, ...] = get_args(BaselineName)
SEED = 0
"""Default seed of a run."""
ZERO_SHOT, SFT, RANKERS = "zero-shot", "sft", "rankers"
FromLog = Literal["rated", "impressions"]
FROM_LOG: tuple[FromLog, ...] = get_args(FromLog)
"""Sources that make examples from the log itself, instead of sampling negatives for the data's examples."""
NegativesFrom = Literal["reference", "list", "uniform", "popularity", "in-batch", "hard", "ranker", FromLog]
PARTS, REWARD = "parts", " reward"
"""Field of a blend, and the ending of a part's name: `s-dpo reward` is β·(log π − log π_ref) of `s-dpo`."""


class ItemsSection(Section):
    """Vectors of item-ID tokens (`model.answers: items`)."""

    vectors: str = Field(
        "base",
        description="Where title vectors come from: base (mean hidden states of the model), tfidf, "
        "all-minilm-l6-v2 (cheap), or the name of another encoder.",
    )
    cooccurrence: int = Field(
        0, ge=0, description="Add N dimensions of window co-occurrence to the title vector. 0: none."
    )
    vector_dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Probability of dropping an item's own vector during training (title-only dropout).",
    )
    dropout: float = Field(
        0.3, ge=0, lt=1, description="Dropout on item vectors and on the hidden states they are compared with."
    )
    learning_rate: float = Field(
        ITEM_LEARNING_RATE, gt=0, le=1, description="Peak learning rate of the item vectors."
    )


class ModelSection(Section):
    """The language model and its prompts."""

    name: str = Field(EMBEDDED, description="Embedded model, local folder or Hugging Face id.")
    # Trained weights stay in float32.
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Compute dtype. auto: bfloat16 where it is faster on this machine, otherwise float32."
    )
    max_length: int = Field(MAX_LENGTH, ge=16, description="Maximum tokens of a prompt with its longest answer.")
    chat: bool = Field(CHAT, description="Wrap prompts in the tokenizer's chat template.")
    layers: list[NonNegativeInt] | PositiveInt | None = Field(
        None, description="Keep the first N layers, or the layers with these 0-based indices. Default: all."
    )
    templates: list[str] = Field(
        ["history"],
        min_length=1,
        description="Prompt templates, by name (history, movies/2) or file. Evaluation uses the first.",
    )
    answers: Literal["titles", "items"] = Field(
        "titles",
        description="titles: answer with a title as text. items: answer with item-ID tokens, one token per item.",
    )
    items: ItemsSection = Field(ItemsSection(), description="Settings of item-ID tokens (answers: items).")
    # Omitted from dumps when unset, so that stage keys stay those of recipes without this field.
    item_text: str | None = Field(
        None,
        exclude_if=lambda text: text is None,
        description="jinja2 text that stands for an item in histories and title vectors, such as {{ title }} ({{ "
        "year }}). Default: the title.",
    )
    random_weights: bool = Field(False, description="Start from random weights, as a control for pre-training.")
    objective: Literal["catalogue", "tokens"] = Field(
        "catalogue",
        description="catalogue: normalise a title's probability over the titles of the catalogue. tokens: over "
        "the whole vocabulary, as in the paper.",
    )
    attn_implementation: Literal["auto", "sdpa", "eager", "flex_attention"] = Field(
        "auto", description="Attention kernel. auto: the choice of transformers, usually sdpa."
    )
    quantization: Literal["none", "nf4", "nf4-double"] = Field(
        "none", description="nf4: load the frozen base in 4 bits (QLoRA). nf4-double: also quantise the scales."
    )

    def decisive(self) -> dict[str, Any]:
        """Return the settings that affect results."""
        return self.model_dump(exclude={"attn_implementation", "items" if self.answers == "titles" else "templates"})

    def loading(self) -> dict[str, Any]:
        """Return the arguments for `prefrec.lm.models.load_model`."""
        return self.model_dump(include={"dtype", "attn_implementation", "quantization", "layers", "random_weights"})


class LoraSection(Section):
    """The LoRA adapter to train."""

    r: int = Field(RANK, ge=1, le=4096, description="Rank of the adapter.")
    alpha: int | None = Field(
        None, ge=1, le=1 << 16, description="The adapter's output is scaled by alpha/r. Default: 2·r."
    )
    dropout: float = Field(
        0.0, ge=0, lt=1, description="Dropout on the adapter's input. Needs disable_dropout: false."
    )
    targets: list[str] | str = Field(
        ALL_LINEAR, description="Layers to adapt: names, all-linear, or a regular expression that matches full names."
    )


class SFTSection(RowsSection):
    """Supervised fine-tuning.

    If the first template shows no candidates, an example is a user's history, and each of its titles is a target. If
    it shows them, an example is one ranking question, as in the paper.
    """

    epochs: float = Field(4.0, gt=0, le=MOST_EPOCHS, description="Number of epochs.")
    learning_rate: float = Field(SFT_LEARNING_RATE, gt=0, le=1, description="Peak learning rate.")
    global_batch_size: int = Field(8, ge=1, description="Examples per optimiser step, over all processes.")
    max_grad_norm: float = Field(SFT_MAX_GRAD_NORM, ge=0, description="Clip the gradient to this norm.")
    titles: int = Field(50, ge=2, description="Split longer histories into examples of about N titles.")
    drop: float = Field(
        0.1, ge=0, lt=1, description="Probability of dropping a title from a history, resampled every epoch."
    )
    eval_rows: int = Field(
        300, ge=0, description="Validation examples that choose the best epoch. 0: keep the last epoch."
    )
    metric_for_best_model: Literal["ndcg@10", "loss"] = Field(
        "ndcg@10", description="Validation metric that chooses the best epoch."
    )
    patience: int = Field(2, ge=1, description="Stop after N epochs in a row without improvement.")

    def idle_settings(self) -> set[str]:
        # Here the validation examples choose the checkpoint, so they affect the result.
        idle = super().idle_settings() - {"eval_rows"} | {"eval_steps"}
        # The default is omitted, so that stages made before this field existed keep their keys.
        idle |= set() if self.eval_rows and self.metric_for_best_model == "loss" else {"metric_for_best_model"}
        return idle | (set() if self.eval_rows else {"patience"})


class AlignSection(RowsSection):
    """One preference alignment. It starts from the SFT weights, or from the base model if there is no `sft`."""

    name: str = Field("s-dpo", pattern=NAME, description="Name in tables, and of the stage's folder.")
    loss: str = Field(LOSS, description=f"Loss: {', '.join(LOSSES)}.")
    beta: float = Field(
        BETA, gt=0, le=1000, description="Strength of the penalty for moving away from the reference (β)."
    )
    margin: float | None = Field(
        None, ge=0, le=1000, description="Margin of recpo, dynamicpo and simpo. Default: the loss's own."
    )
    sft_weight: float | None = Field(None, ge=0, le=1000, description="Weight of simpo's SFT term.")
    label_smoothing: float | None = Field(
        None, ge=0, lt=0.5, description="Fraction of flipped labels that the loss robust assumes. Default: 0.1."
    )
    num_negatives: int = Field(7, ge=1, description="Rejected answers per example.")
    negatives: NegativesDrawn = Field(
        NEGATIVES,
        description="fixed: sample once. per_epoch: resample every epoch.",
    )
    negatives_from: NegativesFrom = Field(
        "reference",
        description="Where rejected answers come from. reference: sampled from the starting model, which makes "
        "S-DPO consistent at beta 1. list: the example's candidate set. uniform, popularity: sampled from the "
        "catalogue. in-batch: targets of other examples. hard: ranked highest by the miner. ranker: sampled from "
        "the softmax of the miner's scores. rated: the user's disliked items. impressions: items shown, not clicked.",
    )
    exclude_later: bool = Field(
        True,
        description="reference, ranker: never reject an item that the user interacts with later in the training log.",
    )
    miner: str | None = Field(
        None,
        description="hard, ranker: the ranker that mines negatives, such as SASRec or a blend. A blend counts other "
        "users' interactions alone. Default for hard: the starting model.",
    )
    # Omitted from dumps when unset, so that results of recipes without this field stay valid.
    negatives_temperature: float = Field(
        1.0,
        gt=0,
        le=1000,
        exclude_if=lambda temperature: temperature == 1.0,
        description="ranker: sample in proportion to exp(score / temperature).",
    )
    liked: float = Field(5.0, description="rated: items with at least this rating are chosen.")
    disliked: float = Field(2.0, description="rated: items with at most this rating by the same user are rejected.")
    rated_by: RatedBy = Field(
        "value",
        description="Unit of liked and disliked. value: ratings. quantile: quantiles of the user's own ratings, "
        "such as 0.8 and 0.2 (for counts).",
    )
    sampled_negatives: int = Field(
        0, ge=0, description="rated, impressions: how many of num_negatives to sample uniformly."
    )
    item_learning_rate: float | None = Field(
        None, gt=0, le=1, description="Learning rate of the item vectors. Default: learning_rate."
    )
    start: str | None = Field(
        None, description="Earlier alignment to start from, and to use as the reference. Default: sft."
    )
    trajectories: bool | None = Field(
        None,
        description="Score all targets of a history in one pass (packed sequences). Default: true where the "
        "alignment trains on all examples.",
    )
    negatives_pool: int = Field(
        64, ge=2, description="Candidates sampled per example, from which hard takes the highest-ranked."
    )
    load_best_model_at_end: bool = Field(
        False, description="Evaluate eval_rows after each epoch, and keep the epoch with the lowest loss."
    )
    precompute_reference: bool = Field(
        PRECOMPUTE_REFERENCE, description="Compute the reference's log-probabilities once, before training."
    )
    max_tokens_per_pass: int | None = Field(
        None,
        ge=1,
        description="Split an optimiser step into passes of at most N tokens: less memory, the same gradient. "
        "Default: no limit.",
    )

    def idle_settings(self) -> set[str]:
        # Settings that `negatives_from` does not use cannot affect the result.
        idle = super().idle_settings() | {"max_tokens_per_pass"}
        idle |= set() if self.negatives_from == "rated" else {"liked", "disliked", "rated_by"}
        idle |= set() if self.is_from_log else {"sampled_negatives"}
        idle |= {name for name in OPTIONS if getattr(self, name) is None}
        idle |= set() if self.is_packed else {"trajectories"}
        idle |= set() if self.miner else {"miner"}
        idle |= set() if self.negatives_from in ("reference", "ranker") else {"exclude_later"}
        idle |= set() if self.negatives_from == "ranker" else {"negatives_temperature"}
        idle = (
            idle - {"eval_rows"} | {"eval_steps"}
            if self.load_best_model_at_end
            else idle | {"load_best_model_at_end"}
        )
        return idle | (set() if self.negatives_from == "hard" else {"negatives_pool"})

    @property
    def is_from_log(self) -> bool:
        """True if the negatives come from the log."""
        return self.negatives_from in FROM_LOG

    @property
    def has_all_positions(self) -> bool:
        """True if it trains on examples at every position of a history."""
        return self.latest_per_user is None and not self.is_from_log

    @property
    def is_packed(self) -> bool:
        """True if it trains on packed sequences, unless the data come with their own training examples."""
        return self.rows is None and self.has_all_positions if self.trajectories is None else self.trajectories

    @property
    def thresholds(self) -> Thresholds:
        """Ratings that count as liked and disliked."""
        return Thresholds(self.liked, self.disliked, self.rated_by)

    @property
    def drawn_from(self) -> DrawnFrom | None:
        """Distribution that negatives are sampled from; None: the examples have theirs."""
        if self.negatives_from == "list" or self.is_from_log:
            return None
        return cast(Any, self.negatives_from)

    @field_validator("loss")
    @classmethod
    def _one_name(cls, loss: str) -> str:
        return ALIASES.get(loss, loss)

    @model_validator(mode="after")
    def _known(self) -> Self:
        with_options(find_loss(self.loss), **{name: getattr(self, name) for name in OPTIONS})
        if self.loss == "softmax_logq" and self.negatives_from not in ("uniform", "popularity", "in-batch"):
            raise ValueError(
                "loss: softmax_logq needs negatives of known probability: negatives_from uniform, popularity or "
                "in-batch (for reference, softmax_dpo at beta 1 is the same)"
            )
        if self.miner and self.negatives_from not in ("hard", "ranker"):
            raise ValueError(f"miner: {self.miner} is only used with negatives_from: hard or ranker; remove it")
        if self.negatives_from == "ranker" and not self.miner:
            raise ValueError("miner: negatives_from: ranker needs the name of a ranker, such as that of a blend")
        if self.load_best_model_at_end and not self.eval_rows:
            raise ValueError("load_best_model_at_end: needs validation examples; set eval_rows, such as 2000")
        if self.disliked >= self.liked:
            raise ValueError(f"disliked: {self.disliked:g} is not below liked ({self.liked:g})")
        if self.rated_by == "quantile" and not 0 <= self.disliked < self.liked <= 1:
            raise ValueError(
                "liked, disliked: with rated_by: quantile both must be between 0 and 1, such as 0.8 and 0.2"
            )
        if self.sampled_negatives and not self.is_from_log:
            raise ValueError(f"sampled_negatives: only for negatives_from: {' or '.join(FROM_LOG)}; remove it")
        if self.sampled_negatives >= self.num_negatives:
            raise ValueError(
                f"sampled_negatives: {self.sampled_negatives} of {self.num_negatives} negatives leave none for the "
                "log; lower it, or raise num_negatives"
            )
        return self


class EvaluateSection(Section):
    """Metrics, and the examples to compute them on."""

    split: Literal["validation", "test"] = Field("test", description="Split to evaluate on.")
    rows: int | None = Field(None, ge=1, description="Evaluate N examples, spread over users. Default: all.")
    full_rows: int | None = Field(
        300,
        ge=0,
        description="Examples for full ranking by language models that read titles one by one; other rankers "
        "rank all examples. 0: no full ranking, and such a model is not the default. null: all.",
    )
    generate_rows: int | None = Field(
        0,
        ge=0,
        description="Examples that language models also answer with generated text (HR@1, Valid Ratio). null: all.",
    )
    batch_size: int = Field(BATCH_SIZE, ge=1, description="Examples per pass.")
    zero_shot: bool = Field(True, description="Also evaluate the model before training.")
    ablations: bool = Field(
        True,
        exclude_if=lambda ablations: ablations,
        description="In full ranking, also rank without each part of a blend, which says what the part adds.",
    )
    references: list[BaselineName] = Field(list(BASELINES), description="Baselines of the table.")
    ks: list[PositiveInt] = Field([1, 5, 10], min_length=1, description="Cut-offs K of HR@K and NDCG@K.")
    on_leak: Literal["warn", "stop"] = Field(
        "warn",
        exclude_if=lambda on_leak: on_leak == "warn",
        description="What to do before training if the audit finds a leak or a protocol error, or that "
        "candidate sets can be solved without the user.",
    )


class UpdateSection(Section):
    """An earlier run whose SFT weights are trained further on a longer log."""

    run: Path = Field(description="Folder of the run to continue.")
    replay: float = Field(
        1.0, ge=0, le=1000, description="Old interactions to replay per new interaction; whole users are sampled."
    )
    rows: int = Field(
        1000,
        ge=1,
        description="Test examples of the old run to hold out, at most half of them, to measure forgetting.",
    )


class RefitSection(Section):
    """Learning validation interactions, too, after everything was chosen on validation examples."""

    epochs: float | None = Field(
        None,
        gt=0,
        le=MOST_EPOCHS,
        description="Continue the best SFT weights for N epochs, on new interactions and a replay of old ones. "
        "Default: train SFT again on all interactions, for the epochs that validation chose, which is slower.",
    )
    replay: float = Field(
        1.0,
        ge=0,
        le=1000,
        description="With epochs: old interactions to replay per new interaction; whole users are sampled.",
    )


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
        references = self.evaluate.references
        if len(set(references)) < len(references):
            raise ValueError(f"evaluate.references: each baseline may be named once, got {', '.join(references)}")
        if not (self.lm_rankers or references or self.rankers):
            raise ValueError(
                "evaluate: there is no ranker to evaluate: turn zero_shot on, name references, or add sft or align"
            )
        for i, align in enumerate(self.align):
            self._check_alignment(align, names["align"][:i], names[RANKERS])
        if self.update and (self.sft is None or self.data.split_name == "given"):
            raise ValueError("update: needs `sft` to continue, and data without a predefined split")
        if self.model.answers == "items":
            self._check_items()
        if self.model.quantization != "none" and self.lora is None and (self.sft or self.align):
            raise ValueError(
                f"model.quantization: {self.model.quantization} freezes the base, but `lora: null` trains all of its "
                "weights: set quantization to none, or give `lora` its settings"
            )
        before, rewards = self.lm_rankers, [f"{name}{REWARD}" for name in names["align"]]
        for ranker in self.rankers:
            kind = ranker_kind(ranker.kind)
            for field, needed in kind.needs(ranker).items():
                known = [*BASELINES, *before] + (rewards if field == PARTS else [])
                for name in needed:
                    check_known(f"rankers.{ranker.name}.{field}", name, known)
            kind.check_recipe(ranker, self, before)
            before.append(ranker.name)
        for align in self.align:
            if align.miner and align.name in reached(self.needs, align.miner):
                raise ValueError(f"align.{align.name}.miner: {align.miner} depends on {align.name}")
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
        if align.miner not in (None, *rankers):
            near = did_you_mean(align.miner, rankers)
            raise ValueError(f"{field}.miner: there is no {align.miner!r} in `rankers`: add it there{near}")

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
            needs[a.name] = ([a.start] if a.start else first) + ([a.miner] if a.miner else [])
        for ranker in self.rankers:
            needs[ranker.name] = list(dict.fromkeys(n for name in asked_by(ranker) for n in self.queried(name)))
        return needs

    def alignment(self, name: str) -> AlignSection | None:
        """Return the alignment of this name; None if there is none."""
        return next((align for align in self.align if align.name == name), None)

    def start_of(self, align: AlignSection) -> str | None:
        """Return the name of the ranker that an alignment starts from; None: the base model."""
        return align.start or (SFT if self.sft else None)

    def queried(self, name: str) -> list[str]:
        """Return the ranker of this name; for a reward, the alignment and the ranker that it started from."""
        align = self.alignment(name.removesuffix(REWARD)) if name.endswith(REWARD) else None
        if align is None:
            return [name]
        start = self.start_of(align)
        return [align.name, start] if start else [align.name]


def asked_by(ranker: RankerConfig) -> list[str]:
    """Return the names of rankers, baselines and rewards that a ranker names in its settings."""
    needed = ranker_kind(ranker.kind).needs(ranker).values()
    return list(dict.fromkeys(name for names in needed for name in names))


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
        path: the file. Paths of data in it are relative to its folder.
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
    raw = with_preset(raw)
    for override in overrides:
        set_field(raw, override)
    try:
        recipe = checked_recipe(without_lost_parts(raw, preset_values))
    except ConfigError as e:
        raise ConfigError(f"recipe {path}: {e}") from e
    files = map_files(recipe.data, lambda file: (path.parent / file).resolve())
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=files)})


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

    Without `sft` or `align`, a preset's blend would name rankers that do not exist. `tell` is told what is left out.
    """
    if RANKERS not in values or raw.get(RANKERS) != values[RANKERS]:
        return raw  # these are the user's own, so a missing ranker is an error

    def models(of: Mapping[str, Any]) -> set[str]:
        return ({SFT} if of.get(SFT) is not None else set()) | {
            _entry_name(a, "align") for a in of.get("align") or ()
        }

    lost, rankers = models(values) - models(raw), []
    for ranker in raw[RANKERS]:
        if gone := [part for part in ranker.get("parts", ()) if part in lost]:
            name = _entry_name(ranker, RANKERS)
            tell(f"{name}: {', '.join(gone)} is left out, because the recipe does not train it")
            ranker = ranker | {"parts": [part for part in ranker["parts"] if part not in lost]}
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
    kind: Any = ranker_kind(str(entry.get("kind"))).config
    return str(entry.get("name") or kind.default_name(entry))


def map_files(data: PrepareConfig, change: Callable[[Path], Any]) -> dict[str, Any]:
    """Return field → value, with each path changed by `change`, of the settings that name files."""
    named = {"path", "interactions", "more_interactions", "items", "users", "row_files"}

    def changed(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: changed(inner) for name, inner in value.items()}
        return [change(file) for file in value] if isinstance(value, list) else change(value)

    return cast(dict[str, Any], changed(data.model_dump(include=named, exclude_none=True)))
