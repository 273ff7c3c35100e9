"""Sections of a recipe, each checked alone. `prefrec.recipe` has the whole, and reads its file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, cast, get_args

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from prefrec.data.feedback import RatedBy, Thresholds
from prefrec.lm.names import EMBEDDED, random_and_quantized
from prefrec.losses import ALIASES, LOSSES, OPTIONS, find_loss, trait, with_options
from prefrec.prompts import MAX_LENGTH
from prefrec.rankers.baselines import BASELINES
from prefrec.rankers.config import BATCH_SIZE, NAME
from prefrec.settings import Section
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

if TYPE_CHECKING:
    BaselineName = str
else:
    BaselineName = Literal[BASELINES]
SEED = 0
"""Default seed of a run."""
ZERO_SHOT, SFT, ALIGN, RANKERS = "zero-shot", "sft", "align", "rankers"
FromLog = Literal["rated", "impressions"]
FROM_LOG: tuple[FromLog, ...] = get_args(FromLog)
"""Sources that make examples from the log itself, instead of sampling negatives for the data's examples."""
NegativesFrom = Literal["reference", "list", "uniform", "popularity", "in-batch", "hard", FromLog]


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

    @model_validator(mode="after")
    def _not_random_and_quantized(self) -> Self:
        if self.random_weights and self.quantization != "none":
            raise ValueError(random_and_quantized(self.quantization))
        return self

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
    loss: str = Field(LOSS, description=f"Loss: {', '.join(LOSSES)}, or that of another package.")
    beta: float = Field(
        BETA, gt=0, le=1000, description="Strength of the penalty for moving away from the reference (β)."
    )
    margin: float | None = Field(
        None, ge=0, le=1000, description="Margin of another package's loss that has one. Default: the loss's own."
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
        "catalogue. in-batch: targets of other examples. hard: ranked highest by the miner. rated: the user's "
        "disliked items. impressions: items shown, not clicked.",
    )
    exclude_later: bool = Field(
        True,
        description="reference: never reject an item that the user interacts with later in the training log.",
    )
    miner: str | None = Field(
        None,
        description="hard: the ranker that mines negatives, such as SASRec. Default: the starting model.",
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
        idle |= set() if self.negatives_from == "reference" else {"exclude_later"}
        idle = (
            idle - {"eval_rows"} | {"eval_steps"}
            if self.load_best_model_at_end
            else idle | {"load_best_model_at_end"}
        )
        return idle | (set() if self.negatives_from == "hard" else {"negatives_pool"})

    @property
    def rankers(self) -> dict[str, str]:
        """Setting → name of the ranker that the alignment queries for it."""
        return {"miner": self.miner} if self.miner else {}

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
        loss = find_loss(self.loss)
        with_options(loss, **{name: getattr(self, name) for name in OPTIONS})
        if trait(loss, "needs_logq") and self.negatives_from not in ("uniform", "popularity", "in-batch"):
            raise ValueError(
                f"loss: {self.loss} needs negatives of known probability: negatives_from uniform, popularity or "
                "in-batch (for reference, softmax_dpo at beta 1 is the same)"
            )
        if self.miner and self.negatives_from != "hard":
            raise ValueError(f"miner: {self.miner} is only used with negatives_from: hard; remove it")
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
    baselines: list[BaselineName] = Field(list(BASELINES), description="Baselines of the table.")
    ks: list[PositiveInt] = Field([1, 5, 10], min_length=1, description="Cut-offs K of HR@K and NDCG@K.")
    on_leak: Literal["warn", "stop"] = Field(
        "warn",
        exclude_if=lambda on_leak: on_leak == "warn",
        description="What to do before training if the audit finds a leak or a protocol error, or that "
        "candidate sets can be solved without the user.",
    )


class AnswersSection(Section):
    """Rules of all answers of a run, which a request may change."""

    new_every: int = Field(
        0,
        ge=0,
        description="One place in every N goes to an item without interactions in the log, the best of them by the "
        "ranker, or by titles if it does not tell them apart. 0: none.",
    )


class UpdateSection(Section):
    """An earlier run whose SFT weights are trained further on a longer log."""

    run: Path = Field(description="Folder of the run to continue, relative to the recipe.")
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

    # Omitted from dumps by default, so that results of recipes without this field stay valid.
    rankers: Literal["all", "served"] = Field(
        "all",
        exclude_if=lambda rankers: rankers == "all",
        description="Which rankers learn them. served: the default, which is chosen before, the best for items that "
        "are new to the user, and what they need, without the parts that a blend has left out. This is quicker, but "
        "the other rankers of the table were trained on less.",
    )
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
