"""`prefrec rank --catalogue`: all titles for a history, or for rows of a split."""

import json

import numpy as np
import pytest
import torch

from command import prefrec, succeed
from prefrec.data import read_prepared
from prefrec.pipeline.entry import lm_ranker
from prefrec.pipeline.recipe import ModelSection
from slow import slow_logps_within
from tiny import tiny_llama

HISTORY = ("--history", "red alien", "--history", "i3")


def rank(place, *options):
    return json.loads(succeed("rank", place.data, "--catalogue", *place.asked, "--json", *options))


def logps(items):
    return [item["logp"] for item in items]


def test_the_best_of_the_catalogue_are_those_of_the_slow_twin(place):
    data = read_prepared(place.data)
    asked = ModelSection(name=str(place.model), dtype="float32", max_length=400, templates=["1"])
    lm = lm_ranker("lm", place.s_dpo / "adapter", data, asked)
    titles = data.catalogue.titles_of(data.catalogue.ids)
    shown = data.catalogue.titles_of(["i0", "i3"])
    question = lm.encoder.encode(lm.template, shown, [], titles)
    want = dict(zip(titles, slow_logps_within(lm.model, question.prompt, question.answers), strict=True))
    for title in shown:
        del want[title]
    (answer,) = rank(place, *HISTORY, "--adapter", place.s_dpo / "adapter", "--top", 7)
    assert (answer["user_id"], answer["history"], answer["proven"]) == ("-", ["i0", "i3"], True)
    assert answer["method"] == "exact"
    np.testing.assert_allclose(logps(answer["items"]), sorted(want.values(), reverse=True)[:7], rtol=0, atol=1e-4)
    for item in answer["items"]:
        assert item["logp"] == pytest.approx(want[item["title"]], abs=1e-4)
        assert data.catalogue.titles[item["item_id"]] == item["title"]


def test_an_adapter_knows_how_it_is_asked(place):
    """Without an option it gets the model, prompt and dtype of its training; other options win, with a warning."""
    bare = ("rank", place.data, "--catalogue", "--json", *HISTORY, "--adapter", place.s_dpo / "adapter")
    known = prefrec(*bare)
    assert (known.code, "was trained with" in known.err) == (0, False)
    assert json.loads(known.out) == rank(place, *HISTORY, "--adapter", place.s_dpo / "adapter")
    other = prefrec(*bare, "--model.templates", "history")
    assert "--model.templates ['history']: " in " ".join(other.err.split())
    assert "was trained with ['1']; leave --model.templates out" in " ".join(other.err.split())
    assert json.loads(other.out) != json.loads(known.out)


def test_what_was_seen_is_left_out_or_kept(place):
    (without,) = rank(place, *HISTORY, "--top", 100)
    (kept,) = rank(place, *HISTORY, "--top", 100, "--keep-seen")
    assert {i["item_id"] for i in kept["items"]} - {i["item_id"] for i in without["items"]} == {"i0", "i3"}
    assert len(kept["items"]) == 60
    assert logps(kept["items"]) == sorted(logps(kept["items"]), reverse=True)


def test_rows_of_a_split(place):
    data = read_prepared(place.data)
    answers = rank(place, "--rows", 3, "--split", "validation", "--top", 100)
    assert [(a["user_id"], tuple(a["history"])) for a in answers] == [
        (e.user_id, e.history) for e in data.validation[:3]
    ]
    for answer in answers:
        log = data.train_interactions
        known = log.filter(log["user_id"] == answer["user_id"])["item_id"].to_list()
        shown = {i["item_id"] for i in answer["items"]}
        assert len(known) > len(answer["history"])
        assert shown == set(data.catalogue.ids) - set(known) - set(answer["history"])
    assert [a["user_id"] for a in rank(place, "--rows", 2)] == [e.user_id for e in data.test[:2]]


def test_all_that_a_held_out_user_took_before_is_left_out(place, tmp_path):
    files = ("--source", "files", "--interactions", place.shop["interactions"], "--items", place.shop["items"])
    succeed("prepare", tmp_path, *files, "--split", "user", "--candidates.size", 6, "--history-length", 2)
    (answer,) = json.loads(
        succeed("rank", tmp_path, "--catalogue", *place.asked, "--json", "--rows", 1, "--top", 100)
    )
    row = read_prepared(tmp_path).test[0]
    log = [line.split(",") for line in place.shop["interactions"].read_text().splitlines()]
    own = [item for user, item, _ in log if user == row.user_id]
    taken = own[: own.index(row.target)]
    assert tuple(taken[-2:]) == row.history
    assert {i["item_id"] for i in answer["items"]} == {f"i{n}" for n in range(60)} - set(taken)


def test_tables_for_people(place):
    def table(*options) -> str:
        return " ".join(succeed("rank", place.data, "--catalogue", *place.asked, *options).split())

    (answer,) = rank(place, *HISTORY, "--top", 4)
    out = table(*HISTORY, "--top", 4)
    assert "Best of the catalogue" in out
    rows = [f"│ {n} │ {i['title']} │ {i['logp']:.2f} │" for n, i in enumerate(answer["items"], 1)]
    assert " ".join(rows) in out
    assert table("--rows", 2).count("Best of the catalogue for u") == 2


@pytest.mark.parametrize("options", [("--candidate", "i5", "--candidate", "i6"), ("--catalogue",)])
def test_a_model_that_gives_no_numbers_gives_no_ranking(place, tmp_path, bpe_tokenizer, options):
    model = tiny_llama()
    with torch.no_grad():
        model.lm_head.weight.fill_(torch.nan)
    model.save_pretrained(tmp_path)
    bpe_tokenizer.save_pretrained(tmp_path)
    done = prefrec("rank", place.data, *place.asked, "--model.name", tmp_path, *HISTORY, *options, "--json")
    assert (done.code, done.out) == (1, "")
    assert "a log-probability is not finite; use another dtype" in " ".join(done.err.split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--history", "Heat"), "Invalid value for --candidate: name titles to rank, or rank all"),
        (("--candidate", "Heat"), "Invalid value for --history: name the titles to go on from"),
        (("--catalogue",), "Invalid value for --history"),
        (
            ("--catalogue", "--candidate", "Heat", "--history", "Heat"),
            "Invalid value for --candidate: cannot be combined",
        ),
        (("--catalogue", "--history", "Heat", "--rows", 2), "Invalid value for --rows: needs --catalogue"),
        (("--candidate", "Heat", "--rows", 2), "Invalid value for --rows: needs --catalogue"),
        (("--candidate", "Heat", "--history", "Heat", "--top", 10), "Invalid value for --top: needs --catalogue"),
        (("--candidate", "Heat", "--history", "Heat", "--keep-seen"), "for --keep-seen: needs --catalogue"),
        (("--candidate", "Heat", "--history", "Heat", "--split", "test"), "for --split: needs --catalogue"),
        (("--catalogue", "--history", "Heat", "--top", 0), "Invalid value for '--top'"),
        (("--catalogue", "--rows", 1, "--split", "train"), "'train' is not one of 'validation', 'test'"),
    ],
)
def test_wrong_usage(options, message):
    done = prefrec("rank", "data", *options)
    assert (done.code, done.out) == (2, "")
    assert message in " ".join(done.err.replace("│", " ").split())
