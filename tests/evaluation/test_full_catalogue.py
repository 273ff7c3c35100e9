"""Ranks over the whole catalogue against counting, for a language model by one sequence a title."""

import polars as pl
import pytest
import torch

from full_ranks import full_ranks
from prefrec.data import Catalogue, RankingExample
from prefrec.evaluation import whole_catalogue
from prefrec.prompts import load_template
from prefrec.rankers import CatalogueRanker, LMRanker, PopularityRanker
from slow import slow_logps
from tiny_run import TITLES

IDS = [f"i{i}" for i in range(len(TITLES))]
CATALOGUE = Catalogue(pl.DataFrame({"item_id": IDS, "title": TITLES}))
ROWS = [
    RankingExample("u0", ("i1", "i2"), ("i5", "i6"), "i5"),
    RankingExample("u1", ("i7",), ("i8", "i9"), "i9"),
    RankingExample("u2", ("i30", "i5"), ("i5", "i6"), "i5"),  # taken again
]
SEEN = [["i10", "i11"], ("i9", "i12"), set()]


def test_all_items_that_were_not_seen_are_candidates():
    first, second, third = whole_catalogue(ROWS, CATALOGUE, SEEN)
    assert first.candidates == tuple(i for i in IDS if i not in ("i1", "i2", "i10", "i11"))
    assert second.candidates == tuple(i for i in IDS if i not in ("i7", "i12"))
    assert third.candidates == tuple(i for i in IDS if i != "i30")
    assert [(e.user_id, e.history, e.target) for e in (first, second, third)] == [
        (e.user_id, e.history, e.target) for e in ROWS
    ]
    assert whole_catalogue(ROWS, CATALOGUE)[0].candidates == tuple(i for i in IDS if i not in ("i1", "i2"))
    with pytest.raises(ValueError, match="shorter"):
        whole_catalogue(ROWS, CATALOGUE, SEEN[:2])


@pytest.mark.parametrize("seen", [None, SEEN])
def test_ranks_of_a_language_model_equal_the_slow_twin(model, bpe_tokenizer, seen):
    lm = LMRanker("lm", model, bpe_tokenizer, CATALOGUE, load_template("movies/1"))
    want = []
    for e, own in zip(ROWS, seen or [()] * 3, strict=True):
        choices = lm.encoder.encode(lm.template, CATALOGUE.titles_of(e.history), [], TITLES)
        with torch.no_grad():
            logps = dict(zip(IDS, slow_logps(model, choices).tolist(), strict=True))
        left_out = {*e.history, *own} - {e.target}
        want.append(1 + sum(p > logps[e.target] for i, p in logps.items() if i not in left_out))
    assert full_ranks(CatalogueRanker(lm), ROWS, CATALOGUE, seen)[0].tolist() == want
    assert len(set(want)) > 1


def test_any_ranker_will_do():
    """i5 is the most popular, then i6, i7 (seen by u1), i8, i9: five places, less the two left out and i7."""
    popularity = PopularityRanker({f"i{5 + n}": 40 - n for n in range(40)})
    ranks, _ = full_ranks(popularity, ROWS[:2], CATALOGUE, [(), ("i5", "i6")])
    assert ranks.tolist() == [1, 5 - 3]
