"""Threads that ask one recommender at once, from its first question on."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from prefrec import Recommender
from prefrec.intake import prepare
from prefrec.lm.items import add_items, save_item_model
from prefrec.recipe import Recipe
from prefrec.stages.language_model import LMStage
from tiny import tiny_llama
from tiny_run import tiny_recipe, write_shop

THREADS = 16
KINDS = ("titles", "titles of the catalogue", "items")
"""Kinds of language models: titles among all texts or those of the catalogue, and items as tokens."""

Question = Callable[[Recommender], Any]


def opener(kind: str, folder: Path, tokenizer: PreTrainedTokenizerBase) -> Callable[[], Recommender]:
    """Write a tiny model of a kind; return a function that opens a new recommender, whose model is not loaded."""
    recipe = Recipe.model_validate(tiny_recipe(write_shop(folder / "shop"), folder / "model"))
    data, model, weights = prepare(recipe.data), recipe.model, None
    lm = tiny_llama()
    lm.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    if kind == "titles":
        model.objective = "tokens"
    if kind == "items":
        model.answers, weights = "items", folder / "weights"
        torch.manual_seed(0)
        table = add_items(lm, data.catalogue.ids, torch.randn(len(data.catalogue), 6))
        torch.nn.init.normal_(table.predict.weight, std=0.1)
        save_item_model(lm, weights)
    return lambda: Recommender(data, LMStage("lm", weights, data, model))


def questions_of(rec: Recommender) -> list[Question]:
    """Questions of all kinds, whose prompts and lists have many lengths."""
    ids = rec.data.catalogue.ids

    def about(n: int) -> list[Question]:
        history, some = ids[n : n + 2 + n % 5], [ids[(7 * n + 3 * i + 20) % len(ids)] for i in range(4 + n % 4)]
        return [
            lambda rec: rec.recommend(history, 3 + n % 4, where="title <> 'Red Emma'"),
            lambda rec: rec.rank(history, some),
            lambda rec: rec.explain(history, some[0], some),
        ]

    return [question for n in range(8) for question in about(n)]


def ask_together(rec: Recommender, questions: list[Question]) -> list[tuple[int, Any]]:
    """Let threads ask all questions, each in its own order; return pairs of a question's index and an answer."""
    together = Barrier(THREADS)

    def predict_all(first: int) -> list[tuple[int, Any]]:
        together.wait()
        order = [(i + 5 * first) % len(questions) for i in range(len(questions))]
        return [(i, questions[i](rec)) for i in order]

    with ThreadPoolExecutor(THREADS) as pool:
        return [answer for some in pool.map(predict_all, range(THREADS)) for answer in some]
