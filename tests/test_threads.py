"""A recommender that several threads ask: each gets what one thread alone gets, also if all of them come first."""

import asyncio
import multiprocessing
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch

from prefrec import Recommender
from prefrec.data import prepare
from prefrec.errors import ConfigError
from prefrec.lm.items import add_items, save_item_model
from prefrec.pipeline.entry import lm_entry
from prefrec.pipeline.recipe import Recipe
from tiny import tiny_llama
from tiny_run import tiny_recipe, write_shop

THREADS = 16


@pytest.fixture(scope="module", params=["titles", "titles of the catalogue", "items"])
def opened(request, tmp_path_factory, bpe_tokenizer):
    """A function that opens a new recommender, whose model is not loaded."""
    folder = tmp_path_factory.mktemp("threads")
    recipe = Recipe.model_validate(tiny_recipe(write_shop(folder / "shop"), folder / "model"))
    data, model, weights = prepare(recipe.data), recipe.model, None
    lm = tiny_llama()
    lm.save_pretrained(folder / "model")
    bpe_tokenizer.save_pretrained(folder / "model")
    if request.param == "titles":
        model.objective = "tokens"
    if request.param == "items":
        model.answers, weights = "items", folder / "weights"
        torch.manual_seed(0)
        table = add_items(lm, data.catalogue.ids, torch.randn(len(data.catalogue), 6))
        torch.nn.init.normal_(table.predict.weight, std=0.1)
        save_item_model(lm, weights)
    return lambda: Recommender(data, lm_entry("lm", weights, data, model))


@pytest.fixture(scope="module")
def questions(opened):
    """Questions of all kinds, as functions of a recommender; their prompts and lists have many lengths."""
    ids = opened().data.catalogue.ids

    def about(n):
        history, some = ids[n : n + 2 + n % 5], [ids[(7 * n + 3 * i + 20) % len(ids)] for i in range(4 + n % 4)]
        return [
            lambda rec: rec.recommend(history, 3 + n % 4, where="title <> 'Red Emma'"),
            lambda rec: rec.rank(history, some),
            lambda rec: rec.explain(history, some[0], some),
        ]

    return [question for n in range(8) for question in about(n)]


@pytest.fixture(scope="module")
def want(opened, questions):
    rec = opened()
    return [ask(rec) for ask in questions]


def test_threads_get_what_one_thread_gets(opened, questions, want):
    rec, together = opened(), Barrier(THREADS)

    def ask_all(first):
        together.wait()
        order = [(i + 5 * first) % len(questions) for i in range(len(questions))]
        return [(i, questions[i](rec)) for i in order]

    with ThreadPoolExecutor(THREADS) as pool:
        answers = [answer for some in pool.map(ask_all, range(THREADS)) for answer in some]
    assert len(answers) == THREADS * len(questions)
    assert [i for i, answer in answers if answer != want[i]] == []


def test_asyncio_may_hand_questions_to_threads(opened, questions, want):
    rec = opened()

    async def ask_all():
        return await asyncio.gather(*(asyncio.to_thread(ask, rec) for ask in questions))

    assert asyncio.run(ask_all()) == want


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux alone")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_answers_or_says_why_not(opened, questions, want):
    """In a fork polars would wait for threads that are not there."""
    rec = opened()
    assert [ask(rec) for ask in questions[:3]] == want[:3]
    context = multiprocessing.get_context("fork")
    told = context.SimpleQueue()

    def child():
        for ask in (questions[0], Recommender.recommend_all, lambda rec: rec.recommend(user="u01")):
            with pytest.raises(ConfigError, match="get_context\\('spawn'\\)"):
                ask(rec)
        told.put(questions[1](rec) == want[1])

    process = context.Process(target=child)
    process.start()
    process.join(30)
    process.kill()
    assert process.exitcode == 0
    assert told.get()
