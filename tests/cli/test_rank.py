"""`prefrec rank`: the answers of `Recommender.rank` on the command line."""

import json

import pytest

from command import refused, succeed
from prefrec.recommender import Recommender

HISTORY = ("--history", "red emma", "--history", "i3")
CANDIDATES = ("--candidate", "Old Heat", "--candidate", "i7", "--candidate", "WILD NIGHT")


def test_candidates_are_in_the_order_of_the_ranker(adapted_run):
    rows = json.loads(succeed("rank", adapted_run, *HISTORY, *CANDIDATES, "--json"))
    want = Recommender.from_run(adapted_run).rank(["Red Emma", "i3"], ["Old Heat", "i7", "Wild Night"])
    assert [(row["rank"], row["title"], row["score"]) for row in rows] == [(r.rank, r.title, r.score) for r in want]
    printed = succeed("rank", adapted_run, *HISTORY, *CANDIDATES)
    assert [printed.index(r.title) for r in want] == sorted(printed.index(r.title) for r in want)


def test_k_keeps_the_best_and_another_ranker_answers(adapted_run):
    asked = ("rank", adapted_run, *HISTORY, *CANDIDATES, "--json", "--ranker", "popularity")
    want = Recommender.from_run(adapted_run, "popularity").rank(["Red Emma", "i3"], ["Old Heat", "i7", "Wild Night"])
    best = json.loads(succeed(*asked, "--k", 2))
    assert [(row["title"], row["score"]) for row in best] == [(r.title, r.score) for r in want[:2]]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (CANDIDATES, 2, "--history"),
        (HISTORY, 2, "--candidate"),
        ((*HISTORY, *CANDIDATES, "--candidate", "i7"), 1, "'Red Eye' occurs twice among the candidates"),
        ((*HISTORY, "--candidate", "Red Alein"), 1, "no item with title or id 'Red Alein' among 60; similar"),
        (("--history", "-30-", *CANDIDATES), 1, "no item with title or id '-30-'"),
        ((*HISTORY, *CANDIDATES, "--k", 0), 2, "--k"),
        ((*HISTORY, *CANDIDATES, "--ranker", "nobody"), 1, "nobody"),
    ],
)
def test_what_is_refused(adapted_run, options, code, message):
    assert message in " ".join(refused("rank", adapted_run, *options, code=code).replace("│", " ").split())
