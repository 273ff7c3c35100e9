"""LLaRA, and S-DPO on top of it, in a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from transformers import set_seed

from prefrec.data import RankingExample
from prefrec.errors import ConfigError
from prefrec.lm.catalogue_softmax import CatalogueSoftmax
from prefrec.lm.models import load_model, load_tokenizer
from prefrec.processes import is_first
from prefrec.prompts import ChoiceSet, load_template
from prefrec.sections import LoraSection
from prefrec.stages.base import WEIGHTS, RankerStage
from prefrec.stages.inputs import RunInputs
from prefrec.stages.train import catalogue_softmax, train_to_weights, trained_items, training_arguments
from prefrec.stages.training_rows import print_fewer, training_rows
from prefrec.training import (
    ChoiceDataset,
    PreferenceDataset,
    SoftmaxDPOConfig,
    SoftmaxDPOTrainer,
    encode_examples,
    lora_config,
)
from prefrec.training.adapters import add_adapter
from prefrec.training.config import SFTConfig
from prefrec_systems.llara import (
    CurriculumDataset,
    HybridEncoder,
    LlaraAlignConfig,
    LlaraConfig,
    LlaraRanker,
    LlaraTrainer,
    add_items,
    embedding_of,
    hybrid_catalogue,
    load_llara,
    load_llara_model,
    save_projector,
    vectors_of,
)
from prefrec_systems.sequential import SequentialRanker
from prefrec_systems.start import from_start, start_key


class _LlaraStage(RankerStage):
    """A LLaRA with weights in its folder, which starts from the recipe's base, or from an earlier model."""

    full = None

    @cached_property
    def start(self) -> RankerStage | None:
        """The model that it starts from; None: the base."""
        return self.before[self.config.start] if self.config.start else None

    @cached_property
    def started(self) -> RunInputs:
        """The inputs with that model as their base."""
        return from_start(self.inputs, self.start)

    @property
    def weights(self) -> Path:
        return self.folder / WEIGHTS

    def load(self, batch_size: int) -> LlaraRanker:
        model, data = self.started.model, self.inputs.data
        return load_llara(
            self.name,
            model.name,
            self.weights,
            data.catalogue,
            load_template(model.templates[0], domain=data.domain),
            loading=model.loading(),
            max_length=model.max_length,
            chat=model.chat,
            batch_size=batch_size,
            objective=model.objective,
        )


class LlaraStage(_LlaraStage):
    """LLaRA by SFT."""

    Config = LlaraConfig
    config: LlaraConfig

    @property
    def source(self) -> RankerStage:
        """The sequential recommender whose item vectors it reads."""
        return self.before[self.config.items_from]

    @cached_property
    def key(self) -> str:
        return self.inputs.key(
            llara=self.config.decisive(), items=self.source.key, **start_key(self.start), **self.prompts
        )

    @property
    def prompts(self) -> dict[str, list[str]]:
        """The templates' texts, where the recipe's own part of the key lacks them: with item-ID tokens.

        S-DPO on top of it need not repeat them, because its key holds that of this stage.
        """
        model = self.inputs.model
        if model.answers != "items":
            return {}
        return {"templates": [load_template(name, domain=self.inputs.data.domain).source for name in model.templates]}

    def make(self) -> None:
        _train(self.started, self.config, self.folder, self.source)


class LlaraAlignStage(_LlaraStage):
    """S-DPO on top of LLaRA."""

    Config = LlaraAlignConfig
    config: LlaraAlignConfig

    @property
    def reference(self) -> RankerStage:
        """The LLaRA that it starts from."""
        return self.before[self.config.reference]

    @cached_property
    def key(self) -> str:
        return self.inputs.key(llara_s_dpo=self.config.decisive(), start=self.reference.key)

    def make(self) -> None:
        _align(self.started, self.config, self.folder, self.reference)


def _train(inputs: RunInputs, config: LlaraConfig, folder: Path, source: RankerStage) -> None:
    data, seed = inputs.data, inputs.seed
    set_seed(seed)
    base: Any = load_model(inputs.model.name, **inputs.model.loading())
    model = add_adapter(base, lora_config(**(inputs.lora or LoraSection()).model_dump()))
    add_items(model, vectors_of(cast(SequentialRanker, source.load(inputs.batch_size))))
    hybrid = _Prompts(inputs, model)
    rows = training_rows(data, config, seed)
    held_out = data.examples("validation", config.eval_rows)
    print_fewer(config.name, config, len(rows))
    trainer = LlaraTrainer(
        model,
        SFTConfig(**training_arguments(config, inputs.model, folder, seed, "steps" if held_out else "no")),
        train_dataset=CurriculumDataset(
            hybrid.encode(rows, "target"), hybrid.encode(rows, "target", text=True), epochs=config.epochs, seed=seed
        ).encoded_by(None, hybrid.within(rows)),
        eval_dataset=ChoiceDataset(hybrid.encode(held_out, "target")).encoded_by(None, hybrid.within())
        if held_out
        else None,
        processing_class=hybrid.encoder.tokenizer,
    )
    _finish(trainer, folder)


def _align(inputs: RunInputs, config: LlaraAlignConfig, folder: Path, reference: RankerStage) -> None:
    data, seed = inputs.data, inputs.seed
    set_seed(seed)
    model = load_llara_model(inputs.model.name, cast(Path, reference.weights), **inputs.model.loading())
    hybrid = _Prompts(inputs, model)
    choices = {"num_negatives": config.num_negatives, "negatives": config.negatives}

    def dataset(examples: Sequence[RankingExample], within: CatalogueSoftmax | None) -> PreferenceDataset:
        sets = hybrid.encode(examples, "target-first")
        return PreferenceDataset(sets, seed=seed, **cast(Any, choices)).encoded_by(None, within)

    rows = training_rows(data, config, seed)
    held_out = data.examples("validation", config.eval_rows)
    print_fewer(config.name, config, len(rows))
    trainer = SoftmaxDPOTrainer(
        model,
        args=SoftmaxDPOConfig(
            **training_arguments(config, inputs.model, folder, seed, "steps" if held_out else "no"),
            **cast(Any, choices),
            beta=config.beta,
            max_tokens_per_pass=config.max_tokens_per_pass,
        ),
        train_dataset=dataset(rows, hybrid.within(rows)),
        eval_dataset=dataset(held_out, hybrid.within()) if held_out else None,
        processing_class=hybrid.encoder.tokenizer,
    )
    _finish(trainer, folder)


class _Prompts:
    """Encodes examples as prompts with or without item tokens."""

    def __init__(self, inputs: RunInputs, model: Any) -> None:
        self.section, self.data = inputs.model, inputs.data
        section = inputs.model
        embedding = embedding_of(model)
        self.templates = [load_template(name, domain=self.data.domain) for name in section.templates]
        self.shown = hybrid_catalogue(self.data.catalogue, embedding)
        self.encoder = HybridEncoder(
            load_tokenizer(section.name), embedding, max_length=section.max_length, chat=section.chat
        )

    def encode(self, examples: Sequence[RankingExample], answers: Any, *, text: bool = False) -> list[ChoiceSet]:
        """Return the choice sets of `encode_examples`: hybrid prompts, or text only if `text` is set."""
        shown = None if text else self.shown
        return encode_examples(
            examples, self.data.catalogue, self.templates, self.encoder, answers=answers, shown=shown
        )

    def within(self, rows: Sequence[RankingExample] | None = None) -> CatalogueSoftmax | None:
        """Return the softmax over titles of the training log and the rows' candidates (None: of all items)."""
        ids = self.data.catalogue.ids
        if rows is not None:
            listed = {i for row in rows for i in row.candidates} | set(trained_items(self.data))
            ids = [i for i in ids if i in listed]
        return catalogue_softmax(self.data, self.section, self.encoder, ids)


def _finish(trainer: Any, folder: Path) -> None:
    """Train, and save adapter and projector in one folder.

    Raises:
        ConfigError: the weights are sharded over processes, so that no process has the whole projector.
    """
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise ConfigError(
            "LLaRA needs the whole model in every process: launch it without FSDP and DeepSpeed, for example with "
            "configs/accelerate/ddp.yaml"
        )
    train_to_weights(trainer, folder)
    if is_first():
        save_projector(trainer.model, folder / WEIGHTS)


KIND, ALIGN_KIND = LlaraStage, LlaraAlignStage  # the entry point's name in installations of earlier commits
