"""TALLRec in a recipe: questions from training examples, an adapter by SFT, a ranker by P(Yes)."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from transformers import set_seed

from prefrec.console import say
from prefrec.lm.models import load_model, load_tokenizer
from prefrec.prompts import PromptEncoder
from prefrec.sections import LoraSection
from prefrec.stages.base import WEIGHTS, RankerStage
from prefrec.stages.inputs import RunInputs
from prefrec.stages.train import train_to_weights, training_arguments
from prefrec.stages.training_rows import print_fewer, some_rows
from prefrec.training import SFTConfig, SFTTrainer, lora_config
from prefrec_systems.start import from_start, start_key
from prefrec_systems.tallrec import (
    LikeTemplate,
    Opinions,
    TallrecConfig,
    TallrecRanker,
    load_like_template,
    load_tallrec,
    tallrec_dataset,
    training_questions,
)


class TallrecStage(RankerStage):
    """TALLRec, which starts from the recipe's base, or from an earlier model of the recipe."""

    Config = TallrecConfig
    full = None
    config: TallrecConfig

    @cached_property
    def template(self) -> LikeTemplate:
        """The template of its questions."""
        return load_like_template(self.config.template, domain=self.inputs.data.domain)

    @cached_property
    def opinions(self) -> Opinions:
        """The ratings of the users."""
        return Opinions(self.inputs.data.opinions, self.config.liked)

    @cached_property
    def start(self) -> RankerStage | None:
        """The model that it starts from; None: the base."""
        return self.before[self.config.start] if self.config.start else None

    @property
    def weights(self) -> Path:
        return self.folder / WEIGHTS

    @cached_property
    def key(self) -> str:
        settings = self.config.decisive() | {"template": self.template.source}
        return self.inputs.key(tallrec=settings, **start_key(self.start))

    def make(self) -> None:
        _train(from_start(self.inputs, self.start), self.config, self.folder, self.template, self.opinions)

    def load(self, batch_size: int) -> TallrecRanker:
        model = from_start(self.inputs, self.start).model
        return load_tallrec(
            self.name,
            model.name,
            self.weights,
            self.inputs.data.catalogue,
            self.template,
            self.opinions,
            loading=model.loading(),
            max_length=model.max_length,
            chat=model.chat,
        )


def _train(
    inputs: RunInputs, config: TallrecConfig, folder: Path, template: LikeTemplate, opinions: Opinions
) -> None:
    data, seed = inputs.data, inputs.seed
    set_seed(seed)
    if not opinions:
        say(
            f"{config.name}: no rating is below {config.liked:g}, so targets count as liked and unseen candidates "
            "as disliked"
        )
    encoder = PromptEncoder(
        load_tokenizer(inputs.model.name), max_length=inputs.model.max_length, chat=inputs.model.chat
    )
    questions = training_questions(data.train, opinions, negatives=config.negatives, seed=seed)
    if opinions:
        # Training must not see the ratings of validation examples.
        config = config.model_copy(update={"eval_rows": 0})
    held_out = training_questions(
        data.examples("validation", config.eval_rows), opinions, negatives=config.negatives, seed=seed
    )
    chosen = some_rows(questions, config, seed)
    print_fewer(config.name, config, len(chosen))
    trainer = SFTTrainer(
        load_model(inputs.model.name, **inputs.model.loading()),
        SFTConfig(**training_arguments(config, inputs.model, folder, seed, "steps" if held_out else "no")),
        train_dataset=tallrec_dataset(chosen, data.catalogue, template, encoder),
        eval_dataset=tallrec_dataset(held_out, data.catalogue, template, encoder) if held_out else None,
        processing_class=encoder.tokenizer,
        peft_config=lora_config(**(inputs.lora or LoraSection()).model_dump()),
    )
    train_to_weights(trainer, folder)
