"""Ranks over the whole catalogue against counting, for a language model by one sequence a title."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from full_ranks import full_ranks, whole_catalogue
from prefrec.data import RankingExample
from prefrec.errors import ModelError
from prefrec.evaluation import evaluate_predictions, predict, rank_catalogue
from prefrec.evaluation.full import KEPT
from prefrec.prompts import load_template
from prefrec.rankers import CatalogueRanker, LMRanker, PopularityRanker
from slow import slow_logps
from tiny_lists import CATALOGUE, IDS
from tiny_run import TITLES
from verdicts import NONE

ROWS = [
    RankingExample("u0", ("i1", "i2"), ("i5", "i6"), "i5"),
    RankingExample("u1", ("i7",), ("i8", "i9"), "i9"),
    RankingExample("u2", ("i30", "i5"), ("i5", "i6"), "i5"),  # taken again
]
SEEN = [["i10", "i11"], ("i9", "i12"), set()]


@pytest.mark.parametrize("seen", [None, SEEN])
def test_ranks_of_a_language_model_equal_the_slow_twin(model, bpe_tokenizer, seen):
    lm = LMRanker("lm", model, bpe_tokenizer, CATALOGUE, load_template("movies/1"), objective="tokens")
    want = []
    for e, own in zip(ROWS, seen or [()] * 3, strict=True):
        choices = lm.encoder.encode(lm.template, CATALOGUE.titles_of(e.history), [], TITLES)
        with torch.no_grad():
            logps = dict(zip(IDS, slow_logps(model, choices).tolist(), strict=True))
        left_out = {*e.history, *own} - {e.target}
        want.append(1 + sum(p > logps[e.target] for i, p in logps.items() if i not in left_out))
    assert full_ranks(CatalogueRanker(lm), ROWS, CATALOGUE, seen)[0].tolist() == want
    assert len(set(want)) > 1


@pytest.mark.parametrize("per_block", [1, 1000])
def test_blocks_of_all_items_equal_whole_lists(monkeypatch, per_block):
    """Ranks, ties, and the best items, against lists of unseen items; among a class, against lists of that class."""
    monkeypatch.setattr("prefrec.rankers.matrices.CELLS_AT_A_TIME", per_block * 4 * len(IDS))
    rng = np.random.default_rng(0)
    counts = {i: int(n) for i, n in zip(IDS, rng.integers(0, 4, len(IDS)), strict=True)}
    known = {i for i in IDS if rng.random() < 0.5}
    rows = [RankingExample(f"u{n}", (IDS[n], IDS[n + 1]), ("?",), IDS[2 * n]) for n in range(12)]
    seen = [{*e.history, *rng.choice(IDS, 5, replace=False).tolist()} for e in rows]
    ranker = PopularityRanker(counts)
    found = rank_catalogue(ranker, rows, CATALOGUE, seen, known)
    assert rank_catalogue(ranker, rows, CATALOGUE, seen, known, shared=False).equals(found)
    lists = whole_catalogue(rows, CATALOGUE, seen)
    for answer, e in zip(found.iter_rows(named=True), lists, strict=True):
        own = [i for i in e.candidates if (i in known) == (e.target in known)]
        for prefix, listed in (("", e.candidates), ("class_", own)):
            others = [counts[i] for i in listed if i != e.target]
            want = (1 + sum(n > counts[e.target] for n in others), others.count(counts[e.target]), len(listed))
            assert tuple(answer[f"{prefix}{name}"] for name in ("rank", "tied", "listed")) == want
        best = sorted((counts[i] for i in e.candidates), reverse=True)[:KEPT]
        assert [counts[i] for i in answer["candidates"]] == answer["scores"] == best
        assert set(answer["candidates"]) <= set(e.candidates)
    assert found["row"].to_list() == [*range(12)]
    groups = evaluate_predictions(found, known_items=known, audit=NONE).groups
    assert {*groups} == {"warm", "new", "known among known", "new among new"}
    ours, theirs = (evaluate_predictions(f, audit=NONE) for f in (found, predict(ranker, lists, CATALOGUE)))
    assert (ours.metrics, ours.expected) == (theirs.metrics, theirs.expected)


def test_known_among_known_is_the_ranking_of_that_class():
    """New items are never above known ones by popularity, so among new items it is chance."""
    known, popularity = set(IDS[:20]), PopularityRanker({i: 20 - n for n, i in enumerate(IDS[:20])})
    rows = [RankingExample(f"u{n}", (), ("?",), IDS[n]) for n in range(40)]
    found = rank_catalogue(popularity, rows, CATALOGUE, [()] * 40, known)
    groups = evaluate_predictions(found, ks=[10], known_items=known, audit=NONE).groups
    assert groups["known among known"].metrics == groups["warm"].metrics | groups["known among known"].metrics
    mean = {name: g.metrics["popularity"]["hr@10"].mean for name, g in groups.items()}
    assert mean["warm"] == mean["known among known"] == 0.5
    assert mean["new"] == 0
    assert mean["new among new"] == pytest.approx(groups["new among new"].expected["hr@10"])
    assert groups["known among known"].expected["hr@10"] == 0.5


def test_misfits_are_named():
    rows = [RankingExample("u", (), ("?",), IDS[0])]

    def rank(scores):
        rank_catalogue(SimpleNamespace(name="odd", score=lambda examples: scores), rows, CATALOGUE, [()])

    with pytest.raises(ModelError, match=r"'odd': expected scores of shape \(1, \d+\), got \(1, 2\)"):
        rank(np.zeros((1, 2)))
    with pytest.raises(ModelError, match="'odd': 1 of 1 rows have NaN"):
        rank(np.full((1, len(IDS)), np.nan))
