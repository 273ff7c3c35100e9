"""TALLRec in a recipe: questions from training examples, an adapter by SFT, a ranker by P(Yes)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from transformers import set_seed

from prefrec.console import say
from prefrec.lm.models import load_model, load_tokenizer
from prefrec.pipeline.entry import WEIGHTS, Entry, RunInputs
from prefrec.pipeline.kinds import RankerKind
from prefrec.pipeline.recipe import LoraSection, Recipe
from prefrec.pipeline.train import train_to_weights, training_arguments
from prefrec.pipeline.training_rows import print_fewer, some_rows
from prefrec.prompts import PromptEncoder
from prefrec.training import SFTConfig, SFTTrainer, lora_config
from prefrec_systems.start import check_start, from_start, start_key, start_needs
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


def tallrec_entry(inputs: RunInputs, config: TallrecConfig, folder: Path, before: Mapping[str, Entry]) -> Entry:
    """Return TALLRec as an entry, trained in `folder`."""
    template = load_like_template(config.template, domain=inputs.data.domain)
    opinions = Opinions(inputs.data.opinions, config.liked)
    started, start = from_start(inputs, config.start, before)
    key = inputs.key(tallrec=config.decisive() | {"template": template.source}, **start_key(start))

    def load(batch_size: int) -> TallrecRanker:
        model = started.model
        return load_tallrec(
            config.name,
            model.name,
            folder / WEIGHTS,
            inputs.data.catalogue,
            template,
            opinions,
            loading=model.loading(),
            max_length=model.max_length,
            chat=model.chat,
        )

    make = partial(_train, started, config, folder, template, opinions)
    return Entry(config.name, key, load, weights=folder / WEIGHTS, make=make)


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
        data.some("validation", config.eval_rows), opinions, negatives=config.negatives, seed=seed
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


def _check_recipe(config: TallrecConfig, recipe: Recipe, before: Sequence[str]) -> None:
    check_start(config, recipe)


KIND = RankerKind(TallrecConfig, tallrec_entry, start_needs, trains=True, check_recipe=_check_recipe)
